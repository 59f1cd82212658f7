"""Hand-made runs and a hand-made quickstart folder, in the formats of docs/formats.md."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobillama import manifest

ENTROPY = 6.25


def ledger_line(kind: str, **result: Any) -> dict[str, Any]:
    return {"kind": kind, "result": result, "circumstance": {"time": 0.0, "host": "here", "previous": "0" * 64}}


def write_run(folder: Path, floor: float, steps: int = 40) -> Path:
    """A run of `steps` steps of 100 tokens whose loss falls from 8 to about `floor`."""
    folder.mkdir(parents=True)
    lines = [ledger_line("start")]
    for step in range(1, steps + 1):
        loss = floor + (8 - floor) * math.exp(-step / 10) + 0.05 * math.sin(7 * step)
        lines.append(
            ledger_line("step", step=step, rows="ab", tokens=100 * step, loss=loss, grad_norm=1 / step, lr=step * 1e-5)
        )
        if step % 10 == 0:
            lines.append(
                ledger_line("validation", step=step, loss=loss + 0.01, bits_per_byte=loss / 3, tokens=50, bytes=150)
            )
    lines.append(ledger_line("checkpoint", step=steps, weights="c0ffee", optimizer="beef"))
    lines.append(ledger_line("end"))
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"recipe": {"name": folder.name, "note": "</script><b>&"}}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "shared", floor=4.5)


def _sealed(out: Path, kind: str, counts: dict[str, Any]) -> None:
    with manifest.building(out) as partial:
        (partial / "data").write_bytes(kind.encode())
        manifest.seal(partial, out, kind, counts=counts)


@pytest.fixture
def quickstart_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "quickstart"
    folder.mkdir()
    counts = {
        "funnel": {
            "stdlib": {
                "documents_in": 70,
                "documents_out": 60,
                "bytes_out": 9_000_000,
                "dropped": {"too_short": {"documents": 7, "bytes": 70}, "duplicate": {"documents": 3, "bytes": 900}},
            },
            "reference": {"documents_in": 8, "documents_out": 8, "bytes_out": 500_000, "dropped": {}},
        },
    }
    _sealed(folder / "corpus", "corpus", counts)
    _sealed(folder / "shards", "shards", {})
    models = []
    for name, floor, stored, executed in (("shared", 4.5, 2000, 5000), ("dense", 4.8, 1990, 1990)):
        write_run(folder / name, floor)
        _sealed(folder / name / "model", "model", {})
        models.append(
            {
                "name": name,
                "title": f"{name} FFN",
                "run": name,
                "config": {
                    "num_hidden_layers": 7,
                    "num_ffn_blocks": 1,
                    "hidden_size": 192,
                    "intermediate_size": 512,
                    "num_attention_heads": 3,
                    "vocab_size": 2048,
                },
                "stored_parameters": stored,
                "executed_parameters": executed,
                "flops_per_token": 123456,
                "tokens": 4000,
                "tokens_per_second": 1234.5,
                "validation_loss": floor + 0.01,
                "bits_per_byte": floor / 3,
                "margin": ENTROPY - floor - 0.01,
            }
        )
    results = {
        "corpus": "corpus",
        "shards": "shards",
        "models": models,
        "unigram": {"entropy": ENTROPY, "bits_per_byte": 2.9, "tokens": 50, "bytes": 150},
        "wanted_margin": 1.0,
        "goals": [
            {"met": True, "text": "shared ended 1.74 nats below"},
            {"met": False, "text": "dense did <not>"},
        ],
        "notes": ["compute in float32"],
        "wall_seconds": 40.5,
        "sampling": "Temperature 0.7.",
        "samples": [{"prompt": "def ", "continuations": {"shared": "a <b> & c", "dense": "x"}}],
        "engine": {
            "isa": "scalar",
            "threads": 2,
            "new": 128,
            "rounds": 5,
            "models": {
                name: {
                    "file": f"{name}.gguf",
                    "bytes": 1000 + at,
                    "bits_per_weight": 6.25,
                    "tokens_per_second": 900.5 + at,
                    "prompt_tokens_per_second": 5000.5,
                }
                for at, name in enumerate(("shared", "dense"))
            },
        },
        "stages": [
            {"name": "read the text", "kind": "work", "seconds": 12.25},
            {"name": "load libraries", "kind": "setup", "seconds": 3.5},
            {"name": "compile", "kind": "compile", "seconds": 20.75},
        ],
        "reused": [],
        "machine": {"processor": "a CPU", "threads": 2},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run
