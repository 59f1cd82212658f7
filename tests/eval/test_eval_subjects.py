"""Facts: any form of a model is evaluated by one command, and what does not fit is said before or while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.eval.rooms import cut_data, model_with_llamas_vocabulary, save_folder

from mobillama import manifest
from mobillama.errors import InputError
from mobillama.eval.data import stay_offline
from mobillama.eval.evaluation import Choices, evaluate
from mobillama.eval.results import read_results
from mobillama.eval.subject import open_subject
from mobillama.export.folder import write_llama
from mobillama.export.gguf_file import quantize_model
from mobillama.model.initialise import build_model
from mobillama.model.weights import save_model
from mobillama.tokenizer.tokenizer import Tokenizer, train

pytestmark = pytest.mark.usefixtures("one_thread")
SUITE = """
about = "One benchmark."
[[benchmarks]]
name = "piqa"
tasks = ["piqa"]
folder = "piqa"
shots = {shots}
metric = "acc_norm"
"""


@pytest.fixture(scope="module")
def tokenizer(shared_folder: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.load(shared_folder("MOBILLAMA_TOKENIZER"))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory, shared_folder: Callable[[str], Path], tokenizer: Tokenizer) -> Path:
    """A folder with one model as `model`, `model.gguf` (f32) and `llama`, a suite, and `data`."""
    stay_offline()
    folder = tmp_path_factory.mktemp("subjects")
    model = model_with_llamas_vocabulary(3)
    save_folder(folder / "model", model, tokenizer)
    quantize_model(str(folder / "model"), folder / "model.gguf", "f32")
    (folder / "llama").mkdir()
    write_llama(folder / "llama", model)
    tokenizer.save(folder / "llama")
    cut_data(shared_folder("MOBILLAMA_BENCHMARKS"), folder / "data", 8, ["piqa"])
    (folder / "suite.toml").write_text(SUITE.format(shots=0))
    (folder / "shots.toml").write_text(SUITE.format(shots=5))
    return folder


def run(room: Path, out: Path, model: str, suite: str = "suite", **how: Any) -> dict[str, Any]:
    given = {"threads": 1} if model.endswith(".gguf") else {"threads": 1, "device": "cpu", "dtype": "float32"}
    return evaluate(
        lambda: open_subject(str(room / model), **{**given, **how}),
        room / f"{suite}.toml",
        out,
        Choices(data=room / "data"),
    )


@pytest.mark.slow
def test_torch_transformers_and_the_engine_give_the_same_items(room: Path, tmp_path: Path) -> None:
    forms = {"torch": "model", "transformers": "llama", "engine": "model.gguf"}
    for backend, model in forms.items():
        run(room, tmp_path / backend, model, backend=backend)
    read = {backend: read_results(tmp_path / backend) for backend in forms}
    ours = read["torch"].items()
    for backend, tolerance in (("transformers", 1e-3), ("engine", 0.5)):  # the engine rounds what enters a product
        assert read[backend].manifest.recipe["backend"] == backend
        for key, line in read[backend].items().items():
            assert line["context"] == ours[key]["context"]
            mine = [one["log_likelihood"] for one in ours[key]["requests"]]
            assert [one["log_likelihood"] for one in line["requests"]] == pytest.approx(mine, abs=tolerance)
    assert read["engine"].manifest.made_from[0]["digest"] == manifest.sha256_file(room / "model.gguf")


@pytest.mark.slow
def test_results_of_a_file_with_an_unknown_key_say_that_it_was_ignored(room: Path, tmp_path: Path) -> None:
    data = (room / "model.gguf").read_bytes()
    (room / "odd.gguf").write_bytes(data.replace(b"mobillama.vocab_size", b"mobillama.odd_number"))
    with pytest.raises(InputError, match=r"'mobillama\.odd_number' is not known"):
        run(room, tmp_path / "odd", "odd.gguf")
    run(room, tmp_path / "odd", "odd.gguf", ignore_keys=["mobillama.odd_number"])
    run(room, tmp_path / "plain", "model.gguf")
    odd, plain = (read_results(tmp_path / name).manifest.recipe for name in ("odd", "plain"))
    assert odd["ignored_keys"] == ["mobillama.odd_number"]
    assert "ignored_keys" not in plain
    with pytest.raises(InputError, match=r"--ignore-key mobillama\.odd_number was given, but .* is no \.gguf file"):
        run(room, tmp_path / "folder", "model", ignore_keys=["mobillama.odd_number"])


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_is_cut_and_counted(room: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    from mobillama.eval.scores import table

    save_folder(tmp_path / "short", model_with_llamas_vocabulary(3, 128), tokenizer)
    result = evaluate(
        lambda: open_subject(str(tmp_path / "short"), device="cpu", dtype="float32", threads=1),
        room / "shots.toml",
        tmp_path / "out",
        Choices(data=room / "data"),
    )
    assert result["benchmarks"][0]["cut"] > 0
    assert "prompts cut to the context" in table(result)
    save_folder(tmp_path / "tiny", model_with_llamas_vocabulary(3, 4), tokenizer)
    with pytest.raises(InputError, match="context holds 4"):
        evaluate(
            lambda: open_subject(str(tmp_path / "tiny"), device="cpu", dtype="float32", threads=1),
            room / "suite.toml",
            tmp_path / "none",
            Choices(data=room / "data"),
        )


@pytest.mark.slow
def test_logits_that_are_not_numbers_end_the_evaluation(room: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = model_with_llamas_vocabulary(3)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    save_folder(tmp_path / "model", model, tokenizer)
    with pytest.raises(InputError, match="not numbers"):
        run(room, tmp_path / "out", str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_tokenizer_that_is_not_the_models_is_refused(room: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    small = build_model(model_with_llamas_vocabulary(3).config.model_copy(update={"vocab_size": 900}), 1)
    save_folder(tmp_path / "model", small, tokenizer)
    (tmp_path / "llama").mkdir()
    write_llama(tmp_path / "llama", small)
    tokenizer.save(tmp_path / "llama")
    for form, backend in (("model", "torch"), ("llama", "transformers")):
        with pytest.raises(InputError, match="32000 pieces, the model an embedding of 900 rows"):
            open_subject(str(tmp_path / form), backend=backend, device="cpu", threads=1)  # type: ignore[arg-type]
    save_model(tmp_path / "bare", model_with_llamas_vocabulary(3), model_with_llamas_vocabulary(3).config)
    with pytest.raises(InputError, match="neither tokenizer"):
        open_subject(str(tmp_path / "bare"), device="cpu", threads=1)


@pytest.mark.slow
def test_whether_bos_is_put_follows_the_tokenizer_unless_told(room: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert not open_subject(str(room / "model"), device="cpu", threads=1).bos
    save_folder(tmp_path / "model", model_with_llamas_vocabulary(3), tokenizer)
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    assert open_subject(str(tmp_path / "model"), device="cpu", threads=1).bos


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        ("model.gguf", {"backend": "torch"}, "runs in the engine"),
        ("model", {"backend": "engine"}, "runs in the engine"),
        ("model.gguf", {"dtype": "float32"}, "no effect"),
        ("none", {}, "there is no folder"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path: Path, model: str, options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        open_subject(str(tmp_path / model), **options)


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: (questions.append(str(words)), "y")[1])
    folder, ran = tmp_path / "model", tmp_path / "ran"
    model = build_model(model_with_llamas_vocabulary(3).config.model_copy(update={"vocab_size": 400}), 1)
    folder.mkdir()
    write_llama(folder, model)
    train([Path(json.__file__).read_text(encoding="utf-8")], 400).save(folder)
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    tree = json.loads((folder / part).read_text())
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    tree |= {"auto_map": own, "tokenizer_class": "Own"} | ({"model_type": "own"} if part == "config.json" else {})
    (folder / part).write_text(json.dumps(tree))
    try:
        open_subject(str(folder), backend="transformers", device="cpu", dtype="float32", threads=1)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert part != "config.json"
    assert not questions
    assert not ran.exists()
