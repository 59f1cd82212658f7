"""The quickstart end to end with tiny settings: one page, parts reused, interruptions gone on with, goals judged."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mobillama
from mobillama import manifest, quickstart
from mobillama.config import DataRecipe, TrainRecipe, resolve
from mobillama.data.shards import write_shards
from mobillama.errors import InputError, TrainingError
from mobillama.model.cost import cost
from mobillama.report.run import read_run

STEPS = 4


def tiny_recipe(name: str, layers: int, ffn_blocks: int, **train: Any) -> TrainRecipe:
    model = {
        "name": name,
        "vocab_size": 512,
        "hidden_size": 24,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_ffn_blocks": ffn_blocks,
        "max_position_embeddings": 128,
    }
    settings = {
        "steps": STEPS,
        "rows_per_step": 4,
        "micro_batch_rows": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "validate_every": 4,
        "checkpoint_every": 2,
        "compile": False,
        "threads": 1,
        **train,
    }
    return resolve(TrainRecipe, {"name": name, "model": model, "train": settings}, name)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain() -> quickstart.Chain:
    data = {
        "source": {"kind": "folder", "root": str(Path(mobillama.__file__).parent / "data")},
        "tokenizer": {"train_vocab_size": 512},
        "pack": {"seq_len": 32, "chunks": 2, "validation_share": 0.1},
    }
    return quickstart.Chain(
        resolve(DataRecipe, data, "tiny"),
        tiny_recipe("shared", 4, 1),
        tiny_recipe("dense", 2, 0),
        min_bytes=10_000,
        min_tokens=STEPS * 4 * 32,
        wanted_margin=-9.0,
        training_seconds=1e9,
    )


@pytest.fixture(scope="module")
def built(chain: quickstart.Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return out, quickstart.run(out, chain)


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): manifest.sha256_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("results.json", "index.html")
    }


def test_page_exists_and_tells_the_numbers_of_the_ledgers(built: tuple[Path, dict[str, Any]]) -> None:
    out, result = built
    page = Path(result["page"])
    text = page.read_text(encoding="utf-8")
    assert page.is_absolute() and page.parent == out.resolve()
    for model in result["models"]:
        run = read_run(out / model["name"])
        assert model["validation_loss"] == run.validations[-1]["loss"]
        assert model["tokens"] == run.steps[-1]["tokens"] == STEPS * 4 * 32
        assert f'data-value="{model["validation_loss"]}"' in text
        assert f'data-value="{model["margin"]}"' in text
    assert all(goal["met"] for goal in result["goals"])


def test_models_store_as_many_parameters_and_read_the_same_rows(built: tuple[Path, dict[str, Any]]) -> None:
    shared, dense = (read_run(built[0] / name) for name in ("shared", "dense"))
    assert [step["rows"] for step in shared.steps] == [step["rows"] for step in dense.steps]
    sizes = [model["stored_parameters"] for model in built[1]["models"]]
    assert max(sizes) / min(sizes) < 1.01
    assert built[1]["models"][0]["executed_parameters"] > built[1]["models"][1]["executed_parameters"]


def test_every_stage_has_a_time_and_setup_and_compile_stand_apart(built: tuple[Path, dict[str, Any]]) -> None:
    stages = built[1]["stages"]
    assert {stage["kind"] for stage in stages} == {"setup", "compile", "work"}
    assert all(stage["seconds"] >= 0 for stage in stages)
    assert sum(stage["seconds"] for stage in stages) <= built[1]["wall_seconds"] + 0.1


def test_samples_are_of_both_models(built: tuple[Path, dict[str, Any]]) -> None:
    samples = built[1]["samples"]
    assert [sample["prompt"] for sample in samples] == list(quickstart.PROMPTS)
    assert all(set(sample["continuations"]) == {"shared", "dense"} for sample in samples)
    assert any(sample["continuations"]["shared"] for sample in samples)


def test_files_for_the_engine_answer_and_their_speed_is_on_the_page(built: tuple[Path, dict[str, Any]]) -> None:
    out, result = built
    text = (out / "index.html").read_text(encoding="utf-8")
    assert set(result["engine"]["models"]) == {"shared", "dense"}
    for name, seen in result["engine"]["models"].items():
        assert seen["bytes"] == (out / f"{name}.gguf").stat().st_size
        assert f'data-value="{seen["tokens_per_second"]}"' in text
        with mobillama.load(out / seen["file"], threads=1) as model:
            assert model.generate("def ", max_new_tokens=4, temperature=0, bos=False)
    assert any("engine" in stage["name"] for stage in result["stages"])


def test_a_model_that_changed_gets_a_new_file(
    chain: quickstart.Chain, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("shared", "dense"):
        shutil.copytree(built[0] / name / "model", tmp_path / name / "model")
        shutil.copy(built[0] / f"{name}.gguf", tmp_path)
    kept = json.loads((built[0] / "engine.json").read_text(encoding="utf-8"))
    (tmp_path / "engine.json").write_text(json.dumps({**kept, "isa": "kept"}))
    assert quickstart.try_engine(tmp_path, ["shared", "dense"])["isa"] == "kept"
    kept["digests"]["dense"] = "another"
    (tmp_path / "engine.json").write_text(json.dumps({**kept, "isa": "kept"}))
    (tmp_path / "dense.gguf").write_bytes(b"of another model")
    assert quickstart.try_engine(tmp_path, ["shared", "dense"])["isa"] != "kept"
    assert (tmp_path / "dense.gguf").stat().st_size == (built[0] / "dense.gguf").stat().st_size


def test_second_run_reuses_everything(chain: quickstart.Chain, built: tuple[Path, dict[str, Any]]) -> None:
    out, first = built
    before, started = digests(out), time.monotonic()
    again = quickstart.run(out, chain)
    assert time.monotonic() - started < 5
    assert digests(out) == before
    assert again["reused"] == ["shards", "shared", "dense"]
    assert again["wall_seconds"] == first["wall_seconds"], "of the run that built it"
    assert [model["validation_loss"] for model in again["models"]] == [
        model["validation_loss"] for model in first["models"]
    ]


def test_interrupted_quickstart_goes_on_to_the_same_weights(
    chain: quickstart.Chain,
    built: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = built[0]
    out = tmp_path / "out"
    for name in ("shards", "shards-corpus"):
        shutil.copytree(whole / name, out / name)
    train_model = quickstart.train_model

    def stop_at_dense(recipe: TrainRecipe, out: Path, name: str) -> None:
        if name == "dense":
            raise KeyboardInterrupt
        train_model(recipe, out, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quickstart, "train_model", stop_at_dense)
        quickstart.run(out, chain)
    shared = manifest.read(out / "shared" / "model").circumstance
    result = quickstart.run(out, chain)
    assert result["reused"] == ["shards", "shared"]
    assert manifest.read(out / "shared" / "model").circumstance == shared, "not trained again"
    for name in ("shared/model", "dense/model"):
        assert manifest.read(out / name).digest() == manifest.read(whole / name).digest()


def test_missed_goals_are_an_error_that_names_the_page(
    chain: quickstart.Chain, built: tuple[Path, dict[str, Any]]
) -> None:
    strict = replace(chain, wanted_margin=5.0, min_bytes=10**9)
    with pytest.raises(TrainingError, match=r"did not reach its goals.*5\).*index\.html") as error:
        quickstart.run(built[0], strict)
    assert "bytes of text" in str(error.value)
    assert "✗" in (built[0] / "index.html").read_text(encoding="utf-8")


def test_other_recipe_in_the_same_folder_is_an_error(
    chain: quickstart.Chain, built: tuple[Path, dict[str, Any]]
) -> None:
    other = chain.data.model_copy(update={"seed": 7})
    with pytest.raises(InputError, match="another recipe"):
        quickstart.run(built[0], replace(chain, data=other))


def test_float32_takes_fewer_steps_and_says_so(
    chain: quickstart.Chain, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "shards").symlink_to(built[0] / "shards")
    long = replace(
        chain,
        shared=tiny_recipe("shared", 4, 1, steps=9, dtype="float32"),
        dense=tiny_recipe("dense", 2, 0, steps=9, dtype="float32"),
    )
    plan = quickstart.decide_plan(long, tmp_path, 0.0)
    assert plan["steps"] == STEPS
    assert "float32" in plan["notes"][0] and f"{STEPS} instead of 9" in plan["notes"][0]


@pytest.mark.parametrize("seconds, steps", [(0.01, 9), (1.0, 6), (100.0, STEPS)])
def test_a_slow_machine_takes_fewer_steps_but_enough(
    chain: quickstart.Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
) -> None:
    monkeypatch.setattr(quickstart, "probe_speed", lambda recipe, shards: seconds / 2)
    recipes = {name: tiny_recipe(name, 2, 1, steps=9, dtype="bfloat16") for name in ("shared", "dense")}
    plan = quickstart.decide_plan(replace(chain, **recipes, training_seconds=6.0), tmp_path, 0.0)
    assert plan["steps"] == steps
    assert bool(plan["notes"]) == (steps < 9)
    assert quickstart.decide_plan(chain, tmp_path, 0.0) == plan, "decided once"


def test_unigram_entropy_is_that_of_the_trained_positions_of_the_validation_split(tmp_path: Path) -> None:
    # Of the ids behind the first of each row: half are 1, a quarter each 2 and 3.
    validation = np.array([[9, 1, 1, 2, 3], [9, 1, 1, 2, 3]])
    write_shards(tmp_path / "shards", np.ones((4, 5)), validation, vocab_size=10, bytes_per_token=3)
    found = quickstart.measure_unigram(tmp_path / "shards")
    assert math.isclose(found["entropy"], 1.5 * math.log(2))
    assert (found["tokens"], found["bytes"]) == (8, 24)
    assert math.isclose(found["bits_per_byte"], 0.5)


def test_shipped_chain_is_within_its_own_goals() -> None:
    chain = quickstart.read_chain()
    tokens = chain.shared.train.steps * chain.shared.train.rows_per_step * chain.data.pack.seq_len
    assert tokens >= chain.min_tokens
    assert chain.shared.train == chain.dense.train, "same seed, order, schedule and number of tokens"
    shared, dense = (cost(recipe.model).stored_parameters for recipe in chain.models.values())
    assert abs(shared - dense) <= 0.01 * min(shared, dense)
    assert chain.shared.model.num_ffn_blocks == 1
    assert chain.dense.model.num_ffn_blocks == chain.dense.model.num_hidden_layers
    assert chain.shared.model.vocab_size == chain.data.tokenizer.train_vocab_size
    assert json.dumps(chain.data.tree())


def test_a_folder_of_a_version_that_knew_fewer_recipe_keys_is_reused(
    chain: quickstart.Chain, built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    sections = {"shards/manifest.json": DataRecipe, "shared/run.json": TrainRecipe, "dense/run.json": TrainRecipe}
    for name, section in sections.items():
        tree = json.loads((out / name).read_text())
        older = section.model_validate(tree["recipe"]).model_dump(mode="json", exclude_defaults=True)
        assert older != tree["recipe"]
        (out / name).write_text(json.dumps({**tree, "recipe": older}))
    before = digests(out)
    quickstart.build_data(chain, out)
    planned = quickstart.planned_models(chain, json.loads((out / "plan.json").read_text()))
    for name, recipe in planned.items():
        quickstart.train_model(recipe, out, name)
    assert digests(out) == before
