"""The Slurm script: what it asks a cluster for, and that it trains, with stand-ins for the cluster's commands."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from mobillama.config import recipes_folder

SCRIPT = recipes_folder() / "slurm" / "pretrain-20x8.sh"

# Stand-ins: sbatch sets what Slurm sets and runs the script; srun starts one copy of a command for each node.
SBATCH = """#!/bin/bash
export SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST=node[1-2] SLURM_GPUS_ON_NODE=1 SLURM_JOB_ID={job}
exec bash "$@"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> {folder}/srun-options; shift; done
started=()
for node in 0 1; do
    SLURM_NODEID=$node "$@" & started+=($!)
done
status=0
for each in "${{started[@]}}"; do wait "$each" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
[ "$*" == "show hostnames node[1-2]" ] && printf 'localhost\\nlocalhost\\n'
"""


def submit(folder: Path, *arguments: str, job: int = 0) -> subprocess.CompletedProcess[str]:
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text.format(job=job, folder=folder))
        (commands / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable}
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [str(commands / "sbatch"), str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def test_it_asks_for_the_papers_machines_and_its_limit_of_three_days() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("20", "8", "1")
    assert asked["time"] == "3-00:00:00"
    assert asked["array"].endswith("%1")  # one job at a time
    assert "no-kill" in asked and asked["signal"] == "TERM@600"


def test_without_its_three_arguments_it_says_how_it_is_used(tmp_path: Path) -> None:
    done = submit(tmp_path, "recipe.toml")
    assert done.returncode == 2
    assert "RECIPE SHARDS RUN" in done.stderr


def write_recipe(folder: Path) -> Path:
    recipe = tiny.recipe(name="slurm").tree()
    lines = []
    for table in ("model", "train"):
        lines.append(f"[{table}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in recipe[table].items()]
    path = folder / "slurm.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_two_nodes_train_a_run_and_the_next_job_finds_it_finished(tmp_path: Path, shards: Path) -> None:
    recipe, run, job = write_recipe(tmp_path), tmp_path / "run", random.randrange(1000)
    print(f"port {29500 + job}")
    done = submit(tmp_path, str(recipe), str(shards), str(run), "--set", "train.steps=8", job=job)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [line["result"]["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))
    assert lines[0]["circumstance"]["environment"]["world_size"] == 2
    assert (run / "model" / "model.safetensors").is_file()
    before = (run / "ledger.jsonl").read_bytes()
    again = submit(tmp_path, str(recipe), str(shards), str(run), "--set", "train.steps=8", job=job + 1)
    assert again.returncode == 0, again.stderr
    assert (run / "ledger.jsonl").read_bytes() == before
    assert set((tmp_path / "srun-options").read_text().split()) == {"--no-kill", "--kill-on-bad-exit=0"}
