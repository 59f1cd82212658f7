"""The examples in docstrings run and give what they show; those of the Python interface are there."""

from __future__ import annotations

import doctest
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

import mobillama
from mobillama.config import ModelConfig

ROOT = Path(mobillama.__file__).parent
WITH_EXAMPLES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer: what the examples call `model_folder`."""
    from mobillama.model.initialise import build_model
    from mobillama.model.weights import save_model
    from mobillama.tokenizer.tokenizer import train

    folder = tmp_path_factory.mktemp("doctest") / "model"
    tokenizer = train([Path(json.__file__).read_text(encoding="utf-8")], 400)
    config = ModelConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    save_model(folder, build_model(config, seed=1), config)
    tokenizer.save(folder)
    return folder


def run(module: ModuleType, model_folder: Path) -> dict[str, doctest.TestResults]:
    """Every docstring with examples in a module -> how many ran and failed."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    tests = doctest.DocTestFinder().find(module, extraglobs={"model_folder": model_folder})
    return {test.name: runner.run(test) for test in tests if test.examples}


def name_of(path: Path) -> str:
    return ".".join(("mobillama", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("module", [name_of(path) for path in WITH_EXAMPLES])
def test_examples_give_what_they_show(module: str, model_folder: Path) -> None:
    results = run(importlib.import_module(module), model_folder)
    assert sum(result.attempted for result in results.values()) > 0
    assert {name: result.failed for name, result in results.items() if result.failed} == {}


@pytest.mark.parametrize("name", ["load", "LanguageModel", "read_shards", "read_ledger"])
def test_the_python_interface_has_examples(name: str, model_folder: Path) -> None:
    public = getattr(mobillama, name)
    (examples,) = (
        test
        for test in doctest.DocTestFinder(recurse=False).find(public, name, extraglobs={"model_folder": model_folder})
        if test.examples
    )
    examples.globs = {**vars(importlib.import_module(public.__module__)), **examples.globs}
    result = doctest.DocTestRunner().run(examples)
    assert (result.attempted > 0, result.failed) == (True, 0)


def test_the_public_face_is_these_names() -> None:
    assert set(mobillama.__all__) == {"LanguageModel", "__version__", "load", "read_ledger", "read_shards"}
    assert dir(mobillama) == sorted(mobillama.__all__)
    for name in mobillama.__all__:
        assert getattr(mobillama, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        mobillama.lod  # noqa: B018
