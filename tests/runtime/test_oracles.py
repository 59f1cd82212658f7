"""Oracle: the engine on rounded weights against torch that does the same arithmetic, and instruction sets in turn.

Two oracles take the weights that the `gguf` package reads from the same file. With activations as they are, the
relative L2 error of a position's logits stays below 1e-3 in the worst of 256 positions. With activations rounded to
8 bits no such bound exists for two orders of summation: a difference of 1e-7 moves a few codes by one, these move more
codes in the next product, and after some products the difference is as large as rounding itself. So the engine may
differ from torch by as much as torch differs from itself when its weights are moved by 1e-7, and must equal it where
no code moved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mobillama.config import ModelConfig
from mobillama.export.gguf_file import quantize_model
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer
from mobillama.model.weights import save_model
from mobillama.runtime.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIONS, TOLERANCE = 256, 1e-3
CONFIG = ModelConfig(
    vocab_size=320,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_ffn_blocks=2,
    max_position_embeddings=POSITIONS,
    initializer_range=0.05,
)
IDS = np.random.default_rng(7).integers(0, CONFIG.vocab_size, POSITIONS)
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("oracles") / "model"
    save_model(path, build_model(CONFIG, seed=11), CONFIG)
    return path


def name_in_file(name: str) -> str:
    """The GGUF name of a Transformer's tensor."""
    whole = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    whole["lm_head.weight"] = "output.weight"
    if name in whole:
        return whole[name]
    kind, index, rest = name.removesuffix(".weight").split(".", 2)
    layer = CONFIG.first_layer_of(int(index)) if kind == "ffns" else int(index)
    return f"blk.{layer}.{PARTS[rest]}.weight"


def torch_of(file: Path) -> Transformer:
    """A torch model with the rounded weights of a file."""
    stored = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(file).tensors
    }
    model = Transformer(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(np.array(stored[name_in_file(name)])).view(weight.shape))
    return model.eval()


def rounded(x: Tensor) -> Tensor:
    """Activations as 8-bit codes times a scale for each group of 32, written out as float32 again."""
    groups = x.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    codes = torch.where(largest > 0, groups * (127.0 / largest), 0.0).round()
    return (codes * (largest / 127.0)).flatten(-2)


@torch.no_grad()
def logits_of(model: Transformer, round_activations: bool, moved: float = 0.0) -> np.ndarray:
    model.embed_tokens.weight.mul_(1 + moved * torch.randn_like(model.embed_tokens.weight))
    if round_activations:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    hidden = model.hidden_states(torch.from_numpy(IDS)[None])[0]
    return ((rounded(hidden) if round_activations else hidden) @ model.head_weight.T).numpy()


def engine_logits(file: Path, float_activations: bool) -> np.ndarray:
    with (
        Engine.open(file) as engine,
        engine.context(kv="f32", threads=1, float_activations=float_activations) as context,
    ):
        rows = []
        for start in range(0, POSITIONS, 64):
            context.verify(IDS[start : start + 64])
            rows += [context.logits(row) for row in range(64)]
    return np.stack(rows)


def errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative L2 error of each position."""
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize("types", ["q3_k", "q4_0", "q5_0", "q6_k", "q8_0", "f16", "q4_0,ffn=q6_k,head=f16"])
def test_logits_with_activations_as_they_are_equal_torchs(folder: Path, tmp_path: Path, types: str) -> None:
    file = tmp_path / "model.gguf"
    quantize_model(folder, file, types)
    found = errors(engine_logits(file, float_activations=True), logits_of(torch_of(file), round_activations=False))
    assert found.max() < TOLERANCE


# Embeddings of 3 bits are small integers times one half: an activation of half the largest is common, its code halfway
# between two, and the last bit of its norm decides.
@pytest.mark.parametrize("types", ["q3_k,embedding=f16", "q4_0", "q5_0", "q6_k", "q8_0"])
def test_logits_with_rounded_activations_are_as_near_to_torchs_as_torch_is_to_itself(
    folder: Path, tmp_path: Path, types: str
) -> None:
    file = tmp_path / "model.gguf"
    quantize_model(folder, file, types)
    torch.manual_seed(5)
    expected = logits_of(torch_of(file), round_activations=True)
    own = errors(logits_of(torch_of(file), round_activations=True, moved=1e-7), expected)
    found = errors(engine_logits(file, float_activations=False), expected)
    assert found[0] < 1e-5  # one token alone: no sum over positions, so no code moves
    assert np.median(found) < 1.2 * np.median(own)
    assert found.max() < 1.5 * own.max()


ANSWER = """
import sys, numpy
from mobillama.runtime.engine import Engine
with Engine.open(sys.argv[1]) as engine:
    for kv in ("f16", "int8", "f32"):
        with engine.context(kv=kv, threads=1) as context:
            context.prefill(list(range(70)))
            for id_ in (3, 1, 4):
                context.decode([id_])
            print(engine.info.isa, kv, context.logits().tobytes().hex())
"""


@pytest.mark.parametrize("types", ["q4_0,ffn=q6_k,head=q5_0,embedding=q8_0", "q3_k"])
def test_every_instruction_set_gives_the_same_bits(folder: Path, tmp_path: Path, types: str) -> None:
    file = tmp_path / "model.gguf"
    quantize_model(folder, file, types)
    answers = {}
    for isa in ("scalar", "avx2", "avx512", "neon", "neon-dot", "neon-i8mm"):
        environment = {**os.environ, "MOBILLAMA_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", ANSWER, str(file)], env=environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            lines = done.stdout.splitlines()
            assert {line.split()[0] for line in lines} == {isa}
            answers[isa] = [line.split()[1:] for line in lines]
        else:
            assert "has not got it" in done.stderr
    assert len(answers) >= 2, "this machine has no fast instruction set to compare with"
    assert all(answer == answers["scalar"] for answer in answers.values())
