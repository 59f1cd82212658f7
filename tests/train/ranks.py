"""Several processes that train one tiny run together, as torchrun starts them, and ways to disturb them."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 240.0  # seconds for processes to start and do something


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def start(size: int, shards: Path, run: Path, log: Path, disturb: dict | None = None, **train) -> list:
    """`size` processes without an agent above them; each writes what it says to `log`. disturb: see `main`."""
    port = free_port()
    processes = []
    for rank in range(size):
        told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(_start([sys.executable], shards, run, log, disturb, train, told))
    return processes


def start_agent(options: list[str], shards: Path, run: Path, log: Path, disturb: dict | None = None, **train):
    """torchrun with some options, which starts the processes and starts them again when one dies."""
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    return _start(command, shards, run, log, disturb, train, {})


def _start(command: list[str], shards: Path, run: Path, log: Path, disturb: dict | None, train: dict, told: dict):
    given = json.dumps({"train": train, "disturb": disturb or {}})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {key: str(value) for key, value in told.items()}
    with log.open("ab") as sink:
        return subprocess.Popen(
            [*command, __file__, str(shards), str(run), given], stdout=sink, stderr=sink, env=environment
        )


def wait(processes: list, log: Path) -> list[int]:
    """The exit codes of all; the test fails if one hangs."""
    end = time.monotonic() + PATIENCE
    try:
        return [process.wait(max(1.0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"a process hangs; the log ends with {log.read_text()[-3000:]}") from None
    finally:
        for process in processes:
            process.kill()


def train_ranks(size: int, shards: Path, run: Path, log: Path, disturb: dict | None = None, **train) -> list[int]:
    """The exit codes of `size` ranks."""
    return wait(start(size, shards, run, log, disturb, **train), log)


def pids(run: Path) -> dict[int, int]:
    """Rank -> process, of those that train now or did last."""
    return {int(path.stem): int(path.read_text() or 0) for path in run.with_suffix(".pids").glob("*.pid")}


def kill(pid: int) -> None:
    """SIGKILL, if the process is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int:
    """The process that started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(ready, process) -> None:
    """Until `ready()` is true; the test fails if the process ends before, or nothing happens."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None and time.monotonic() < end, "it ended, or nothing happened"
        time.sleep(0.01)


@contextlib.contextmanager
def disturbed(what: dict) -> Iterator[None]:
    """At the update of step `step` on rank `rank`: `how` = "raise" an error, or "kill" the process, "term" it."""
    from mobillama.train.sharded_step import ShardedStep

    update, taken = ShardedStep.update, []

    def disturb(trainer, lr, most):
        taken.append(lr)
        if what and trainer.world.rank == what["rank"] and len(taken) == what["step"]:
            if what["how"] == "raise":
                raise ValueError("planted")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[what["how"]])
        return update(trainer, lr, most)

    ShardedStep.update = disturb
    try:
        yield
    finally:
        ShardedStep.update = update


def main() -> None:
    """Train the tiny recipe. disturb: `pace` (seconds that each step takes longer), or as for `disturbed`."""
    import tiny

    from mobillama.train.loop import train

    shards, run, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    folder = run.with_suffix(".pids")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    disturb = given["disturb"]
    pace = disturb.pop("pace", 0.0)
    with disturbed(disturb):
        done = train(tiny.recipe(**given["train"]), shards, run, on_progress=lambda _: time.sleep(pace))
    print(done)
    sys.exit(0 if done["finished"] else 130)


def dice() -> random.Random:
    """Random choices; the seed is printed."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


if __name__ == "__main__":
    main()
