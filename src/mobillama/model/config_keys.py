"""What the keys of a config.json mean to a MobiLlama: used, harmless, or changing the arithmetic.

The last are those of LLaMA's relatives in transformers (Granite, MiniCPM, Mistral, Qwen, Phi, SmolLM, Gemma, Cohere,
OLMo, mixtures of experts), with the values at which they change nothing: null always, and what is named here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mobillama.config import ModelConfig
from mobillama.errors import InputError, MobillamaWarning


def _names(text: str) -> list[str]:
    return text.split()


# Read by config_file.py beside the fields of ModelConfig, or by the end ids and the tokenizer.
USED = frozenset(
    _names("model_type head_dim rope_parameters rope_theta rope_scaling bos_token_id eos_token_id pad_token_id")
)

# How a model was trained, stored and is shown, what its generation begins with, and settings of transformers itself.
HARMLESS = frozenset(
    _names("""
    architectures auto_map _name_or_path name_or_path transformers_version dtype torch_dtype use_cache pretraining_tp
    attention_dropout hidden_dropout resid_pdrop attn_pdrop embd_pdrop dropout hidden_dropout_prob
    attention_probs_dropout_prob initializer_range initializer_factor init_std tokenizer_class processor_class
    _attn_implementation attn_implementation _attn_implementation_internal _flash_attn_2_enabled use_flash_attn
    gradient_checkpointing use_bfloat16 torchscript return_dict use_return_dict output_attentions
    output_hidden_states output_scores return_dict_in_generate output_router_logits is_decoder task_specific_params
    problem_type finetuning_task id2label label2id num_labels prefix tf_legacy_loss chunk_size_feed_forward
    keys_to_ignore_at_inference begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id
    sep_token_id decoder_start_token_id unk_token_id max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values
    exponential_decay_length_penalty max_window_layers layer_norm_eps layer_norm_epsilon n_ctx max_sequence_length
    max_seq_len model_max_length original_max_position_embeddings is_llama_config unsloth_version unsloth_fixed
    use_fused_mlp use_fused_rmsnorm fused_mlp router_aux_loss_coef num_experts_per_tok moe_intermediate_size
    norm_topk_prob decoder_sparse_step mlp_only_layers router_jitter_noise no_rope_layer_interval
    """)
)

Neutral = Callable[[Any, ModelConfig, Mapping[str, Any]], bool]


def _is(*values: Any) -> Neutral:
    """Equal to one of these; 1 and True are told apart, 1 and 1.0 are not."""
    return lambda found, _config, _tree: any(
        found == value and isinstance(found, bool) == isinstance(value, bool) for value in values
    )


def _near(value: Callable[[ModelConfig], float]) -> Neutral:
    """Equal to a size, or to what follows from one, as it is rounded in files."""
    return lambda found, config, _tree: _number(found) and math.isclose(found, value(config), rel_tol=1e-4)


def _all(*values: Any) -> Neutral:
    return lambda found, _config, _tree: isinstance(found, list) and all(item in values for item in found)


def _number(value: Any) -> bool:
    """Whether it is a number; one beyond all floats is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _no_window(found: Any, config: ModelConfig, tree: Mapping[str, Any]) -> bool:
    """No sliding window, one that is switched off, or one that no text leaves."""
    return tree.get("use_sliding_window") is False or (
        _number(found) and (found == 0 or found >= config.max_position_embeddings)
    )


def _plain_rotation(found: Any, _config: ModelConfig, _tree: Mapping[str, Any]) -> bool:
    """A rotation without scaling, or with a linear factor of 1."""
    if not isinstance(found, dict):
        return False
    kind = found.get("rope_type", found.get("type"))
    return kind in ("default", None) or (kind == "linear" and found.get("factor") in (None, 1))


_OFF, _FACTOR, _NONE = _is(False), _is(1), _is(0, False)

# Key -> (whether its value changes nothing, that value in words).
CHANGES: dict[str, tuple[Neutral, str]] = {
    "hidden_act": (_is("silu", "swish"), "'silu'"),
    "hidden_activation": (_is("silu", "swish"), "'silu'"),
    "activation_function": (_is("silu", "swish"), "'silu'"),
    "rope_scaling": (_plain_rotation, "none"),
    "sliding_window": (_no_window, "null, or use_sliding_window=false, or no less than max_position_embeddings"),
    "use_sliding_window": (
        lambda found, config, tree: found is False or _no_window(tree.get("sliding_window") or 0, config, tree),
        "false",
    ),
    "layer_types": (_all("full_attention"), "'full_attention' everywhere"),
    "no_rope_layers": (_all(1, True), "1 everywhere (a rotation in each layer)"),
    "partial_rotary_factor": (_FACTOR, "1"),
    "rotary_pct": (_FACTOR, "1"),
    "rope_pct": (_FACTOR, "1"),
    "rope_percentage": (_FACTOR, "1"),
    "rotary_dim": (_near(lambda config: config.head_dim), "the head size"),
    "rope_ratio": (_FACTOR, "1"),
    "rope_interleaved": (_OFF, "false"),
    "position_embedding_type": (_is("rope", "rotary", "absolute"), "'rope'"),  # absolute: transformers' own default
    "embedding_size": (_near(lambda config: config.hidden_size), "hidden_size"),
    "norm_type": (_is("rms", "rmsnorm", "rms_norm", "RMSNorm"), "'rms'"),
    "attention_multiplier": (_near(lambda config: config.head_dim**-0.5), "1 / sqrt(head size)"),
    "query_pre_attn_scalar": (_near(lambda config: config.head_dim), "the head size"),
    "dim_model_base": (_near(lambda config: config.hidden_size), "hidden_size"),
    "scale_depth": (_near(lambda config: config.num_hidden_layers**0.5), "sqrt(num_hidden_layers)"),
    "causal": (_is(True), "true"),
    "is_causal": (_is(True), "true"),
    "scale_attn_weights": (_is(True), "true"),
    **dict.fromkeys(
        _names(
            """
            logit_scale logits_scaling lm_head_multiplier embedding_multiplier residual_multiplier
            scale_emb mup_width_multiplier key_multiplier attention_in_multiplier
            attention_out_multiplier attn_scale ffn_scale emb_scale
            """
        ),
        (_FACTOR, "1"),
    ),
    **dict.fromkeys(
        _names(
            """
            attention_bias mlp_bias bias use_bias qkv_bias use_qkv_bias add_bias_linear add_qkv_bias
            attn_bias lm_head_bias o_bias mlp_gate_bias use_parallel_residual parallel_attn
            parallel_block use_qk_norm qk_norm qk_layernorm apply_residual_connection_post_layernorm
            post_norm use_post_norm alibi is_encoder_decoder add_cross_attention
            use_bidirectional_attention attn_temperature_tuning scale_embedding
            scale_attn_by_inverse_layer_idx cross_attention_hidden_size use_mup tie_encoder_decoder
            attn_output_gate attention_output_gate
            """
        ),
        (_NONE, "false"),
    ),
    **dict.fromkeys(
        _names(
            """
            attn_logit_softcapping final_logit_softcapping logits_soft_cap logit_softcap
            router_logit_softcapping clip_qkv attention_chunk_size num_local_experts num_experts
            n_routed_experts n_shared_experts shared_intermediate_size moe_num_experts
            num_nextn_predict_layers num_kv_shared_layers q_lora_rank kv_lora_rank qk_rope_head_dim
            qk_nope_head_dim v_head_dim swiglu_limit interleave_moe_layer_step first_k_dense_replace
            """
        ),
        (_NONE, "0"),
    ),
    **dict.fromkeys(
        _names(
            """
            quantization_config compression_config pruned_heads text_config vision_config audio_config
            """
        ),
        (_is({}), "nothing"),
    ),
}


class ConfigWarning(MobillamaWarning):
    """A config.json has keys of which nobody here knows whether they change what the model computes."""


def check_keys(tree: Mapping[str, Any], config: ModelConfig, origin: Path) -> None:
    """InputError for the first key that changes the arithmetic; ConfigWarning for those that are unknown."""
    for key, (is_neutral, expected) in CHANGES.items():
        if (found := tree.get(key)) is not None and not is_neutral(found, config, tree):
            raise InputError(
                f"{origin}: {key}={_shown(found)}; a MobiLlama has {expected}: these weights cannot run here"
            )
    known = {*USED, *HARMLESS, *CHANGES, *ModelConfig.model_fields}
    if unknown := sorted(key for key in tree if key not in known):
        names = ", ".join(_shown(key) for key in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        warnings.warn(
            f"{origin}: {names} unknown here, and left out of account; should one of them change what the model"
            " computes, its answers are not those of its maker",
            ConfigWarning,
            stacklevel=2,
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
