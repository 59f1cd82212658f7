#include <algorithm>
#include <cstring>

#include "context.h"
#include "failure.h"
#include "tensor_type.h"

namespace mobillama {
namespace {

size_t item_bytes(mobillama_kv_type type) { return type == MOBILLAMA_KV_F32 ? 4 : type == MOBILLAMA_KV_F16 ? 2 : 1; }

constexpr size_t kFirstBlocks = 512 / kKvBlock;
constexpr size_t kGivenBack = size_t{8} << 20;      // bytes at a time, for a call each is slow
constexpr size_t kAddressSpace = size_t{1} << 47;  // of a process

size_t blocks_for(int tokens) { return (static_cast<size_t>(tokens) + kKvBlock - 1) / kKvBlock; }

[[noreturn]] void too_large() {
  fail(MOBILLAMA_MEMORY, "keys and values of these sequences exceed the address space; ask for fewer or shorter ones");
}

size_t product(std::initializer_list<size_t> factors) {
  size_t all = 1;
  for (const size_t factor : factors)
    if (__builtin_mul_overflow(all, factor, &all)) too_large();
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
      most_blocks_(blocks_for(max_tokens)),
      sequences_(static_cast<size_t>(max_sequences)) {
  if (product({static_cast<size_t>(max_sequences), all_heads(), 2, most_blocks_, block_bytes()}) >= kAddressSpace)
    too_large();
}

// 2 MB pages: with small ones, missing pages in the processor's table cost a quarter of the attention's time. So a
// sequence does not grow page by page, which would be pages of every head: it moves to larger memory.
void KvCache::reserve(int sequence, int kept, int tokens) {
  Sequence& now = sequences_[static_cast<size_t>(sequence)];
  const size_t wanted = blocks_for(tokens);
  if (wanted <= now.blocks) return;
  Sequence larger;
  larger.blocks = std::max(now.blocks, kFirstBlocks);
  while (larger.blocks < wanted) larger.blocks *= 2;
  larger.blocks = std::min(larger.blocks, most_blocks_);
  larger.memory = Buffer(all_heads() * 2 * plane(larger));
  // What was copied is given back at once, from the end, so that there is never much more than the larger memory.
  size_t left = now.memory.bytes();
  for (size_t index = all_heads(); kept > 0 && index-- > 0;) {
    copy_head(head_of(now, index), head_of(larger, index), kept);
    const size_t before = 2 * index * plane(now);
    if (left - before < kGivenBack) continue;
    now.memory.forget(before);
    left = before;
  }
  std::swap(now, larger);
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
  for (size_t index = 0; tokens > 0 && index < all_heads(); index++)
    copy_head(head_of(sequences_[static_cast<size_t>(from)], index), head_of(sequences_[static_cast<size_t>(to)], index),
              tokens);
}

void KvCache::copy_head(uint8_t* from, uint8_t* to, int tokens) const {
  const uint8_t *first = key_block(from, tokens - 1), *end = value(from, tokens - 1) + row_bytes();
  std::memcpy(key_block(to, tokens - 1), first, static_cast<size_t>(end - first));
}

}  // namespace mobillama
