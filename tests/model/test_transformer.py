"""The architecture: transformers' LLaMA as the oracle, and the laws of cache, padding and causal order."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from twins import dense_twin, llama_twin, new_seed, random_ids, tiny_model

from mobillama.errors import InputError
from mobillama.model.transformer import KVCache, RMSNorm, Transformer, locate

SHAPES = [
    pytest.param({"num_ffn_blocks": 0}, False, id="dense"),
    pytest.param({"num_ffn_blocks": 0, "num_key_value_heads": 2}, False, id="grouped-query"),
    pytest.param({"num_ffn_blocks": 1}, True, id="shared"),
    pytest.param({"num_ffn_blocks": 1, "num_key_value_heads": 1}, True, id="shared-one-kv-head"),
    pytest.param({"num_ffn_blocks": 4}, True, id="four-blocks"),
    pytest.param({"num_ffn_blocks": 1, "tie_word_embeddings": True}, True, id="tied-embeddings"),
]


def pad_left(texts: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) and mask (B, T) of texts of unequal length, padding in front."""
    longest = max(len(text) for text in texts)
    ids = torch.stack([torch.cat((torch.full((longest - len(text),), pad), text)) for text in texts])
    mask = torch.stack([torch.arange(longest) >= longest - len(text) for text in texts])
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize(("changes", "aliased"), SHAPES)
def test_logits_are_those_of_transformers_llama(changes: dict[str, object], aliased: bool) -> None:
    seed = new_seed()
    model = tiny_model(seed, **changes)
    ids = random_ids(seed, 3, 33)
    ours, theirs = model(ids), llama_twin(model, aliased=aliased)(ids).logits
    assert theirs.std() > 0.5, "logits too small to tell anything"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@torch.no_grad()
def test_left_padded_logits_are_those_of_transformers_llama() -> None:
    seed = new_seed()
    model = tiny_model(seed, num_key_value_heads=2)
    ids, mask = pad_left([random_ids(seed + n, 1, n)[0] for n in (1, 4, 17)], pad=0)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    theirs = llama_twin(model)(ids, attention_mask=mask.long(), position_ids=positions).logits
    ours = model(ids, attention_mask=mask)
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 5], [11, 1], [3, 9]], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cached_equals_uncached(pieces: list[int], kv_heads: int) -> None:
    seed = new_seed()
    model = tiny_model(seed, num_key_value_heads=kv_heads)
    ids = random_ids(seed, 2, 12)
    cache = KVCache(model.config, batch=2, max_tokens=12)
    parts = [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-4, rtol=0)
    assert cache.length == 12


@torch.no_grad()
def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been() -> None:
    seed = new_seed()
    model = tiny_model(seed)
    ids = random_ids(seed, 1, 9)
    cache = KVCache(model.config, batch=1, max_tokens=9)
    model(random_ids(seed + 1, 1, 4), cache=cache)
    cache.truncate(0)
    model(ids[:, :8], cache=cache)
    cache.truncate(5)
    torch.testing.assert_close(model(ids[:, 5:], cache=cache), model(ids)[:, 5:], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pad", [0, 17])
def test_left_padded_batch_equals_single(pad: int) -> None:
    seed = new_seed()
    model = tiny_model(seed)
    texts = [random_ids(seed + n, 1, n)[0] for n in (1, 5, 12)]
    ids, mask = pad_left(texts, pad)
    batched = model(ids, attention_mask=mask)
    for row, text in enumerate(texts):
        torch.testing.assert_close(batched[row, -len(text) :], model(text[None])[0], atol=1e-4, rtol=0)
    assert batched.isfinite().all(), "positions of padding must stay finite"


@torch.no_grad()
def test_padding_anywhere_changes_nothing() -> None:
    """Padding between tokens too: positions count text alone."""
    seed = new_seed()
    model = tiny_model(seed)
    text = random_ids(seed, 1, 7)
    mask = torch.tensor([[False, True, True, False, False, True, False, True, True, True, True, False]])
    ids = torch.full_like(mask, 5, dtype=torch.long).masked_scatter(mask, text)
    torch.testing.assert_close(model(ids, attention_mask=mask)[mask], model(text)[0], atol=1e-4, rtol=0)


def test_no_position_sees_nothing() -> None:
    """Attention over nothing is not a number on some machines: padding must see itself."""
    mask = torch.tensor([[False, False, True, True], [False, False, False, False], [True, True, False, False]])
    for past in (0, 2):
        _, seen = locate(torch.zeros(3, 4 - past, dtype=torch.long), past, mask)
        assert seen is not None
        assert seen.any(-1).all()
        assert not seen[0, 0, -1, :2].any(), "text must not see padding"


@torch.no_grad()
def test_left_padded_batch_with_a_cache_equals_single() -> None:
    seed = new_seed()
    model = tiny_model(seed)
    texts = [random_ids(seed + n, 1, n)[0] for n in (2, 7)]
    new = random_ids(seed + 99, 2, 5)
    ids, mask = pad_left(texts, pad=3)
    cache = KVCache(model.config, batch=2, max_tokens=12)
    model(ids, attention_mask=mask, cache=cache)
    parts = []
    for piece in new.split([1, 3, 1], dim=1):  # one token, several, one
        mask = torch.cat((mask, torch.ones(2, piece.shape[1], dtype=torch.bool)), 1)
        parts.append(model(piece, attention_mask=mask, cache=cache))
    for row, text in enumerate(texts):
        alone = model(torch.cat((text, new[row]))[None])[0, len(text) :]
        torch.testing.assert_close(torch.cat(parts, 1)[row], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_later_tokens_change_nothing_before_them() -> None:
    seed = new_seed()
    model = tiny_model(seed)
    ids = random_ids(seed, 1, 16)
    other = ids.clone()
    other[0, 9] = (other[0, 9] + 1) % 53
    assert torch.equal(model(ids)[0, :9], model(other)[0, :9])
    assert not torch.equal(model(ids)[0, 9:], model(other)[0, 9:])


@torch.no_grad()
def test_last_only_gives_the_last_position() -> None:
    seed = new_seed()
    model = tiny_model(seed)
    ids = random_ids(seed, 2, 7)
    torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


@torch.no_grad()
def test_a_layer_adds_its_own_gain_times_the_shared_ffn_and_its_own_adapter() -> None:
    seed = new_seed()
    model = tiny_model(seed, ffn_gain=True, ffn_adapter_rank=5)
    folded = tiny_model(seed, num_ffn_blocks=6)
    folded.load_state_dict(
        {name: weight for name, weight in dense_twin(model).state_dict().items() if name in folded.state_dict()}
    )
    for layer, (block, ffn) in enumerate(zip(model.layers, folded.ffns, strict=True)):
        ffn.down_proj.weight.mul_(block.ffn_gain[:, None])
        path = block.ffn_adapter.up.weight @ block.ffn_adapter.down.weight  # (D, D)
        ffn.register_forward_hook(lambda _, inputs, output, path=path: output + inputs[0] @ path.T)
        assert model.ffn_of(layer) is model.ffns[0]
    ids = random_ids(seed, 2, 11)
    torch.testing.assert_close(model(ids), folded(ids), atol=1e-4, rtol=0)
    model.layers[5].ffn_gain.add_(1)
    assert (model(ids) - folded(ids)).abs().max() > 1e-2


def test_tied_head_is_the_embedding() -> None:
    model = tiny_model(new_seed(), tie_word_embeddings=True)
    assert model.head_weight is model.embed_tokens.weight
    assert "lm_head.weight" not in model.state_dict()
    assert "lm_head.weight" in tiny_model(0).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_is_bit_for_bit_the_llama_reference(dtype: torch.dtype) -> None:
    seed = new_seed()
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(5, 7, 48, generator=generator) * 3).to(dtype)
    ours, theirs = RMSNorm(48, 1e-5).to(dtype), LlamaRMSNorm(48, 1e-5).to(dtype)
    weight = torch.rand(48, generator=generator).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight)
    assert torch.equal(ours(x), theirs(x))


@torch.no_grad()
def test_bfloat16_stays_near_float32() -> None:
    seed = new_seed()
    model = tiny_model(seed, initializer_range=0.1)
    ids = random_ids(seed, 2, 40)
    exact = model(ids)
    assert (model.bfloat16()(ids).float() - exact).abs().mean() < 0.05 * exact.std()


def test_mask_of_another_shape_is_an_error() -> None:
    model = tiny_model(0)
    ids = random_ids(0, 2, 5)
    with pytest.raises(InputError, match=r"\(2, 4\); expected \(2, 5\)"):
        model(ids, attention_mask=torch.ones(2, 4, dtype=torch.bool))


def test_full_cache_is_an_error() -> None:
    model = tiny_model(0)
    cache = KVCache(model.config, batch=1, max_tokens=4)
    model(random_ids(0, 1, 3), cache=cache)
    with pytest.raises(InputError, match="3 cached and 2 new positions do not fit a cache of 4"):
        model(random_ids(0, 1, 2), cache=cache)
    assert cache.length == 3


@pytest.mark.slow
def test_blocks_compile_once_and_compute_the_same() -> None:
    seed = new_seed()
    model, eager = tiny_model(seed), tiny_model(seed)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.layers:
        block.compile()
    ids = random_ids(seed, 2, 16)
    ours, theirs = model(ids), eager(ids)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)  # rounding: 1.2e-4 in 300 seeds
    ours.sum().backward()
    theirs.sum().backward()
    for (name, weight), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        # Rounding only: at most 1.1e-4 of the norm in 300 seeds; one wrong term is a large part of it.
        assert (weight.grad - other.grad).norm() <= 2e-3 * other.grad.norm(), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_twins_know_the_difference() -> None:
    """The oracle must be able to fail: another FFN in one layer changes the logits."""
    model = tiny_model(new_seed(), num_ffn_blocks=1)
    twin: Transformer = dense_twin(model)
    with torch.no_grad():
        twin.ffns[3].up_proj.weight.mul_(1.1)
        ids = random_ids(1, 1, 8)
        assert (twin(ids) - model(ids)).abs().max() > 1e-3
