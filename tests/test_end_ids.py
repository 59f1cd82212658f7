"""A generation stops at any id that its model's files name, whatever form it is in, and every form keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.native.programs import output

import mobillama
from mobillama.cli.model import written
from mobillama.config import ModelConfig
from mobillama.errors import DamagedFileError, InputError
from mobillama.export.folder import export_model
from mobillama.export.gguf_file import quantize_model
from mobillama.model.end_ids import GENERATION_FILE, read_end_ids
from mobillama.model.initialise import build_model
from mobillama.model.weights import save_model
from mobillama.runtime.engine_model import EngineModel
from mobillama.tokenizer.gguf_keys import read_keys
from mobillama.tokenizer.gguf_vocabulary import MORE_ENDS
from mobillama.tokenizer.tokenizer import Tokenizer, train

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "import "
MOST = 24


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LLaMA folder with a tokenizer, whose only end is `</s>`."""
    folder = tmp_path_factory.mktemp("ends")
    tokenizer = train([Path(json.__file__).read_text(encoding="utf-8")], 400)
    config = ModelConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    save_model(folder / "model", build_model(config, seed=5), config)
    tokenizer.save(folder / "model")
    export_model(folder / "model", folder / "plain", "llama")
    return folder / "plain"


@pytest.fixture(scope="module")
def free(plain: Path) -> list[int]:
    """What the model goes on with where nothing ends it: greedy, MOST ids."""
    (answer,) = mobillama.load(plain, device="cpu", dtype="float32").complete(
        [PROMPT], max_new_tokens=MOST, temperature=0.0
    )
    assert answer.ending == "length"
    return list(answer.ids)


@pytest.fixture
def folder(plain: Path, free: list[int], tmp_path: Path) -> Path:
    """The model with four ends: `</s>`, two in config.json, another in generation_config.json, none in both."""
    path = tmp_path / "model"
    path.mkdir()
    for file in plain.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    late, later, latest = ids_at(free)
    give(path / "config.json", [2, latest, later])
    (path / GENERATION_FILE).write_text(json.dumps({"eos_token_id": [2, late]}))
    return path


def ids_at(free: list[int]) -> tuple[int, int, int]:
    """Three ids of the free text, in the order in which they come first."""
    first = sorted({id_: free.index(id_) for id_ in free}.items(), key=lambda pair: pair[1])
    return first[2][0], first[3][0], first[4][0]


def give(path: Path, ends: Any) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "eos_token_id": ends}))


def cut(free: list[int], ends: set[int]) -> list[int]:
    return free[: min(free.index(id_) for id_ in ends if id_ in free)]


def torch_ids(path: Path) -> tuple[list[int], str]:
    (answer,) = mobillama.load(path, device="cpu", dtype="float32").complete(
        [PROMPT], max_new_tokens=MOST, temperature=0.0
    )
    return list(answer.ids), answer.ending


def test_each_id_of_each_list_ends_a_text(folder: Path, free: list[int]) -> None:
    late, later, latest = ids_at(free)
    assert read_end_ids(folder, 400) == (2, latest, later, late)
    assert torch_ids(folder) == (cut(free, {late}), "eos")
    (folder / GENERATION_FILE).write_text(json.dumps({"eos_token_id": None}))
    assert torch_ids(folder) == (cut(free, {later, latest}), "eos")
    give(folder / "config.json", latest)
    assert torch_ids(folder) == (cut(free, {latest}), "eos")
    (folder / GENERATION_FILE).unlink()
    assert torch_ids(folder) == (cut(free, {latest}), "eos")


def test_the_lists_end_a_text_as_they_do_in_transformers(folder: Path, free: list[int]) -> None:
    from transformers import LlamaForCausalLM

    late, _, _ = ids_at(free)
    prompt = Tokenizer.load(folder).encode(PROMPT)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = theirs.generate(torch.tensor([prompt]), max_new_tokens=MOST, do_sample=False)[0, len(prompt) :].tolist()
    assert given == [*torch_ids(folder)[0], late]


@pytest.mark.parametrize("form", ["mobillama", "llama"])
@pytest.mark.parametrize("lookup", [0, 5])
def test_the_engine_and_the_program_stop_at_any_of_them(
    folder: Path, free: list[int], tmp_path: Path, form: Any, lookup: int
) -> None:
    for end in ids_at(free):  # the last first, so that each is the one that ends the text
        (folder / GENERATION_FILE).write_text(json.dumps({"eos_token_id": [2, 3, 5, end]}))
        give(folder / "config.json", 2)
        file = tmp_path / f"{end}.gguf"
        quantize_model(folder, file, "f32", architecture=form)
        with EngineModel.load(file, threads=1) as model:
            assert model.end_ids == {2, 3, 5, end}
            (answer,) = model.complete([PROMPT], max_new_tokens=MOST, temperature=0.0, lookup=lookup)
        assert (list(answer.ids), answer.ending) == (cut(free, {end}), "eos")
        told = json.loads(output(file, "-p", PROMPT, "-n", MOST, "--temperature", 0, "--threads", 1, "--json"))
        assert (told["ids"], told["ending"]) == (list(answer.ids), "eos")


def test_an_end_without_a_piece_is_left_out_and_said(folder: Path, tmp_path: Path) -> None:
    wide = ModelConfig(vocab_size=410, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    save_model(tmp_path / "wide", build_model(wide, seed=1), wide, end_ids=(2, 405, 9))
    Tokenizer.load(folder).save(tmp_path / "wide")
    said = quantize_model(tmp_path / "wide", tmp_path / "wide.gguf", "f32")
    assert said["end_ids_left_out"] == [405]
    assert "left out: the end ids 405" in written(said)
    assert "2 (tokenizer.ggml.eos_token_id), 9 (tokenizer.ggml.eot_token_id)" in written(said)
    with EngineModel.load(tmp_path / "wide.gguf") as model:
        assert model.end_ids == {2, 9}


@pytest.mark.parametrize("backend", ["torch", "transformers", "engine"])
def test_a_task_that_generates_stops_at_any_of_them(
    folder: Path, free: list[int], tmp_path: Path, backend: Any
) -> None:
    from lm_eval.api.instance import Instance

    from mobillama.eval.adapter import Adapter
    from mobillama.eval.subject import open_subject

    if backend == "engine":
        quantize_model(folder, tmp_path / "model.gguf", "f32")
        subject = open_subject(str(tmp_path / "model.gguf"), threads=1)
    else:
        subject = open_subject(str(folder), backend=backend, device="cpu", dtype="float32", threads=1)
    assert subject.end_ids == {2, *ids_at(free)}
    adapter = Adapter(subject.scorer, subject.encoder, bos=False, end_ids=subject.end_ids)
    request = Instance("generate_until", {}, (PROMPT, {"until": [], "max_gen_toks": MOST}), 0)
    assert adapter.generate_until([request]) == [Tokenizer.load(folder).decode(torch_ids(folder)[0])]


@pytest.mark.parametrize("form", ["hf", "llama"])
def test_an_exported_folder_keeps_the_ends_and_the_generation_settings(folder: Path, tmp_path: Path, form: str) -> None:
    export_model(folder, tmp_path / form, form)
    assert read_end_ids(tmp_path / form, 400) == read_end_ids(folder, 400)
    assert (tmp_path / form / GENERATION_FILE).read_bytes() == (folder / GENERATION_FILE).read_bytes()
    assert torch_ids(tmp_path / form) == torch_ids(folder)


@pytest.mark.parametrize("form", ["mobillama", "llama"])
def test_a_gguf_file_holds_eos_eot_and_the_rest_in_our_key(
    folder: Path, free: list[int], tmp_path: Path, form: Any
) -> None:
    late, later, latest = ids_at(free)
    said = quantize_model(folder, tmp_path / "model.gguf", "f32", architecture=form)
    keys = read_keys(tmp_path / "model.gguf")
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert keys["tokenizer.ggml.eot_token_id"] == latest
    assert keys[MORE_ENDS] == [later, late]
    assert said["end_ids"] == {
        "tokenizer.ggml.eos_token_id": [2],
        "tokenizer.ggml.eot_token_id": [latest],
        MORE_ENDS: [later, late],
    }


def test_a_file_of_one_end_has_no_further_keys(plain: Path, tmp_path: Path) -> None:
    said = quantize_model(plain, tmp_path / "model.gguf", "f32")
    assert said["end_ids"] == {"tokenizer.ggml.eos_token_id": [2]}
    assert not {"tokenizer.ggml.eot_token_id", MORE_ENDS} & read_keys(tmp_path / "model.gguf").keys()


@pytest.mark.parametrize("file", ["config.json", GENERATION_FILE])
@pytest.mark.parametrize("wrong", [400, -1, [2, 400], "2", ["</s>"], True, 2.0, {"id": 2}, [[2]]], ids=str)
def test_what_is_no_id_of_the_model_is_refused(folder: Path, tmp_path: Path, file: str, wrong: Any) -> None:
    give(folder / file, wrong)
    for use in (
        lambda: mobillama.load(folder, device="cpu"),
        lambda: quantize_model(folder, tmp_path / "model.gguf", "f32"),
        lambda: export_model(folder, tmp_path / "out", "hf"),
    ):
        with pytest.raises(InputError, match=rf"{file}: eos_token_id=.*expected an id from 0 to 399") as error:
            use()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "model.gguf").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "7", "[" * 200_000], ids=["cut", "list", "number", "deep"])
def test_a_damaged_generation_config_is_said(folder: Path, text: str) -> None:
    (folder / GENERATION_FILE).write_text(text)
    with pytest.raises(DamagedFileError, match=GENERATION_FILE):
        mobillama.load(folder, device="cpu")
