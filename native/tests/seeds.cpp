#include "seeds.h"

#include <cstring>
#include <initializer_list>

#include "tensor_type.h"

using mobillama::TensorType;

namespace {

constexpr size_t alignment = 32;

template <typename T>
std::string bytes(T value) {
  std::string out(sizeof value, '\0');
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

std::string text(const std::string& value) { return bytes<uint64_t>(value.size()) + value; }

void align(std::string& out) { out.resize((out.size() + alignment - 1) / alignment * alignment, '\0'); }

struct Model {
  std::string architecture;
  uint32_t vocab, hidden, layers, heads, kv_heads, ffn, ffn_blocks;
  bool tied;
  TensorType embedding, q, k, v, o, gate, up, down, head;
};

class Builder {
 public:
  explicit Builder(const Model& model) : model_(model) {}

  Draft build() {
    const uint32_t kv = model_.hidden / model_.heads * model_.kv_heads;
    keys();
    matrix("token_embd.weight", model_.vocab, model_.hidden, model_.embedding);
    norm("output_norm.weight");
    if (!model_.tied) matrix("output.weight", model_.vocab, model_.hidden, model_.head);
    uint32_t last = model_.ffn_blocks;
    for (uint32_t i = 0; i < model_.layers; ++i) {
      const std::string prefix = "blk." + std::to_string(i) + ".";
      norm(prefix + "attn_norm.weight");
      matrix(prefix + "attn_q.weight", model_.hidden, model_.hidden, model_.q);
      matrix(prefix + "attn_k.weight", kv, model_.hidden, model_.k);
      matrix(prefix + "attn_v.weight", kv, model_.hidden, model_.v);
      matrix(prefix + "attn_output.weight", model_.hidden, model_.hidden, model_.o);
      norm(prefix + "ffn_norm.weight");
      const uint32_t block = i * model_.ffn_blocks / model_.layers;
      if (block != last) {
        matrix(prefix + "ffn_gate.weight", model_.ffn, model_.hidden, model_.gate);
        matrix(prefix + "ffn_up.weight", model_.ffn, model_.hidden, model_.up);
        matrix(prefix + "ffn_down.weight", model_.hidden, model_.ffn, model_.down);
      }
      last = block;
    }
    return draft_;
  }

 private:
  void key(const std::string& name, uint32_t type, const std::string& value) {
    draft_.keys.push_back({name, type, value});
  }
  void whole(const std::string& name, uint32_t value) { key(name, 4, bytes(value)); }
  void number(const std::string& name, float value) { key(name, 6, bytes(value)); }

  void keys() {
    const std::string prefix = model_.architecture + ".";
    key("general.architecture", 8, text(model_.architecture));
    whole(prefix + "context_length", 16);
    whole(prefix + "embedding_length", model_.hidden);
    whole(prefix + "block_count", model_.layers);
    whole(prefix + "feed_forward_length", model_.ffn);
    whole(prefix + "attention.head_count", model_.heads);
    whole(prefix + "attention.head_count_kv", model_.kv_heads);
    number(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
    number(prefix + "rope.freq_base", 10000);
    whole(prefix + "rope.dimension_count", model_.hidden / model_.heads);
    whole(prefix + "vocab_size", model_.vocab);
    if (model_.architecture == "mobillama") whole(prefix + "ffn_block_count", model_.ffn_blocks);
    std::string tokens, scores, types;
    static const std::string first[] = {"<unk>", "<s>", "</s>", "<0x0A>",
                                        "\xe2\x96\x81"
                                        "a"};
    static constexpr int32_t kinds[] = {2, 3, 3, 6, 1};  // unknown, control twice, a byte, normal
    for (uint32_t i = 0; i < model_.vocab; ++i) {
      tokens += text(i < 5 ? first[i] : std::string(1, char('a' + i - 5)));
      scores += bytes(i < 4 ? 0.0f : -float(i));
      types += bytes(i < 5 ? kinds[i] : 1);
    }
    key("tokenizer.ggml.model", 8, text("llama"));
    key("tokenizer.ggml.tokens", 9, bytes<uint32_t>(8) + bytes<uint64_t>(model_.vocab) + tokens);
    key("tokenizer.ggml.scores", 9, bytes<uint32_t>(6) + bytes<uint64_t>(model_.vocab) + scores);
    key("tokenizer.ggml.token_type", 9, bytes<uint32_t>(5) + bytes<uint64_t>(model_.vocab) + types);
    whole("tokenizer.ggml.bos_token_id", 1);
    whole("tokenizer.ggml.eos_token_id", 2);
    whole("tokenizer.ggml.unknown_token_id", 0);
    key("tokenizer.ggml.add_bos_token", 7, std::string(1, '\0'));
    key("tokenizer.ggml.add_space_prefix", 7, std::string(1, '\1'));
  }

  float random() {  // in [-0.5, 0.5)
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return float(state_ >> 40) * 0x1p-24f - 0.5f;
  }

  void matrix(const std::string& name, uint32_t rows, uint32_t cols, TensorType type) {
    const auto row = size_t(mobillama::row_bytes(int32_t(type), cols));
    DraftTensor tensor{name, {cols, rows}, uint32_t(type), std::string(row * rows, '\0'), {}};
    std::vector<float> weights(cols);
    for (uint32_t r = 0; r < rows; ++r) {
      for (float& weight : weights) weight = random();
      mobillama::quantize_row(type, weights.data(), cols, nullptr, tensor.data.data() + row * r);
    }
    draft_.tensors.push_back(std::move(tensor));
  }

  void norm(const std::string& name) {
    DraftTensor tensor{name, {model_.hidden}, 0, {}, {}};
    for (uint32_t i = 0; i < model_.hidden; ++i) tensor.data += bytes(1 + random());
    draft_.tensors.push_back(std::move(tensor));
  }

  const Model model_;
  Draft draft_;
  uint64_t state_ = 1;
};

}  // namespace

std::string Draft::write() const {
  std::string out = magic + bytes(version) + bytes<uint64_t>(num_tensors.value_or(tensors.size())) +
                    bytes<uint64_t>(num_keys.value_or(keys.size()));
  for (const DraftKey& key : keys) out += text(key.name) + bytes(key.type) + key.value;
  std::string data;
  for (const DraftTensor& tensor : tensors) {
    align(data);
    out += text(tensor.name) + bytes(uint32_t(tensor.dims.size()));
    for (const uint64_t dim : tensor.dims) out += bytes(dim);
    out += bytes(tensor.type) + bytes<uint64_t>(tensor.offset.value_or(data.size()));
    data += tensor.data;
  }
  align(out);
  return out + data;
}

std::vector<Draft> seeds() {
  using enum TensorType;
  const Model shared{"mobillama", 8, 32, 2, 2, 1, 32, 1, true, Q4_0, Q4_0, Q4_0, Q4_0, Q4_0, Q4_0, Q4_0, Q4_0, Q4_0};
  const Model dense{"llama", 6, 32, 1, 2, 1, 32, 1, false, F16, Q5_0, F16, Q8_0, Q4_0, Q4_0, Q5_0, Q4_0, F32};
  // Q6_K and Q3_K take rows of 256: a narrow model with a wide FFN has them in few bytes.
  const Model narrow{"mobillama", 5, 4, 2, 1, 1, 256, 1, false, BF16, F32, F16, BF16, F32, F16, BF16, Q6_K, F16};
  Model three = narrow;
  three.down = Q3_K;
  return {Builder(shared).build(), Builder(dense).build(), Builder(narrow).build(), Builder(three).build()};
}
