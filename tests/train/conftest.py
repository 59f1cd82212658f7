from pathlib import Path

import pytest
import tiny

from mobillama.train.loop import train


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Tiny shards; tests must not change them."""
    return tiny.make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, shards) -> Path:
    """The tiny recipe, trained without interruption; tests must not change it (see `copied`)."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(tiny.recipe(), shards, run)
    return run


@pytest.fixture
def copied(tmp_path, whole_run) -> Path:
    """The finished tiny run, to be changed: without its model, so that training goes on."""
    import shutil

    run = tmp_path / "copied"
    shutil.copytree(whole_run, run)
    shutil.rmtree(run / "model")
    return run
