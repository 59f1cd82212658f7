"""What models cost: the paper's presets to the last parameter, and agreement with the model that is really built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama.config import ModelConfig, presets, read_recipe
from mobillama.errors import RecipeError
from mobillama.model.cost import Cost, cost, table
from mobillama.model.initialise import outline_model

COUNTS = {
    "mobillama-0.5b": 534_865_920,
    "mobillama-0.8b": 819_315_200,
    "large-base-1.2b": 1_261_529_088,
    "baseline1": 538_489_856,
    "baseline2": 542_148_608,
}


def of(preset: str) -> Cost:
    return cost(read_recipe(ModelConfig, preset))


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_exactly_the_paper_s_parameters(preset: str) -> None:
    config = read_recipe(ModelConfig, preset)
    assert cost(config).stored_parameters == COUNTS[preset]
    model = outline_model(config)
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[preset]
    assert all(weight.is_meta for weight in model.state_dict().values()), "counting must take no memory"


def test_every_preset_has_a_count_here() -> None:
    assert presets("model") == sorted(COUNTS)


def test_the_paper_s_own_0_8b_sizes_are_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(ModelConfig, "mobillama-0.8b", ["hidden_size=2532", "intermediate_size=11080"])
    for said in ("hidden_size=2532", "num_attention_heads=32", "2496", "2560", "2560/10240", "paper"):
        assert said in str(caught.value)


@given(
    heads=st.sampled_from([1, 2, 4, 6]),
    groups=st.sampled_from([1, 2]),
    head_size=st.sampled_from([2, 4, 10]),
    inner=st.integers(1, 40),
    layers=st.integers(1, 7),
    vocab=st.integers(1, 50),
    tied=st.booleans(),
    gain=st.booleans(),
    data=st.data(),
)
def test_counted_from_the_config_equals_counted_in_the_model(
    heads: int,
    groups: int,
    head_size: int,
    inner: int,
    layers: int,
    vocab: int,
    tied: bool,
    gain: bool,
    data: st.DataObject,
) -> None:
    config = ModelConfig(
        vocab_size=vocab,
        hidden_size=heads * head_size,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // groups if heads % groups == 0 else heads,
        num_ffn_blocks=data.draw(st.integers(1, layers)),
        tie_word_embeddings=tied,
        ffn_gain=gain,
        ffn_adapter_rank=data.draw(st.integers(0, heads * head_size)),
    )
    found = cost(config)
    model = outline_model(config)
    assert found.stored_parameters == sum(weight.numel() for weight in model.parameters())
    dense = outline_model(config.model_copy(update={"num_ffn_blocks": layers}))
    assert found.executed_parameters == sum(weight.numel() for weight in dense.parameters())
    multiplied = sum(weight.numel() for name, weight in dense.named_parameters() if "proj" in name or "adapter" in name)
    assert found.flops_per_token == 2 * (multiplied + model.head_weight.numel())
    for shares in (found.stored_shares, found.executed_shares):
        assert shares.ffn + shares.attention + shares.embedding + shares.norm + shares.adapter == pytest.approx(1)
    named = {name: weight.numel() for name, weight in model.named_parameters()}
    assert found.adapter_parameters == sum(size for name, size in named.items() if ".ffn_adapter." in name)
    assert found.gain_parameters == sum(size for name, size in named.items() if name.endswith(".ffn_gain"))


def test_a_shared_model_computes_like_the_large_base() -> None:
    small, large = of("mobillama-0.5b"), of("large-base-1.2b")
    assert small.executed_parameters == large.executed_parameters == large.stored_parameters
    assert small.flops_per_token == large.flops_per_token
    assert large.flops_per_token / 2 == pytest.approx(1196e6, abs=0.5e6)  # the published effective parameters
    assert of("mobillama-0.8b").flops_per_token / 2 == pytest.approx(2389e6, abs=0.5e6)


def test_shares_of_the_large_base_are_the_published_ones() -> None:
    shares = of("large-base-1.2b").stored_shares
    assert [round(100 * share, 1) for share in (shares.ffn, shares.attention, shares.embedding)] == [60.3, 29.3, 10.4]


def test_bytes_of_the_half_billion_model() -> None:
    found = of("mobillama-0.5b")
    assert found.bytes_fp32 == 4 * COUNTS["mobillama-0.5b"]
    assert found.bytes_bf16 == 2 * COUNTS["mobillama-0.5b"]
    assert found.bytes_4_5_bit == round(COUNTS["mobillama-0.5b"] * 4.5 / 8)
    assert found.kv_bytes_per_token == 180_224
    grouped = cost(read_recipe(ModelConfig, "mobillama-0.5b", ["num_key_value_heads=4"]))
    assert (grouped.stored_parameters, grouped.kv_bytes_per_token) == (373_385_216, 180_224 // 8)


def test_table_shows_every_model_and_its_counts() -> None:
    text = table({name: of(name) for name in COUNTS})
    assert all(f"{count:,}" in text for count in COUNTS.values())
    assert len({len(line) for line in text.splitlines()}) == 1, "columns must line up"


def test_table_shows_adapters_and_gains_where_there_are_some() -> None:
    own = cost(read_recipe(ModelConfig, "mobillama-0.5b", ["ffn_adapter_rank=8", "ffn_gain=true"]))
    text = table({"plain": of("mobillama-0.5b"), "own": own})
    assert "of these adapters" in text
    assert f"{22 * 2 * 2048 * 8:,}" in text
    assert f"{22 * 2048:,}" in text
    assert "adapters" not in table({"plain": of("mobillama-0.5b")})


def test_tree_has_the_keys_others_rely_on() -> None:
    assert {"stored_parameters", "executed_parameters", "flops_per_token"} <= of("baseline1").tree().keys()
