import pytest
import torch

from mobillama import device
from mobillama.config import TrainConfig
from mobillama.errors import RecipeError


@pytest.fixture
def machine(monkeypatch):
    """A machine with the accelerators and CPU features one says."""

    def pretend(*, cuda=False, mps=False, fast_cuda=True, features=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: fast_cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device, "_cpu_capabilities", lambda: dict.fromkeys(features, True))

    return pretend


@pytest.mark.parametrize(
    ("there", "taken"),
    [({"cuda": True, "mps": True}, "cuda"), ({"cuda": True}, "cuda"), ({"mps": True}, "mps"), ({}, "cpu")],
)
def test_auto_takes_cuda_then_mps_then_cpu(machine, there, taken):
    machine(**there)
    assert device.place("auto").device.type == taken


def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(machine):
    machine(mps=True)
    with pytest.raises(RecipeError, match=r"device='cuda' is not on this machine; found mps, cpu"):
        device.place("cuda")


@pytest.mark.parametrize(
    ("there", "dtype", "why"),
    [
        ({"features": ["avx512_bf16"]}, torch.bfloat16, "avx512_bf16"),
        ({"features": ["amx_bf16"]}, torch.bfloat16, "amx_bf16"),
        ({"features": ["avx2"]}, torch.float32, "no fast bfloat16"),
        ({"cuda": True}, torch.bfloat16, "GPU"),
        ({"cuda": True, "fast_cuda": False}, torch.float32, "no bfloat16"),
        ({"mps": True}, torch.float32, "MPS"),
    ],
)
def test_auto_computes_in_bfloat16_where_that_is_fast_and_says_why(machine, there, dtype, why):
    machine(**there)
    found = device.place("auto")
    assert found.dtype == dtype
    assert why in found.words()


def test_a_recipe_says_device_type_and_threads(machine):
    machine(features=["avx512_bf16"])
    found = device.place(TrainConfig(device="cpu", dtype="float32", threads=3))
    assert (found.device.type, found.dtype, found.threads) == ("cpu", torch.float32, 3)
    assert "3 threads" in found.words()


def test_zero_threads_are_all_cores_that_the_process_may_use(machine, monkeypatch):
    machine()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert device.place("cpu").threads == 5
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device.place("cpu").threads == device.cores() >= 1


def test_determinism_and_threads_are_put_back(machine):
    machine()
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    with pytest.raises(ZeroDivisionError), device.computing(device.place("cpu", threads=1), deterministic=True):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise ZeroDivisionError
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_peak_memory_counts_bytes():
    held = torch.ones(64 << 20, dtype=torch.uint8)
    assert device.peak_memory(device.place("cpu"))["resident_bytes"] > held.numel()
