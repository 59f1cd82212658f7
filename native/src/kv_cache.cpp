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
      scale_bytes_(type == MOBILLAMA_KV_INT8 ? kScaleBytes<int8_t> : 0),
      blocks_((static_cast<size_t>(max_tokens) + kKvBlock - 1) / kKvBlock) {
  // 2 MB pages, though a sequence's first token then takes the memory of all its tokens: with small ones, missing pages
  // in the processor's table cost a quarter of the attention's time.
  memory_ = Buffer(product({static_cast<size_t>(max_sequences), static_cast<size_t>(layers_),
                            static_cast<size_t>(heads_), 2, blocks_, block_bytes()}));
}

int64_t KvCache::bytes_per_token() const {
  const size_t each = block_bytes() / kKvBlock;
  return static_cast<int64_t>(2 * static_cast<size_t>(layers_) * static_cast<size_t>(heads_) * each);
}

void KvCache::fetch_to_write(uint8_t* head, int position) const {
  const auto fetch = [](const uint8_t* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 1, 2);
  };
  fetch(key_block(head, position), block_bytes());
  fetch(value_block(head, position), scale_bytes_);
  fetch(value(head, position), row_bytes());
}

void KvCache::store(const Kernels& kernels, uint8_t* head, int position, const float* key, const float* value) const {
  const size_t dim = static_cast<size_t>(head_dim_), lane = static_cast<size_t>(position % kKvBlock);
  uint8_t* key_scales = key_block(head, position);
  uint8_t *keys = key_scales + scale_bytes_, *values = this->value(head, position);
  switch (type_) {
    case MOBILLAMA_KV_F32:
      for (size_t d = 0; d < dim; d++) std::memcpy(keys + 4 * (kKvBlock * d + lane), key + d, 4);
      std::memcpy(values, value, dim * 4);
      return;
    case MOBILLAMA_KV_F16: {
      uint16_t halves[kMaxHeadDim];
      kernels.to_half(key, head_dim_, halves);
      for (size_t d = 0; d < dim; d++) std::memcpy(keys + 2 * (kKvBlock * d + lane), halves + d, 2);
      kernels.to_half(value, head_dim_, reinterpret_cast<uint16_t*>(values));
      return;
    }
    case MOBILLAMA_KV_INT8: {
      int8_t codes[kMaxHeadDim];
      float scale;
      int32_t sum;
      kernels.quantize(key, head_dim_, head_dim_, codes, &scale, &sum, nullptr);
      std::memcpy(key_scales + 4 * lane, &scale, 4);
      for (size_t d = 0; d < dim; d += 4)
        for (size_t i = 0; i < 4; i++) keys[kKvBlock * d + 4 * lane + i] = static_cast<uint8_t>(codes[d + i] + 128);
      kernels.quantize(value, head_dim_, head_dim_, reinterpret_cast<int8_t*>(values), &scale, &sum, nullptr);
      std::memcpy(value_block(head, position) + 4 * lane, &scale, 4);
    }
  }
}

void KvCache::copy(int from, int to, int tokens) const {
  if (tokens == 0) return;
  for (int layer = 0; layer < layers_; layer++)
    for (int h = 0; h < heads_; h++) {
      uint8_t *source = head(from, layer, h), *target = head(to, layer, h);
      const uint8_t *first = key_block(source, tokens - 1), *end = value(source, tokens - 1) + row_bytes();
      std::memcpy(key_block(target, tokens - 1), first, static_cast<size_t>(end - first));
    }
}

}  // namespace mobillama
