"""What the makers of accelerators state: peak operations, memory and links. No torch; nothing here is measured.

Peaks are those of dense matrix products with float32 sums (not the doubled figures for sparse matrices).
"""

from __future__ import annotations

from dataclasses import dataclass

from mobillama.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One kind of accelerator, as stated by its maker."""

    kind: str  # as `mobillama plan --kind` names it
    device_name: str  # part of what the driver calls it
    bf16_flops: float  # per second
    float8_flops: float | None  # per second; None: it has none
    memory_bytes: int
    memory_bandwidth: float  # bytes per second
    link_bandwidth: float  # bytes per second, one way, between the GPUs of a machine
    per_node: int  # GPUs in the maker's usual machine
    source: str


GB, T = 10**9, 1e12
A100 = "NVIDIA A100 datasheet (2021, nvidia-a100-datasheet-us-nvidia-1758950)"
HOPPER = "NVIDIA {} datasheet; half of the figures with sparsity"
GPUS = {
    gpu.kind: gpu
    for gpu in (
        Gpu("a100-40g", "A100-SXM4-40GB", 312 * T, None, 40 * GB, 1555e9, 300e9, 8, A100),
        Gpu("a100-80g", "A100-SXM4-80GB", 312 * T, None, 80 * GB, 2039e9, 300e9, 8, A100),
        Gpu("h100-80g", "H100 80GB HBM3", 989 * T, 1979 * T, 80 * GB, 3350e9, 450e9, 8, HOPPER.format("H100 SXM")),
        Gpu("h200-141g", "H200", 989 * T, 1979 * T, 141 * GB, 4800e9, 450e9, 8, HOPPER.format("H200 SXM")),
        Gpu("b200-180g", "B200", 2250 * T, 4500 * T, 180 * GB, 7700e9, 900e9, 8, "NVIDIA HGX B200 datasheet"),
        Gpu("l40s-48g", "L40S", 362 * T, 733 * T, 48 * GB, 864e9, 32e9, 8, "NVIDIA L40S datasheet; PCIe 4.0 x16"),
        Gpu(
            "rtx4090-24g",
            "RTX 4090",
            165.2 * T,
            330.3 * T,
            24 * GB,
            1008e9,
            32e9,
            1,
            "NVIDIA Ada GPU architecture whitepaper, table 2; PCIe 4.0 x16",
        ),
    )
}


def find_gpu(kind: str) -> Gpu:
    """The accelerator of a kind. Error: InputError naming those that are known.

    >>> find_gpu("a100-80g").bf16_flops
    312000000000000.0
    """
    if kind not in GPUS:
        raise InputError(f"no accelerator of kind {kind!r}; the kinds with stated figures are: {', '.join(GPUS)}")
    return GPUS[kind]


def gpu_named(device_name: str) -> Gpu | None:
    """The accelerator that a driver calls `device_name`; None if its figures are not known.

    >>> gpu_named("NVIDIA H200").kind, gpu_named("NVIDIA H100 PCIe")
    ('h200-141g', None)
    """
    if " NVL" in device_name:  # other boards with other peaks
        return None
    matching = [gpu for gpu in GPUS.values() if gpu.device_name in device_name]
    return max(matching, key=lambda gpu: len(gpu.device_name), default=None)
