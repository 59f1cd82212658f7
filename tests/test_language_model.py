"""Text in, text out: folders and hub names, streaming, stop strings, seeds, batches, and clear errors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mobillama
from mobillama.config import ModelConfig
from mobillama.errors import InputError
from mobillama.generation.text import ContextWarning
from mobillama.language_model import LanguageModel
from mobillama.model.initialise import build_model
from mobillama.model.weights import disk_name, save_model
from mobillama.tokenizer.tokenizer import Tokenizer, train

HUB_NAME = "MBZUAI/MobiLlama-05B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = [Path(json.__file__).read_text(encoding="utf-8"), Path(shutil.__file__).read_text(encoding="utf-8")]
PROMPTS = ["def ", "import os\n", "for name in names:\n    print(name)", "\u00e4\u4f60 "]


pytestmark = pytest.mark.usefixtures("one_thread")


def shapes(tokenizer: Tokenizer, layers: int = 3) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.25,
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 512)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = shapes(tokenizer)
    save_model(path, build_model(config, seed=4), config)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return mobillama.load(folder, device="cpu", dtype="float32")


def test_a_folder_loads_and_says_what_it_is(model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    assert (model.config.num_ffn_blocks, model.config.vocab_size) == (1, 512)
    assert model.tokenizer.digest == tokenizer.digest
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    size = sum(weight.numel() for weight in model.model.parameters())
    assert f"{size:,} parameters, float32 on cpu" in repr(model)
    assert mobillama.load(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_a_run_loads_by_the_model_in_it(folder: Path, model: LanguageModel, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    inside = mobillama.load(tmp_path / "run", device="cpu", dtype="float32")
    assert inside.generate("a", max_new_tokens=20) == model.generate("a", max_new_tokens=20)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, np.uint16)])
def test_logits_have_the_shape_of_the_ids(model: LanguageModel, form: type) -> None:
    rows = [[5, 6, 7], [8, 9, 10]]
    with torch.no_grad():
        expected = model.model(torch.tensor(rows))
    assert torch.equal(model(form(rows)), expected)
    assert torch.equal(model(form(rows[0])), model(form([rows[0]]))[0])
    assert model(form(rows[0])).shape == (3, 512)


def test_logits_of_padded_ids_heed_the_mask(model: LanguageModel) -> None:
    padded = model([[0, 0, 5, 6], [1, 2, 3, 4]], attention_mask=[[0, 0, 1, 1], [1, 1, 1, 1]])
    torch.testing.assert_close(padded[0, 2:], model([5, 6]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 2], [3]], "rows of equal length"),
        ([], "token ids are not a table"),
        ([0.5], "float64"),
        ([1, 512], "from 1 to 512.*0 to 511"),
        ([-1], "from -1"),
        ([1] * 65, "65 token ids.*context holds 64"),
    ],
)
def test_ids_that_do_not_fit_are_an_error(model: LanguageModel, ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(ids)


def test_pieces_of_a_stream_add_up_to_the_text(model: LanguageModel, tokenizer: Tokenizer) -> None:
    for seed in range(5):
        for prompt in PROMPTS:
            (whole,) = model.complete([prompt], max_new_tokens=20, seed=seed, temperature=1.5)
            pieces = list(model.generate(prompt, stream=True, max_new_tokens=20, seed=seed, temperature=1.5))
            assert (
                "".join(pieces) == whole.text == model.generate(prompt, max_new_tokens=20, seed=seed, temperature=1.5)
            )
            assert all(pieces)
            assert len(pieces) > 5
            # The answer is what prompt and answer decode to together, less the prompt: spaces between them count.
            assert prompt + whole.text == tokenizer.decode(tokenizer.encode(prompt) + list(whole.ids))


def test_a_stream_gives_its_first_piece_before_the_last_token_is_computed(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    forward = type(model.model).forward
    monkeypatch.setattr(type(model.model), "forward", lambda *a, **k: (steps.append(1), forward(*a, **k))[1])
    stream = model.generate("def ", stream=True, max_new_tokens=30, seed=1)
    assert not steps
    next(stream)
    assert len(steps) < 10


def test_same_seed_same_text(model: LanguageModel) -> None:
    texts = [model.generate(PROMPTS, seed=seed, max_new_tokens=12) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("choices", [{"temperature": 0.0}, {"seed": 5, "top_k": 50}], ids=str)
def test_texts_of_unequal_length_in_a_batch_equal_themselves_alone(
    model: LanguageModel, choices: dict[str, float]
) -> None:
    alone = [model.generate(prompt, max_new_tokens=15, **choices) for prompt in PROMPTS]  # type: ignore[call-overload]
    for size in (1, 3, 16):
        assert model.generate(PROMPTS, max_new_tokens=15, batch_size=size, **choices) == alone  # type: ignore[call-overload]
    streamed = [""] * len(PROMPTS)
    for index, piece in model.generate(PROMPTS, stream=True, max_new_tokens=15, **choices):  # type: ignore[call-overload]
        streamed[index] += piece
    assert streamed == alone


def test_a_stop_string_is_never_shown_though_it_spans_tokens(model: LanguageModel) -> None:
    checked = spanning = 0
    for seed in range(6):
        (free,) = model.complete(["def "], max_new_tokens=40, seed=seed, temperature=1.2)
        pieces = list(model.generate("def ", stream=True, max_new_tokens=40, seed=seed, temperature=1.2))
        starts = np.cumsum([0, *map(len, pieces)])
        for start in range(0, len(free.text) - 5, 3):
            stop = free.text[start : start + 4]
            (cut,) = model.complete(["def "], max_new_tokens=40, seed=seed, temperature=1.2, stop=["\0never", stop])
            stream = model.generate("def ", stream=True, max_new_tokens=40, seed=seed, temperature=1.2, stop=stop)
            assert cut.text == free.text[: free.text.index(stop)] == "".join(stream)
            assert cut.ending == "stop"
            assert len(cut.ids) <= len(free.ids)
            checked += 1
            spanning += any(start < edge < start + 4 for edge in starts)
            if checked % 8 == 0:
                break
    assert checked > 20
    assert spanning > 10


def test_a_stop_string_ends_the_work_not_only_the_text(model: LanguageModel) -> None:
    (free,) = model.complete(["def "], max_new_tokens=40, seed=1)
    stop = free.text[:3]
    (cut,) = model.complete(["def "], max_new_tokens=40, seed=1, stop=stop)
    assert cut.text == ""
    assert len(cut.ids) < 8


def test_text_ends_at_the_end_of_the_context_and_says_so(model: LanguageModel) -> None:
    prompt = "a b c " * 12
    room = 64 - len(model.tokenizer.encode(prompt))
    assert 0 < room < 60
    with pytest.warns(ContextWarning, match="context of 64 tokens"):
        (ended,) = model.complete([prompt], max_new_tokens=100, seed=2)
    assert (ended.ending, len(ended.ids)) == ("context", room)


def test_a_prompt_longer_than_the_context_is_an_error_before_anything_is_computed(model: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"prompt 1 has \d+ tokens; the model's context holds 64: shorten"):
        model.generate(["a", "word " * 200], stream=True)


def test_bos_is_put_in_front_only_if_asked_for(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    forward = type(model.model).forward

    def watched(self: torch.nn.Module, ids: torch.Tensor, **rest: object) -> torch.Tensor:
        read.append(ids[0].tolist())
        return forward(self, ids, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.model), "forward", watched)
    model.generate("ab", max_new_tokens=1)
    model.generate("ab", max_new_tokens=1, bos=True)
    model.generate("", max_new_tokens=1, bos=True)
    ids = model.tokenizer.encode("ab")
    assert read == [ids, [model.tokenizer.bos_id, *ids], [model.tokenizer.bos_id]]
    with pytest.raises(InputError, match=r"prompt 0 is empty.*bos=True"):
        model.generate("")


def test_the_end_of_text_id_ends_a_text(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (free,) = model.complete(["def "], max_new_tokens=20, seed=1)
    monkeypatch.setattr(model.tokenizer, "end_ids", frozenset((free.ids[6], 2)))
    (ended,) = model.complete(["def "], max_new_tokens=20, seed=1)
    assert (ended.ids, ended.ending) == (free.ids[: free.ids.index(free.ids[6])], "eos")


def test_an_unknown_choice_is_an_error(model: LanguageModel) -> None:
    with pytest.raises(TypeError, match="temprature"):
        model.generate("a", temprature=1.0)  # type: ignore[call-overload]


def test_a_folder_without_a_tokenizer_still_gives_logits(model: LanguageModel, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    bare = mobillama.load(tmp_path / "bare", device="cpu", dtype="float32")
    assert torch.equal(bare([5, 6]), model([5, 6]))
    with pytest.raises(InputError, match=r"neither tokenizer.json nor tokenizer.model"):
        bare.generate("a")


def test_a_tokenizer_larger_than_the_model_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = shapes(tokenizer).model_copy(update={"vocab_size": 400})
    save_model(tmp_path / "small", build_model(config, seed=1), config)
    tokenizer.save(tmp_path / "small")
    with pytest.raises(InputError, match=r"512 pieces.*400 rows"):
        mobillama.load(tmp_path / "small", device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such folder", "no folder no such folder; expected a model folder, a run, or a hub name"),
        (__file__, "is a file; expected the folder"),
    ],
)
def test_a_model_that_is_not_there_is_an_error(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mobillama.load(name)


def test_a_revision_of_a_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match=r"revision='v1' was given, but .* is a folder"):
        mobillama.load(folder, revision="v1")


# The command line


def test_the_command_line_streams_what_python_gives(model: LanguageModel, folder: Path) -> None:
    from typer.testing import CliRunner

    from mobillama.cli.commands import app

    settings = ["--max-new-tokens", "9", "--seed", "3", "--temperature", "1.2", "--top-k", "60", "--stop", "\0never"]
    arguments = ["generate", str(folder), "--device", "cpu", "--dtype", "float32", *settings]
    expected = [model.generate(prompt, max_new_tokens=9, seed=3, temperature=1.2, top_k=60) for prompt in PROMPTS[:2]]
    shown = CliRunner().invoke(app, [*arguments, PROMPTS[0]], catch_exceptions=False)
    assert shown.stdout == PROMPTS[0] + expected[0] + "\n"
    several = CliRunner().invoke(app, [*arguments, "--json", *PROMPTS[:2]], catch_exceptions=False)
    rows = json.loads(several.stdout)["rows"]
    assert [row["text"] for row in rows] == expected
    assert {row["ending"] for row in rows} == {"length"}


def test_the_command_line_says_that_the_context_is_full(folder: Path) -> None:
    from typer.testing import CliRunner

    from mobillama.cli.commands import app

    shown = CliRunner().invoke(app, ["generate", str(folder), "a b", "--max-new-tokens", "90"], catch_exceptions=False)
    assert "note: the text ended because prompt and answer fill the model's context of 64 tokens" in shown.stderr


# The hub


def write_released_form(folder: Path, tokenizer: Tokenizer) -> LanguageModel:
    """A tiny model as MobiLlama 0.5B was released: 22 FFN copies in two pickles, rotary buffers, a wrong KV count."""
    config = shapes(tokenizer, layers=22)
    model = build_model(config, seed=6)
    tensors = {disk_name(name, config): tensor for name, tensor in model.state_dict().items()}
    for layer in range(22):
        for part in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"model.layers.{layer}.mlp.{part}.weight"] = tensors[f"model.layers.0.mlp.{part}.weight"].clone()
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    assert len(tensors) == 22 * 10 + 3
    names = sorted(tensors)
    shards = {
        f"pytorch_model-0000{number + 1}-of-00002.bin": names[number * 150 : (number + 1) * 150] for number in (0, 1)
    }
    folder.mkdir(parents=True)
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    released = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 22,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "vocab_size": 512,
    }
    (folder / "config.json").write_text(json.dumps(released))
    tokenizer.save(folder)
    return LanguageModel(model, tokenizer)


@pytest.fixture(scope="module")
def hub(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    """A cache folder laid out as huggingface_hub does: blobs, snapshots of links to them, refs."""
    cache = tmp_path_factory.mktemp("hub")
    files = cache / "files"
    model = write_released_form(files, tokenizer)
    repository = cache / f"models--{HUB_NAME.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / folder).mkdir(parents=True)
    for file in files.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (repository / "snapshots" / COMMIT / file.name).symlink_to(
            os.path.relpath(blob, repository / "snapshots" / COMMIT)
        )
    (repository / "refs" / "main").write_text(COMMIT)
    return cache, model


@pytest.fixture
def offline(hub: tuple[Path, LanguageModel], monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub[0]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return hub[1]


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_name_loads_the_released_form_from_the_cache(offline: LanguageModel, revision: str | None) -> None:
    found = mobillama.load(HUB_NAME, device="cpu", dtype="float32", revision=revision)
    assert (found.config.num_ffn_blocks, found.config.num_key_value_heads, len(found.model.layers)) == (1, 4, 22)
    assert torch.equal(found([1, 2, 3]), offline([1, 2, 3]))
    assert found.generate("import ", max_new_tokens=8) == offline.generate("import ", max_new_tokens=8)


@pytest.mark.parametrize(
    ("name", "revision"), [("MBZUAI/MobiLlama-1B", None), (HUB_NAME, "ckpt_100"), (HUB_NAME, "f" * 40)]
)
def test_a_hub_name_that_is_not_cached_is_an_error(
    offline: LanguageModel, hub: tuple[Path, LanguageModel], name: str, revision: str | None
) -> None:
    with pytest.raises(InputError, match=f"{name}.* was not found.*is not in the local cache {re.escape(str(hub[0]))}"):
        mobillama.load(name, revision=revision)


def test_the_environment_variables_of_the_hub_are_heeded(hub: tuple[Path, LanguageModel]) -> None:
    cache, expected = hub
    code = f"import mobillama; m = mobillama.load({HUB_NAME!r}, device='cpu', dtype='float32'); "
    code += "print(repr(m.generate('import ', max_new_tokens=8)))"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == repr(expected.generate("import ", max_new_tokens=8))


def test_llamas_own_tokenizer_file_is_read(
    model: LanguageModel, tmp_path: Path, shared_folder: Callable[[str], Path]
) -> None:
    llama = shared_folder("MOBILLAMA_TOKENIZER")
    config = shapes(model.tokenizer).model_copy(update={"vocab_size": 32000})
    save_model(tmp_path / "llama", build_model(config, seed=1), config)
    shutil.copy(llama / "tokenizer.model", tmp_path / "llama")
    found = mobillama.load(tmp_path / "llama", device="cpu", dtype="float32")
    assert found.tokenizer.encode("Hello world") == [15043, 3186]
    (text,) = found.complete(["Hello"], max_new_tokens=12)
    assert "Hello" + text.text == found.tokenizer.decode([15043, *text.ids])
