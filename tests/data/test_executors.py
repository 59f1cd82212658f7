"""Local processes, a Ray cluster that loses a node, and Slurm's job arrays give the same bytes and the same errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from samples import make_documents, make_recipe, write_jsonl

from mobillama import manifest
from mobillama.config import DataRecipe, SourceConfig
from mobillama.data import slurm_executor
from mobillama.data.build import build_shards
from mobillama.data.executor import Executor, Progress, make_executor, read_pairs, run_stage
from mobillama.errors import InputError
from mobillama.tokenizer.tokenizer import Tokenizer

FILES, FREE_FILES = 12, 4


class Touch(PipelineStep):  # type: ignore[misc]
    """Task r writes file r; task `bad` cannot."""

    name, type = "touch", "writer"

    def __init__(self, folder: Path, bad: int = -1) -> None:
        super().__init__()
        self.folder, self.bad = folder, bad

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[object]:
        if rank == self.bad:
            raise InputError(f"file {rank}, line 7: no good; mend it")
        (self.folder / str(rank)).write_text(str(world_size))
        yield from ()


def files_of(shards: Path) -> list[object]:
    return [manifest.read(shards).files, manifest.read(shards.with_name(shards.name + "-corpus")).files]


def test_only_open_tasks_run_and_the_error_of_a_task_comes_through(tmp_path: Path):
    with pytest.raises(InputError, match="file 2, line 7: no good; mend it"):
        run_stage("touch", [Touch(tmp_path, bad=2)], 4, tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["0", "1"]
    (tmp_path / "0").unlink()
    seen: list[Progress] = []
    run_stage("touch", [Touch(tmp_path)], 4, tmp_path, 2, seen.append)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["1", "2", "3"]
    assert (seen[0].tasks_done, seen[-1].tasks_done) == (2, 4)
    assert not list((tmp_path / "touch").glob("progress.*"))


@pytest.mark.parametrize(
    ("executor", "pairs", "message"),
    [
        ("local", ["cpus=2"], "--executor local has no options; found cpus"),
        ("ray", ["adress=x"], "has no option 'adress'; it knows address, cpus, memory, retries"),
        ("ray", ["cpus=many"], "--executor-option cpus=many: expected float"),
        ("slurm", ["time=1:00:00"], "needs --executor-option partition=NAME"),
        ("slurm", ["partition=p", "srun=maybe"], "srun=maybe: expected yes or no"),
        ("slurm", ["partition"], "'partition' is not of the form key=value"),
        ("kubernetes", [], "no executor 'kubernetes'; use local, ray or slurm"),
    ],
)
def test_an_option_that_is_not_known_or_cannot_be_read_is_an_error(executor: str, pairs: list[str], message: str):
    with pytest.raises(InputError, match=message):
        make_executor(executor, 0, read_pairs(pairs))


# --- Slurm, by stand-ins ------------------------------------------------------------------------------------------

STAND_IN = """#!{python}
import os, sys
from pathlib import Path
name, jobs, arguments = Path(sys.argv[0]).name, Path("{jobs}"), sys.argv[1:]
if name == "squeue":
    wanted = arguments[arguments.index("--jobs") + 1].split(",")
    print("\\n".join(job for job in wanted if not (jobs / f"{{job}}.done").exists()))
elif name == "scancel":
    for job in arguments:
        (jobs / f"{{job}}.done").touch()
else:  # srun
    while arguments[0].startswith("-"):
        del arguments[: 2 if arguments[0] == "-n" else 1]
    os.execvp(arguments[0], arguments)
"""

SBATCH = '''#!{python}
"""sbatch for one machine: the tasks of an array run one after the other as processes, after the job they depend on."""
import os, re, subprocess, sys, time
from pathlib import Path
jobs = Path("{jobs}")
if sys.argv[1] != "run":
    job = str(100 + len(list(jobs.glob("*.slurm"))))
    (jobs / f"{{job}}.slurm").write_text(Path(sys.argv[-1]).read_text())
    (jobs / f"{{job}}.arguments").write_text(" ".join(sys.argv[1:-1]))
    subprocess.Popen([sys.executable, __file__, "run", job], start_new_session=True, stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("Submitted batch job", job)
    sys.exit()
job = sys.argv[2]
script, given = (jobs / f"{{job}}.slurm").read_text(), (jobs / f"{{job}}.arguments").read_text()
offset = re.search(r"RUN_OFFSET=(\\d+)", given)[1]
for before in re.findall(r"afterany:(\\d+)", given):
    while not (jobs / f"{{before}}.done").exists():
        time.sleep(0.05)
log = re.search(r"#SBATCH --output=(.*)", script)[1]
for index in range(int(re.search(r"#SBATCH --array=0-(\\d+)", script)[1]) + 1):
    if (jobs / f"{{job}}.done").exists() or (jobs / "power_cut").exists():
        break
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(index), SLURM_JOB_ID=job, RUN_OFFSET=offset)
    with open(log.replace("%A", job).replace("%a", str(index)), "w") as file:
        subprocess.run(["bash", jobs / f"{{job}}.slurm"], env=environment, stdout=file, stderr=file)
(jobs / f"{{job}}.done").touch()
'''


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm's commands on PATH; the folder of what was submitted: N.slurm, N.arguments, N.done."""
    jobs, commands = tmp_path / "jobs", tmp_path / "bin"
    jobs.mkdir()
    commands.mkdir()
    for name in ("squeue", "scancel", "srun"):
        (commands / name).write_text(STAND_IN.format(python=sys.executable, jobs=jobs))
    (commands / "sbatch").write_text(SBATCH.format(python=sys.executable, jobs=jobs))
    for path in commands.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the steps of this file
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return jobs


def on_slurm(workers: int = 2, **options: str) -> Executor:
    return make_executor("slurm", workers, {"partition": "cpu", "poll": "0.1", **options})


def test_the_submitted_script_is_the_one_of_datatroves_own_launcher(slurm: Path, tmp_path: Path):
    """Run through both launchers with the same settings; ours adds what puts this Python on PATH."""
    step = Touch(tmp_path)
    (slurm / "power_cut").touch()
    more = {"account": "lab", "constraint": "avx2"}
    theirs = SlurmPipelineExecutor(
        [step],
        tasks=5,
        time="1:00:00",
        partition="cpu",
        cpus_per_task=2,
        mem_per_cpu_gb=3,
        workers=2,
        qos="",
        job_name="mobillama-touch",
        sbatch_args=more,
        logging_dir=str(tmp_path / "stages" / "touch"),
    )
    theirs.launch_job()
    shutil.rmtree(tmp_path / "stages")
    ours = on_slurm(time="1:00:00", cpus="2", memory="3", **{f"sbatch.{key}": text for key, text in more.items()})
    with pytest.raises(InputError, match="ended without a result"):
        run_stage("touch", [step], 5, tmp_path / "stages", ours, None)
    scripts = [path.read_text().splitlines() for path in sorted(slurm.glob("*.slurm"))]
    assert len(scripts) == 3  # theirs, the job of theirs that merges statistics, ours
    lines = [[line.strip() for line in script if line.strip()] for script in (scripts[0], scripts[2])]
    added = f"export PATH={Path(sys.executable).parent}:$PATH"
    assert [line for line in lines[1] if line != added] == lines[0]
    for line in ("#SBATCH --array=0-4%2", "#SBATCH --mem-per-cpu=3G", "#SBATCH --account=lab"):
        assert line in lines[1]
    assert any(line.startswith("srun") and "launch_pickled_pipeline" in line for line in lines[1])


def test_a_job_that_ends_without_a_result_is_an_error_that_names_its_log(slurm: Path, tmp_path: Path):
    (slurm / "power_cut").touch()
    with pytest.raises(InputError, match=r"task 0 of stage touch .* its log is .*/slurm_logs/100_0\.out"):
        run_stage("touch", [Touch(tmp_path)], 3, tmp_path, on_slurm(), None)


def test_without_slurm_the_command_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not on PATH"):
        run_stage("touch", [Touch(tmp_path)], 3, tmp_path, on_slurm(), None)


def test_an_error_without_a_user_type_names_the_log_of_its_task(tmp_path: Path):
    told = {"type": "ZeroDivisionError", "message": "by zero", "errno": None, "task": "task 1 of stage x", "log": "/l"}
    assert (
        str(slurm_executor._rebuilt(told)) == "task 1 of stage x failed with ZeroDivisionError: by zero; its log is /l"
    )
    full = slurm_executor._rebuilt({**told, "type": "OSError", "errno": 28})
    assert isinstance(full, OSError) and full.errno == 28


@pytest.mark.slow
def test_a_task_that_fails_under_slurm_raises_what_it_raises_here(slurm: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"^file 2, line 7: no good; mend it$"):
        run_stage("touch", [Touch(tmp_path, bad=2)], 5, tmp_path, on_slurm(max_array="2"), None)
    run_stage("touch", [Touch(tmp_path)], 5, tmp_path, on_slurm(max_array="2", srun="no"), None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["0", "1", "2", "3", "4"]


@pytest.mark.slow
def test_a_build_under_slurm_gives_the_same_bytes(
    slurm: Path, corpora: Path, built: Path, tokenizer: Tokenizer, tmp_path: Path
):
    out = tmp_path / "shards"
    build_shards(make_recipe(corpora), out, executor=on_slurm(), tokenizer=tokenizer, on_progress=lambda progress: None)
    assert files_of(out) == files_of(built)
    names = {path.read_text().split("--job-name=")[1].split()[0] for path in slurm.glob("*.slurm")}
    assert {"mobillama-clean", "mobillama-encode", "mobillama-pack"} <= names


# --- Ray, for real --------------------------------------------------------------------------------------------------


class HeldFiles(BaseHTTPRequestHandler):
    """Gives a few files; the others once `release` is set, so that every node is at work until then."""

    files: dict[str, bytes]
    given: list[str]
    release: Event

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self.given.append(self.path)
        if len(self.given) > FREE_FILES:
            self.release.wait(100)
        self._answer(self.files[self.path])

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[self.path])))
        with contextlib.suppress(ConnectionError):  # the node that asked was killed
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def held_source(tmp_path: Path) -> Iterator[tuple[SourceConfig, Event]]:
    """A list of FILES files behind a server that holds most of them back, and what lets them go."""

    class Handler(HeldFiles):
        files: dict[str, bytes] = {}  # noqa: RUF012
        given: list[str] = []  # noqa: RUF012
        release = Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        for number in range(FILES):
            data = write_jsonl(tmp_path / "x", make_documents(f"part{number}", 10)).read_bytes()
            Handler.files[f"/{number:02d}.jsonl"] = data
        (tmp_path / "urls.txt").write_text(
            "".join(f"http://127.0.0.1:{server.server_port}{name}\n" for name in Handler.files)
        )
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield SourceConfig(url_list=str(tmp_path / "urls.txt")), Handler.release
        Handler.release.set()
        server.shutdown()


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def works(process: subprocess.Popen[str]) -> bool:
    """Whether a worker of a Ray node is in the middle of a task (Ray names its process after it)."""
    for pid in family_of(process.pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_run_task"):
                return True
    return False


def kill_family(process: subprocess.Popen[str]) -> None:
    for pid in family_of(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


Node = subprocess.Popen[str]


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[Node]]]:
    """A Ray cluster of two nodes, each a family of processes with one CPU; its address, and the nodes."""
    ray = pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets in it need a short path
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    nodes: list[Node] = []

    def start(*arguments: str) -> None:
        sizes = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *sizes, *arguments]
        with Path(folder, f"node{len(nodes)}.log").open("w") as log:
            nodes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True)
            )

    try:
        address = f"127.0.0.1:{free_port()}"
        port = address.partition(":")[2]
        start("--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
        wait_for(lambda: Path(folder, "session_latest").exists() and listens(int(port)), folder)
        start(f"--address={address}")
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        wait_for(lambda: ray.cluster_resources().get("CPU") == 2.0, folder)
        yield address, nodes
    finally:
        ray.shutdown()
        for node in nodes:
            kill_family(node)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return int(server.server_port)


def listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(ready: Callable[[], bool], folder: str) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-2000:] for path in Path(folder).glob("node*.log"))
            pytest.fail(f"the Ray cluster did not start in a minute:\n{logs}")
        time.sleep(0.2)


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_gives_the_same_bytes(
    cluster: tuple[str, list[Node]], held_source: tuple[SourceConfig, Event], tokenizer: Tokenizer, tmp_path: Path
):
    """One of two nodes is killed while both work on the first stage; then bad input, on what is left of the cluster."""
    (address, nodes), (source, release) = cluster, held_source
    recipe = make_recipe(tmp_path).model_copy(update={"source": source})

    def build(name: str, executor: str | Executor, watch: Callable[[Progress], None] = lambda progress: None) -> Path:
        out = tmp_path / name
        build_shards(recipe, out, executor=executor, tokenizer=tokenizer, on_progress=watch)
        return out

    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        if not killed and progress.stage == "clean" and progress.tasks_done >= 3 and works(nodes[1]):
            kill_family(nodes[1])
            killed.append(progress.tasks_done)
            release.set()

    executor = make_executor("ray", 0, {"address": address})
    on_ray = build("ray", executor, kill_one)
    assert killed, "the stage was over before a node could be killed"
    assert executor.lost >= 1  # type: ignore[attr-defined]
    assert files_of(on_ray) == files_of(build("local", "local"))

    write_jsonl(tmp_path / "bad" / "web.jsonl", [{"text": "good"}, {"txt": "bad"}])
    messages = []
    for where in ("local", executor):
        tree = make_recipe(tmp_path / "bad").tree()
        bad = DataRecipe.model_validate({**tree, "source": {**tree["source"], "bad_records": "stop"}})
        with pytest.raises(InputError) as found:
            build_shards(bad, tmp_path / "none", executor=where, tokenizer=tokenizer, on_progress=lambda progress: None)
        messages.append(str(found.value))
        shutil.rmtree(tmp_path / "none-corpus.work", ignore_errors=True)
    assert messages[0] == messages[1]
    assert "line 2: found fields txt" in messages[0]
    print(json.dumps({"killed after tasks": killed, "lost": executor.lost}))  # type: ignore[attr-defined]
