"""The command line of the engine: a model becomes a .gguf file, and the file answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mobillama.cli import bench
from mobillama.cli.commands import app
from mobillama.runtime.engine_model import EngineModel


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_quantised_model_answers_as_in_python(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.gguf"
    made = json.loads(call("quantize", str(folder), str(out), "--type", "q8_0,head=f16", "--json").stdout)
    assert (made["bytes"], made["types"]["head"]) == (out.stat().st_size, "f16")
    settings = {"max_new_tokens": 20, "seed": 3, "temperature": 1.2, "top_k": 60}
    with EngineModel.load(out, threads=1, kv="int8") as model:
        texts = model.generate(["def ", "import "], **settings)  # type: ignore[call-overload]
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    engine = ["--threads", "1", "--kv", "int8"]
    for lookup in ([], ["--lookup", "4"]):
        assert call("generate", str(out), "def ", *options, *engine, *lookup).stdout == f"def {texts[0]}\n"
    several = call("generate", str(out), "def ", "import ", *options, *engine, "--json")
    assert [row["text"] for row in json.loads(several.stdout)["rows"]] == texts


def test_rows_that_a_type_does_not_divide_are_named(folder: Path, tmp_path: Path) -> None:
    shown = call("quantize", str(folder), str(tmp_path / "a.gguf"), "--type", "q6_k").stdout
    assert "MB" in shown.splitlines()[0]
    assert any("blk.0.ffn_down.weight: q8_0" in line and "96" in line for line in shown.splitlines())


def test_generating_from_a_file_imports_no_torch(file: Path) -> None:
    code = (
        f"import sys; sys.argv = ['mobillama', 'generate', {str(file)!r}, 'def ', '--max-new-tokens', '3']\n"
        "import mobillama.cli.commands\n"
        "mobillama.cli.commands.app(standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def ")


def test_a_file_for_llama_cpp_is_larger_and_runs_here_too(folder: Path, tmp_path: Path) -> None:
    once, copies = tmp_path / "once.gguf", tmp_path / "copies.gguf"
    call("quantize", str(folder), str(once), "--type", "f16")
    shown = json.loads(
        call("export", str(folder), str(copies), "--format", "llama.cpp", "--type", "f16", "--json").stdout
    )
    assert (shown["format"], shown["architecture"]) == ("llama.cpp", "llama")
    assert copies.stat().st_size - once.stat().st_size > 2 * 3 * 64 * 96 * 2 * 0.9  # two more FFNs
    texts = []
    for path in (once, copies):
        with EngineModel.load(path, threads=1) as model:
            texts.append(model.generate("def ", max_new_tokens=20, temperature=0))
    assert texts[0] == texts[1]


def test_lookup_is_refused_where_there_is_no_engine(folder: Path) -> None:
    from mobillama.errors import InputError

    with pytest.raises(InputError, match=r"--lookup 3 was given, but .* is no .gguf file"):
        call("generate", str(folder), "a", "--lookup", "3")


def result(**more: Any) -> dict[str, Any]:
    rows = [
        {"name": "fast", "ours": 90.0, "unit": "tokens/s", "peer": 30.0, "peer_name": "x", "ratio": 3.0, "pairs": [1]},
        {"name": "slow", "ours": 0.9, "unit": "s", "peer": None, "peer_name": "", "ratio": None, "pairs": []},
    ]
    found = {"rows": rows, "targets": {"fast": (2.5, 3.5)}, "limits": {"slow": (0.6, 0.3)}, "failed": {}}
    found["notes"] = ["decode-0.5b: 3 thrown away"]
    return {**found, "machine": {"cpu": "a CPU"}, "threads": 2, "saved": "x.json", **more}


def test_a_bench_says_what_was_reached_and_what_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mobillama.bench import decode

    asked = []

    def measure(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return result() if len(asked) == 1 else result(failed={"memory": "too busy"})

    monkeypatch.setattr(decode, "measure", measure)
    chosen = ["--rows", "a, b", "--rounds", "7", "--placement", "far", "--folder", str(tmp_path)]
    shown = call("bench", "decode", *chosen)
    assert asked == [("llama.cpp", ("a", "b"), 7, tmp_path, "far")]
    fast, slow, *rest = shown.stdout.splitlines()
    assert "ratio 3.000" in fast and "must 2.50, goal 3.50: reached" in fast
    assert "at most 0.6, goal 0.3: missed" in slow
    assert "cpu: a CPU" in rest and "decode-0.5b: 3 thrown away" in rest
    assert shown.exit_code == 0
    failed = call("bench", "decode")
    assert failed.exit_code == 1
    assert "memory gives no figure: too busy" in failed.stdout


@pytest.mark.parametrize(
    ("found", "words"), [(3.5, "goal reached"), (2.5, "reached"), (2.4, "missed"), (None, "nothing to compare with")]
)
def test_a_verdict_is_by_the_limits(found: float | None, words: str) -> None:
    assert bench.verdict(found, 2.5, 3.5) == words
