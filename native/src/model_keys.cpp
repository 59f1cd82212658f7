#include "model_keys.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "failure.h"
#include "gguf_format.h"
#include "weights.h"

namespace mobillama {

namespace {

// Names are those that llama.cpp reads and the gguf package writes, this package's own among them.
// clang-format off
constexpr ModelKey kKeys[] = {
    {"activation_sparsity_scale", KeyUse::kChanges, Neutral::kZero},
    {"altup.active_idx", KeyUse::kChanges, Neutral::kZero},
    {"altup.num_inputs", KeyUse::kChanges, Neutral::kZero},
    {"attention.causal", KeyUse::kChanges, Neutral::kTrue},
    {"attention.clamp_kqv", KeyUse::kChanges, Neutral::kZero},
    {"attention.decay_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attention.gate_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attention.group_norm_epsilon", KeyUse::kHarmless},
    {"attention.group_norm_groups", KeyUse::kHarmless},
    {"attention.head_count", KeyUse::kUsed},
    {"attention.head_count_kv", KeyUse::kUsed},
    {"attention.iclr_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attention.indexer.head_count", KeyUse::kChanges, Neutral::kZero},
    {"attention.indexer.key_length", KeyUse::kChanges, Neutral::kZero},
    {"attention.indexer.top_k", KeyUse::kChanges, Neutral::kZero},
    {"attention.key_length", KeyUse::kUsed},
    {"attention.key_length_mla", KeyUse::kChanges, Neutral::kZero},
    {"attention.key_length_swa", KeyUse::kHarmless},
    {"attention.kv_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attention.layer_norm_epsilon", KeyUse::kHarmless},
    {"attention.layer_norm_rms_epsilon", KeyUse::kUsed},
    {"attention.max_alibi_bias", KeyUse::kChanges, Neutral::kZero},
    {"attention.output_scale", KeyUse::kChanges, Neutral::kOne},
    {"attention.q_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attention.relative_buckets_count", KeyUse::kChanges, Neutral::kZero},
    {"attention.scale", KeyUse::kChanges, Neutral::kHeadScale},
    {"attention.shared_kv_layers", KeyUse::kChanges, Neutral::kZero},
    {"attention.sliding_window", KeyUse::kChanges, Neutral::kWholeText},
    {"attention.sliding_window_pattern", KeyUse::kHarmless},
    {"attention.temperature_length", KeyUse::kChanges, Neutral::kZero},
    {"attention.temperature_scale", KeyUse::kChanges, Neutral::kZero},
    {"attention.value_length", KeyUse::kUsed},
    {"attention.value_length_mla", KeyUse::kChanges, Neutral::kZero},
    {"attention.value_length_swa", KeyUse::kHarmless},
    {"attention.value_residual_mix_lora_rank", KeyUse::kChanges, Neutral::kZero},
    {"attn_logit_softcapping", KeyUse::kChanges, Neutral::kZero},
    {"block_count", KeyUse::kUsed},
    {"classifier.output_labels", KeyUse::kHarmless},
    {"context_length", KeyUse::kUsed},
    {"convnext.block_count", KeyUse::kChanges, Neutral::kZero},
    {"convnext.embedding_length", KeyUse::kChanges, Neutral::kZero},
    {"decoder_block_count", KeyUse::kChanges, Neutral::kZero},
    {"decoder_start_token_id", KeyUse::kHarmless},
    {"dense_2_feat_in", KeyUse::kChanges, Neutral::kZero},
    {"dense_2_feat_out", KeyUse::kChanges, Neutral::kZero},
    {"dense_3_feat_in", KeyUse::kChanges, Neutral::kZero},
    {"dense_3_feat_out", KeyUse::kChanges, Neutral::kZero},
    {"embedding_length", KeyUse::kUsed},
    {"embedding_length_out", KeyUse::kChanges, Neutral::kWidth},
    {"embedding_length_per_layer_input", KeyUse::kChanges, Neutral::kZero},
    {"embedding_scale", KeyUse::kChanges, Neutral::kOne},
    {"end_token_ids", KeyUse::kUsed},
    {"expert_chunk_feed_forward_length", KeyUse::kHarmless},
    {"expert_count", KeyUse::kChanges, Neutral::kZero},
    {"expert_feed_forward_length", KeyUse::kHarmless},
    {"expert_gating_func", KeyUse::kHarmless},
    {"expert_group_count", KeyUse::kHarmless},
    {"expert_group_scale", KeyUse::kHarmless},
    {"expert_group_used_count", KeyUse::kHarmless},
    {"expert_shared_count", KeyUse::kChanges, Neutral::kZero},
    {"expert_shared_feed_forward_length", KeyUse::kHarmless},
    {"expert_used_count", KeyUse::kHarmless},
    {"expert_weights_norm", KeyUse::kHarmless},
    {"expert_weights_scale", KeyUse::kHarmless},
    {"experts_per_group", KeyUse::kHarmless},
    {"features_length", KeyUse::kChanges, Neutral::kZero},
    {"feed_forward_length", KeyUse::kUsed},
    {"ffn_block_count", KeyUse::kUsed},
    {"final_logit_softcapping", KeyUse::kChanges, Neutral::kZero},
    {"full_attention_interval", KeyUse::kChanges, Neutral::kOne},
    {"hidden_activation", KeyUse::kChanges, Neutral::kActivation},
    {"importance_digest", KeyUse::kUsed},
    {"interleave_moe_layer_step", KeyUse::kHarmless},
    {"kda.head_dim", KeyUse::kChanges, Neutral::kZero},
    {"leading_dense_block_count", KeyUse::kHarmless},
    {"logit_scale", KeyUse::kChanges, Neutral::kOne},
    {"model_digest", KeyUse::kUsed},
    {"moe_every_n_layers", KeyUse::kHarmless},
    {"moe_latent_size", KeyUse::kChanges, Neutral::kZero},
    {"n_deepstack_layers", KeyUse::kChanges, Neutral::kZero},
    {"nextn_predict_layers", KeyUse::kChanges, Neutral::kZero},
    {"pooling_type", KeyUse::kHarmless},
    {"posnet.block_count", KeyUse::kChanges, Neutral::kZero},
    {"posnet.embedding_length", KeyUse::kChanges, Neutral::kZero},
    {"random_weights", KeyUse::kUsed},
    {"rescale_every_n_layers", KeyUse::kChanges, Neutral::kZero},
    {"residual_scale", KeyUse::kChanges, Neutral::kOne},
    {"rope.dimension_count", KeyUse::kUsed},
    {"rope.dimension_count_swa", KeyUse::kHarmless},
    {"rope.dimension_sections", KeyUse::kChanges, Neutral::kZero},
    {"rope.freq_base", KeyUse::kUsed},
    {"rope.freq_base_swa", KeyUse::kHarmless},
    {"rope.scale_linear", KeyUse::kChanges, Neutral::kRopeFactor},
    {"rope.scaling.alpha", KeyUse::kChanges, Neutral::kOne},
    {"rope.scaling.attn_factor", KeyUse::kChanges, Neutral::kOne},
    {"rope.scaling.factor", KeyUse::kChanges, Neutral::kRopeFactor},
    {"rope.scaling.finetuned", KeyUse::kHarmless},
    {"rope.scaling.original_context_length", KeyUse::kHarmless},
    {"rope.scaling.type", KeyUse::kChanges, Neutral::kRopeType},
    {"rope.scaling.yarn_attn_factor", KeyUse::kChanges, Neutral::kOne},
    {"rope.scaling.yarn_beta_fast", KeyUse::kHarmless},
    {"rope.scaling.yarn_beta_slow", KeyUse::kHarmless},
    {"rope.scaling.yarn_ext_factor", KeyUse::kHarmless},
    {"rope.scaling.yarn_log_multiplier", KeyUse::kHarmless},
    {"router_logit_softcapping", KeyUse::kHarmless},
    {"shards_digest", KeyUse::kUsed},
    {"shards_name", KeyUse::kUsed},
    {"shortconv.l_cache", KeyUse::kChanges, Neutral::kZero},
    {"ssm.conv_kernel", KeyUse::kChanges, Neutral::kZero},
    {"ssm.dt_b_c_rms", KeyUse::kChanges, Neutral::kZero},
    {"ssm.group_count", KeyUse::kChanges, Neutral::kZero},
    {"ssm.inner_size", KeyUse::kChanges, Neutral::kZero},
    {"ssm.state_size", KeyUse::kChanges, Neutral::kZero},
    {"ssm.time_step_rank", KeyUse::kChanges, Neutral::kZero},
    {"swiglu_clamp_exp", KeyUse::kChanges, Neutral::kZero},
    {"swiglu_clamp_shexp", KeyUse::kChanges, Neutral::kZero},
    {"swin_norm", KeyUse::kChanges, Neutral::kZero},
    {"tensor_data_layout", KeyUse::kChanges, Neutral::kRowOrder},
    {"time_decay_extra_dim", KeyUse::kChanges, Neutral::kZero},
    {"time_mix_extra_dim", KeyUse::kChanges, Neutral::kZero},
    {"token_shift_count", KeyUse::kChanges, Neutral::kZero},
    {"types", KeyUse::kUsed},
    {"use_parallel_residual", KeyUse::kChanges, Neutral::kZero},
    {"vocab_size", KeyUse::kHarmless},
    {"wkv.head_size", KeyUse::kChanges, Neutral::kZero},
};
// clang-format on

struct Meaning {
  const Gguf& gguf;
  const std::string prefix;  // "llama."
  const Shape& shape;

  // The values of a key, whatever the type of its number; nothing where it holds text.
  std::optional<std::vector<double>> numbers(const std::string& key) const {
    if (gguf.is_text(key)) return std::nullopt;
    if (!gguf.is_array(key)) return std::vector{gguf.number(key)};
    const std::vector<float> items = gguf.numbers(key);
    return std::vector<double>(items.begin(), items.end());
  }

  template <class Test>
  bool all(const std::string& key, Test&& test) const {
    const auto found = numbers(key);
    return found && std::all_of(found->begin(), found->end(), test);
  }

  bool is_neutral(const std::string& key, Neutral neutral) const {
    const auto is_text = [&](std::string_view expected) { return gguf.is_text(key) && gguf.text(key) == expected; };
    const std::string type = prefix + "rope.scaling.type";
    switch (neutral) {
      case Neutral::kNone: return false;
      case Neutral::kZero: return all(key, [](double value) { return value == 0; });
      case Neutral::kOne: return all(key, [](double value) { return value == 0 || value == 1; });
      case Neutral::kTrue: return all(key, [](double value) { return value == 1; });
      case Neutral::kWidth:
        return all(key, [&](double value) { return value == 0 || value == shape.hidden_size; });
      case Neutral::kHeadScale: {
        const double scale = 1 / std::sqrt(double(shape.head_dim));  // files have it as a float, or rounded for people
        return all(key, [&](double value) { return value == 0 || std::abs(value - scale) < 1e-4 * scale; });
      }
      case Neutral::kWholeText:
        return all(key, [&](double value) { return value == 0 || value >= shape.context_length; });
      case Neutral::kRopeFactor:
        return (gguf.has(type) && gguf.is_text(type) && gguf.text(type) == "none") || is_neutral(key, Neutral::kOne);
      case Neutral::kRopeType: return is_text("none") || is_text("linear");
      case Neutral::kActivation: return is_text("silu");
      case Neutral::kRowOrder: return is_text("reference") || is_text("Meta AI original pth");
    }
    return false;
  }

  std::string shown_value(const std::string& key) const {
    if (gguf.is_array(key)) return "an array";
    if (gguf.is_text(key)) return format::shown(gguf.text(key));
    char text[32];
    std::snprintf(text, sizeof text, "%g", gguf.number(key));
    return text;
  }
};

}  // namespace

const char* expected_of(Neutral neutral) {
  switch (neutral) {
    case Neutral::kNone: return "no such key";
    case Neutral::kZero: return "0";
    case Neutral::kOne:
    case Neutral::kRopeFactor: return "1";
    case Neutral::kTrue: return "true";
    case Neutral::kWidth: return "the embedding's width";
    case Neutral::kHeadScale: return "1 / sqrt(head size)";
    case Neutral::kWholeText: return "0, or a window of the whole context";
    case Neutral::kRopeType: return "none, or linear with a factor of 1";
    case Neutral::kActivation: return "silu";
    case Neutral::kRowOrder: return "reference";
  }
  return "";
}

std::span<const ModelKey> model_keys() { return kKeys; }

void check_keys(const Gguf& gguf, const std::string& path, const std::string& architecture, const Shape& shape,
                const std::vector<std::string>& ignored) {
  constexpr const char* kRemedy = "to compute without it, give its name to --ignore-key (in Python, ignore_keys)";
  const Meaning meaning{gguf, architecture + ".", shape};
  const std::string file = shown_path(path);
  std::vector<std::string> wanted = ignored;  // less those that are found to stand in the way
  for (const std::string& key : gguf.keys(meaning.prefix)) {
    const std::string_view name = std::string_view(key).substr(meaning.prefix.size());
    const auto* known = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const ModelKey& one) { return one.name == name; });
    if (known != std::end(kKeys) && (known->use != KeyUse::kChanges || meaning.is_neutral(key, known->neutral))) continue;
    if (std::erase(wanted, key) > 0) continue;
    if (known == std::end(kKeys)) {
      fail(MOBILLAMA_UNSUPPORTED, "%s: key %s is not known to this engine and may change what the model computes; %s",
           file.c_str(), format::shown(key).c_str(), kRemedy);
    }
    fail(MOBILLAMA_UNSUPPORTED, "%s: key %s is %s, which changes what the model computes; this engine knows %s: %s",
         file.c_str(), format::shown(key).c_str(), meaning.shown_value(key).c_str(), expected_of(known->neutral),
         kRemedy);
  }
  if (!wanted.empty()) {
    fail(MOBILLAMA_INVALID, "%s: key %s was to be ignored, but %s; leave it out", file.c_str(),
         format::shown(wanted[0]).c_str(), gguf.has(wanted[0]) ? "it is understood" : "there is no such key");
  }
}

}  // namespace mobillama
