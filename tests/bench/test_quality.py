"""`bench quality`: perplexities equal torch's, divergences equal another formula's, and every part has its rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from mobillama import manifest
from mobillama.bench import quality
from mobillama.bench.quality import cases, mean_divergence, measure, row
from mobillama.cli.commands import app
from mobillama.config import ModelConfig
from mobillama.data.shards import write_shards
from mobillama.errors import InputError
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer
from mobillama.model.weights import save_model
from mobillama.tokenizer.tokenizer import Tokenizer, train

pytestmark = pytest.mark.usefixtures("one_thread")

KEYS = {"name", "ours", "peer", "peer_name", "ratio", "unit", "pairs", "spread"}
LENGTH, CONTEXT = 40, 32


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        name="tiny",
        vocab_size=420,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_ffn_blocks=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )
    return build_model(config, 3).eval()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    print("seed 7")
    return np.random.default_rng(7).integers(0, 400, (10, LENGTH + 1))


@pytest.fixture(scope="module")
def folder(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "model"
    partial = manifest.partial_path(path)
    save_model(partial, model, model.config)
    train([Path(json.__file__).read_text(encoding="utf-8")], 400).save(partial)
    manifest.seal(partial, path, "model")
    return path


@pytest.fixture(scope="module")
def shards(folder: Path, ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "shards"
    digest = Tokenizer.load(folder).digest
    write_shards(path, ids[:4], ids[4:], vocab_size=420, tokenizer_digest=digest)
    return path


def test_perplexity_is_torchs_on_the_same_rows_cut_to_the_context(
    model: Transformer, folder: Path, shards: Path, ids: np.ndarray, tmp_path: Path
) -> None:
    found = measure(folder, shards, ["f32", "q4_0"], 3, folder=tmp_path, threads=1)
    assert [each["name"] for each in found["rows"]] == ["quality-f32", "quality-q4_0"]
    chosen = torch.from_numpy(ids[4:][[0, 2, 4]])  # three of the six held-out rows
    with torch.no_grad():
        logits = model(chosen[:, :CONTEXT])
    nats = F.cross_entropy(logits.flatten(0, 1), chosen[:, 1 : CONTEXT + 1].flatten(), reduction="none")
    by_row = nats.view(3, CONTEXT).mean(1)
    exact, rounded = found["rows"]
    assert exact["ours"] == pytest.approx(float(by_row.mean().exp()), rel=1e-3)
    assert [pair[0] for pair in exact["pairs"]] == pytest.approx(by_row.exp().tolist(), rel=1e-3)
    # The file that is the reference differs from it in nothing; a rounded one does, and is smaller.
    assert (exact["ratio"], exact["kl"], exact["more_nats"]) == (1.0, 0.0, 0.0)
    assert rounded["kl"] > 1e-4 and rounded["bytes"] < exact["bytes"] and rounded["bits_per_weight"] < 5
    assert rounded["peer"] == exact["ours"] and rounded["ratio"] == pytest.approx(exact["ours"] / rounded["ours"])
    assert found["data"]["tokens"] == 3 * CONTEXT and found["kl_positions"] == 3 * CONTEXT
    assert json.loads(Path(found["saved"]).read_text()) == found
    assert not list(tmp_path.glob("quality-*/"))  # the files themselves are gone


def test_all_parts_are_measured_and_stand_in_the_table(folder: Path, shards: Path, tmp_path: Path) -> None:
    said: list[float] = []
    found = measure(folder, shards, rows=2, folder=tmp_path, threads=1, progress=said.append)
    names = [each["name"].removeprefix("quality-") for each in found["rows"]]
    assert {"bf16", "mixed", "f32,head=q4_0", "q4_0,ffn=q8_0", "q4_0, calibrated", "q4_0, int8 activations"} <= {*names}
    assert len(set(names)) == len(names) and set.intersection(*(set(each) for each in found["rows"])) >= KEYS
    by_name = dict(zip(names, found["rows"], strict=True))
    assert by_name["f16"]["kl"] < by_name["q8_0"]["kl"] < by_name["q5_0"]["kl"] < by_name["q4_0"]["kl"]
    for kind in ("attention", "ffn", "embedding", "head"):
        assert 0 < by_name[f"f32,{kind}=q4_0"]["kl"] < by_name["q4_0"]["kl"]
    assert by_name["q4_0, calibrated"]["kl"] != by_name["q4_0"]["kl"]
    # Rounded activations, keys and values differ from unrounded ones, each beside the same file.
    for change in ("int8 activations", "f16 KV", "int8 KV"):
        assert 0 < by_name[f"q8_0, {change}"]["kl"] < 0.1, change
    assert by_name["q8_0, f16 KV"]["kl"] < by_name["q8_0, int8 KV"]["kl"]
    assert all(f"| {name} |" in found["table"] for name in names) and found["table"].count("**") == 10
    assert said[0] == 0 and said[-1] == 1 and said == sorted(said)
    assert "blk.0.ffn_down.weight" in found["fallbacks"]["q6_k"] and "q8_0, because" in quality.words(found)


def test_divergence_is_the_mean_of_the_formula_in_torch(tmp_path: Path) -> None:
    print("seed 1")
    numbers = np.random.default_rng(1)
    one, two = (numbers.normal(0, 4, (3, 5, 17)).astype(np.float32) for _ in range(2))
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "two.npy", two)
    p, q = (torch.from_numpy(each).double().flatten(0, 1).log_softmax(-1) for each in (one, two))
    expected = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
    assert mean_divergence(tmp_path / "one.npy", tmp_path / "two.npy") == pytest.approx(expected, rel=1e-9)
    assert mean_divergence(tmp_path / "one.npy", tmp_path / "one.npy") == 0


def test_a_row_says_how_sure_its_difference_is(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((2, 1, 3), np.float32))
    ours = quality.Found(np.log([4.0, 8.0]), tmp_path / "logits.npy")
    peer = quality.Found(np.log([2.0, 2.0]), tmp_path / "logits.npy")
    found = row("q4_0", ours, peer, "f32")
    assert set(found) >= KEYS
    assert found["ours"] == pytest.approx(np.sqrt(32)) and found["peer"] == pytest.approx(2.0)
    assert found["ratio"] == pytest.approx(2 / np.sqrt(32)) and found["spread"] == pytest.approx([4.0, 8.0])
    assert found["more_nats"] == pytest.approx(1.5 * np.log(2))
    assert found["more_nats_error"] == pytest.approx(np.log(2) / 2)  # |ln 4 - ln 2| / sqrt(2) / sqrt(2)
    alone = row("q4_0", quality.Found(ours.nats[:1], ours.logits), quality.Found(peer.nats[:1], peer.logits), "f32")
    assert alone["more_nats_error"] is None  # one row of text has no spread


def test_a_tied_model_has_no_embedding_of_its_own_to_round() -> None:
    names = [case.types for case in cases((), tied=True)]
    assert names and not [name for name in names if "embedding" in name]
    assert [case.types for case in cases(("q4_0", "mixed,head=q8_0"), tied=True)] == ["q4_0", "mixed,head=q8_0"]


def test_what_cannot_be_measured_is_said_first(folder: Path, shards: Path, ids: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="q3_0"):
        measure(folder, shards, ["q3_0"], folder=tmp_path)
    with pytest.raises(InputError, match=r"no folder mobillama-0\.5b"):
        measure("mobillama-0.5b", shards, folder=tmp_path)  # random weights have no quality
    other = tmp_path / "other"
    write_shards(other, ids[:4], ids[4:], vocab_size=420, tokenizer_digest="another")
    with pytest.raises(InputError, match="another"):
        measure(folder, other, folder=tmp_path)
    unheld = tmp_path / "unheld"
    digest = Tokenizer.load(folder).digest
    write_shards(unheld, ids, ids[:0], vocab_size=420, tokenizer_digest=digest)
    with pytest.raises(InputError, match="no held-out rows"):
        measure(folder, unheld, folder=tmp_path)


def test_the_command_prints_the_table_and_one_json_object(folder: Path, shards: Path, tmp_path: Path) -> None:
    common = ["bench", "quality", str(folder), "--data", str(shards), "--folder", str(tmp_path), "--rows", "2"]
    said = CliRunner().invoke(app, [*common, "--type", "q4_0", "--type", "mixed"])
    assert said.exit_code == 0, said.output
    assert "| q4_0 |" in said.output and "mixed: attention=" in said.output
    as_json = CliRunner().invoke(app, [*common, "--type", "q4_0", "--json"])
    assert [each["unit"] for each in json.loads(as_json.stdout)["rows"]] == ["perplexity"]


def test_quantize_calibrates_on_shards(folder: Path, shards: Path, tmp_path: Path) -> None:
    for name, options in {"plain": [], "weighed": ["--calibrate", str(shards)]}.items():
        out = str(tmp_path / f"{name}.gguf")
        said = CliRunner().invoke(app, ["quantize", str(folder), out, "--type", "q4_0", *options])
        assert said.exit_code == 0, said.output
    plain, weighed = (tmp_path / f"{name}.gguf" for name in ("plain", "weighed"))
    assert plain.read_bytes() != weighed.read_bytes() and b"mobillama.importance_digest" in weighed.read_bytes()
    verify = ["verify", str(weighed), "--model", str(folder), "--importance"]
    said = CliRunner().invoke(app, [*verify, str(shards)])
    assert said.exit_code == 0 and "the whole file is equal, byte for byte" in said.output, said.output
