#include <cstring>

#include "context.h"
#include "failure.h"
#include "tensor_type.h"

namespace mobillama {
namespace {

size_t item_bytes(mobillama_kv_type type) { return type == MOBILLAMA_KV_F32 ? 4 : type == MOBILLAMA_KV_F16 ? 2 : 1; }

size_t product(std::initializer_list<size_t> factors) {
  size_t all = 1;
  for (const size_t factor : factors)
    if (__builtin_mul_overflow(all, factor, &all))
      fail(MOBILLAMA_MEMORY,
           "keys and values of these sequences exceed the address space; ask for fewer or shorter ones");
  return all;
}

}  // namespace

KvCache::KvCache(const Shape& shape, mobillama_kv_type type, int max_tokens, int max_sequences)
    : layers_(shape.num_hidden_layers),
      heads_(shape.num_key_value_heads),
      head_dim_(shape.head_dim),
      type_(type),
      item_(item_bytes(type)),
      positions_((static_cast<size_t>(max_tokens) + kBlock - 1) / kBlock * kBlock) {
  const size_t planes =
      product({static_cast<size_t>(max_sequences), static_cast<size_t>(layers_), static_cast<size_t>(heads_), 2});
  // 2 MB pages, though a sequence's first token then takes the memory of all its tokens: with small ones, missing pages
  // in the processor's table cost a quarter of the attention's time.
  memory_ = Buffer(product({planes, positions_, static_cast<size_t>(head_dim_), item_}));
  if (type == MOBILLAMA_KV_INT8) scales_ = Buffer(product({planes, positions_, sizeof(float)}), false);
}

int64_t KvCache::bytes_per_token() const {
  const size_t each = static_cast<size_t>(head_dim_) * item_ + (type_ == MOBILLAMA_KV_INT8 ? sizeof(float) : 0);
  return static_cast<int64_t>(2 * static_cast<size_t>(layers_) * static_cast<size_t>(heads_) * each);
}

KvCache::Head KvCache::head(int sequence, int layer, int head) const {
  const size_t index = (static_cast<size_t>(sequence) * static_cast<size_t>(layers_) + static_cast<size_t>(layer)) *
                           static_cast<size_t>(heads_) +
                       static_cast<size_t>(head);
  uint8_t* middle = memory_.data() + (2 * index + 1) * plane();
  float* scales =
      type_ == MOBILLAMA_KV_INT8 ? reinterpret_cast<float*>(scales_.data()) + 2 * index * positions_ : nullptr;
  return {middle, scales, scales == nullptr ? nullptr : scales + positions_};
}

void KvCache::store(const Kernels& kernels, const Head& head, int position, const float* key,
                    const float* value) const {
  const size_t dim = static_cast<size_t>(head_dim_), lane = static_cast<size_t>(position) % kBlock;
  uint8_t *keys = key_block(head, position), *values = this->value(head, position);
  switch (type_) {
    case MOBILLAMA_KV_F32:
      for (size_t d = 0; d < dim; d++) std::memcpy(keys + 4 * (kBlock * d + lane), key + d, 4);
      std::memcpy(values, value, dim * 4);
      return;
    case MOBILLAMA_KV_F16: {
      uint16_t halves[kMaxHeadDim];
      kernels.to_half(key, head_dim_, halves);
      for (size_t d = 0; d < dim; d++) std::memcpy(keys + 2 * (kBlock * d + lane), halves + d, 2);
      kernels.to_half(value, head_dim_, reinterpret_cast<uint16_t*>(values));
      return;
    }
    case MOBILLAMA_KV_INT8: {
      int8_t codes[kMaxHeadDim];
      int32_t sum;
      kernels.quantize(key, head_dim_, head_dim_, codes, head.key_scales + position, &sum, nullptr);
      for (size_t d = 0; d < dim; d += 4)
        for (size_t i = 0; i < 4; i++) keys[kBlock * d + 4 * lane + i] = static_cast<uint8_t>(codes[d + i] + 128);
      kernels.quantize(value, head_dim_, head_dim_, reinterpret_cast<int8_t*>(values), head.value_scales + position,
                       &sum, nullptr);
    }
  }
}

void KvCache::copy(int from, int to, int tokens) const {
  if (tokens == 0) return;
  for (int layer = 0; layer < layers_; layer++)
    for (int h = 0; h < heads_; h++) {
      const Head source = head(from, layer, h), target = head(to, layer, h);
      const uint8_t* first = key_block(source, tokens - 1);
      std::memcpy(key_block(target, tokens - 1), first, static_cast<size_t>(value(source, tokens) - first));
      if (type_ != MOBILLAMA_KV_INT8) continue;
      std::memcpy(target.key_scales, source.key_scales, static_cast<size_t>(tokens) * sizeof(float));
      std::memcpy(target.value_scales, source.value_scales, static_cast<size_t>(tokens) * sizeof(float));
    }
}

}  // namespace mobillama
