"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Tests that run side by side get one thread each, set before torch is imported: tiny tensors on more threads than
# cores spend their time waiting for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts what runs in its background with Ctrl-C ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that does other things at the same time makes no test wrong.
settings.register_profile("any-speed", deadline=None)
settings.load_profile("any-speed")


@pytest.fixture(scope="session")
def shared_folder() -> Callable[[str], Path]:
    """A function from the name of an environment variable to the folder of test data that it names.

    The test is skipped where the variable is not set. Where it is set and the folder is missing, the test is skipped
    too, naming it, except in CI (environment variable CI=true): there it fails, so that no check drops out unseen.
    """

    def find(variable: str) -> Path:
        value = os.environ.get(variable, "")
        if not value:
            pytest.skip(f"environment variable {variable} is not set; it names a folder of test data")
        folder = Path(value)
        if not folder.is_dir():
            message = f"{variable}={value} is no folder"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
        return folder

    return find


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One torch thread for the tests of a module: work that small loses more by waiting for a second than it gains."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
