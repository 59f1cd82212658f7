// The integer kernels of AArch64, for any way to multiply bytes. A panel of 16 rows is four registers of 4 lanes.
//
// `Isa` has kBlock (the most tokens at once) and
//   Sum                              dot products of 4 rows, zero when made
//   add<kLane>(sum, codes, q)        4 rows x 4 signed codes, times bytes 4 * kLane to 4 * kLane + 3 of q
//   widen(sum)                       to be called before the sum of an int16 can overflow; beside each call stands how
//                                    far it can have grown
//   total(sum)                       int32x4_t, after widen
// One that multiplies several vectors at once has a `Sums` of its own.
#pragma once

#include <arm_neon.h>

#include <utility>

#include "kernels.h"
#include "kernels_multiply.h"

namespace mobillama {
namespace {  // each file that includes this is built with its own instruction set and must keep its own copy

constexpr int kAhead = 4096;  // bytes between a streamed weight's prefetch and its use

template <int kBytes>
inline void prefetch_ahead(const uint8_t* at) {
  for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(at + kAhead + line, 0, 0);
}

// f(0), ..., f(kCount - 1) with the index known to the compiler: lanes are part of the instruction.
template <class F, int... kIndex>
inline void unroll(std::integer_sequence<int, kIndex...>, F f) {
  (f(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class F>
inline void unroll(F f) {
  unroll(std::make_integer_sequence<int, kCount>{}, f);
}

inline float32x4_t load4(const float* at) { return vld1q_f32(at); }
inline float32x4_t load4(const uint16_t* at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }
inline float32x4_t load_scales(const uint8_t* at) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))); }
inline int8x16_t load_signed(const uint8_t* codes) {
  return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes), vdupq_n_u8(128)));
}

struct Nibbles {
  uint8x16_t low, high;  // of 4 rows, column groups j and j + 4
  Nibbles(const uint8_t* tile, int j, int quad) {
    const uint8x16_t both = vld1q_u8(tile + 64 * j + 16 * quad);
    low = vandq_u8(both, vdupq_n_u8(15));
    high = vshrq_n_u8(both, 4);
  }
};

// Dot products of 4 rows with kTokens vectors.
template <class Isa, int kTokens>
struct Sums {
  typename Isa::Sum of[kTokens] = {};

  // 4 rows x 8 signed codes, column groups `even` and `odd`, times bytes 8 * kPair to 8 * kPair + 7 of q[t] + from.
  template <int kPair>
  void add(int8x16_t even, int8x16_t odd, const int8_t* const q[kTokens], int from) {
    for (int t = 0; t < kTokens; t++) {
      Isa::template add<2 * kPair>(of[t], even, vld1q_s8(q[t] + from));
      Isa::template add<2 * kPair + 1>(of[t], odd, vld1q_s8(q[t] + from));
    }
  }
  void widen() {
    for (int t = 0; t < kTokens; t++) Isa::widen(of[t]);
  }
  int32x4_t total(int t) const { return Isa::total(of[t]); }
};

inline int8x16_t as_signed(uint8x16_t codes) { return vreinterpretq_s8_u8(codes); }

// ---- codes of a tile: `add` puts the dot products of 32 columns into sums[quad] ----

struct Q4 {
  static constexpr int kBytes = 288, kOffset = 8;
  template <class Isa, int kTokens>
  static void add(const uint8_t* tile, const int8_t* const q[kTokens], Sums<Isa, kTokens> sums[4]) {
    unroll<2>([&](auto pair) {
      for (int quad = 0; quad < 4; quad++) {
        const Nibbles even(tile, 2 * pair, quad), odd(tile, 2 * pair + 1, quad);
        sums[quad].template add<pair>(as_signed(even.low), as_signed(odd.low), q, 0);
        sums[quad].template add<pair>(as_signed(even.high), as_signed(odd.high), q, 16);
      }
    });
    for (int quad = 0; quad < 4; quad++) sums[quad].widen();  // 8 groups x 15 x 127 = 15,240
  }
};

struct Q5 {
  static constexpr int kBytes = 352, kOffset = 16;
  // 16 where bit 4 * row + i of column group j's mask is set, for the four rows of a quad.
  static uint8x16_t fifth_bits(const uint8_t* tile, int j, int quad) {
    const uint8_t* mask = tile + 256 + 8 * j + 2 * quad;
    const uint8x16_t bytes = vcombine_u8(vld1_dup_u8(mask), vld1_dup_u8(mask + 1));
    const uint8x16_t bit_of = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    return vandq_u8(vtstq_u8(bytes, bit_of), vdupq_n_u8(16));
  }
  template <class Isa, int kTokens>
  static void add(const uint8_t* tile, const int8_t* const q[kTokens], Sums<Isa, kTokens> sums[4]) {
    unroll<2>([&](auto pair) {
      for (int quad = 0; quad < 4; quad++) {
        const auto with_fifth = [&](uint8x16_t nibbles, int j) {
          return as_signed(vorrq_u8(nibbles, fifth_bits(tile, j, quad)));
        };
        const Nibbles even(tile, 2 * pair, quad), odd(tile, 2 * pair + 1, quad);
        sums[quad].template add<pair>(with_fifth(even.low, 2 * pair), with_fifth(odd.low, 2 * pair + 1), q, 0);
        sums[quad].template add<pair>(with_fifth(even.high, 2 * pair + 4), with_fifth(odd.high, 2 * pair + 5), q, 16);
      }
    });
    for (int quad = 0; quad < 4; quad++) sums[quad].widen();  // 8 groups x 31 x 127 = 31,496
  }
};

struct Q8 {
  static constexpr int kBytes = 544, kOffset = 0;  // the codes are made signed instead
  template <class Isa, int kTokens>
  static void add(const uint8_t* tile, const int8_t* const q[kTokens], Sums<Isa, kTokens> sums[4]) {
    unroll<4>([&](auto pair) {
      for (int quad = 0; quad < 4; quad++) {
        const uint8_t* codes = tile + 128 * pair + 16 * quad;
        sums[quad].template add<pair % 2>(load_signed(codes), load_signed(codes + 64), q, 16 * (pair / 2));
        sums[quad].widen();  // 2 groups x 128 x 127 = 32,512
      }
    });
  }
};

// kTokens activation vectors against one panel: a tile's codes are unpacked once for all of them.
template <class Isa, class Codes>
struct Groups {
  static constexpr int kBlock = Isa::kBlock;
  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* tile, const Activations& x, int first, float* y, size_t stride) {
    const int groups = w.cols / kGroup;
    float32x4_t acc[kTokens][4];
    const int8_t* q[kTokens];
    size_t at[kTokens];
    for (int t = 0; t < kTokens; t++) {
      at[t] = size_t(first + t) * size_t(groups);
      q[t] = x.q + at[t] * kGroup;
      for (int quad = 0; quad < 4; quad++) acc[t][quad] = vdupq_n_f32(0);
    }
    for (int g = 0; g < groups; g++, tile += Codes::kBytes) {
      if constexpr (kStream) prefetch_ahead<Codes::kBytes>(tile);
      Sums<Isa, kTokens> sums[4];
      Codes::template add<Isa, kTokens>(tile, q, sums);
      for (int quad = 0; quad < 4; quad++) {
        const float32x4_t weight_scale = load_scales(tile + Codes::kBytes - 32 + 8 * quad);
        for (int t = 0; t < kTokens; t++) {
          int32x4_t dot = sums[quad].total(t);
          if constexpr (Codes::kOffset != 0) dot = vsubq_s32(dot, vdupq_n_s32(Codes::kOffset * x.sum[at[t]]));
          acc[t][quad] = vfmaq_f32(acc[t][quad], vcvtq_f32_s32(dot), vmulq_n_f32(weight_scale, x.scale[at[t]]));
        }
      }
      for (int t = 0; t < kTokens; t++) at[t]++, q[t] += kGroup;
    }
    for (int t = 0; t < kTokens; t++)
      for (int quad = 0; quad < 4; quad++) vst1q_f32(y + size_t(first + t) * stride + 4 * quad, acc[t][quad]);
  }
};

// ---- codes of half a tile of 32 columns: unpack gives its four column groups of 4 rows ----

struct Q6 {
  static constexpr int kTile = 384, kOffset = 32;
  template <int kHalf>
  static void unpack(const uint8_t* tile, int quad, uint8x16_t codes[4]) {
    const uint8x16_t two_bits = vdupq_n_u8(0x30), bits = vld1q_u8(tile + 256 + 64 * kHalf + 16 * quad);
    const uint8x16_t shifted[4] = {vshlq_n_u8(bits, 4), vshlq_n_u8(bits, 2), bits, vshrq_n_u8(bits, 2)};
    for (int i = 0; i < 4; i++) {
      const Nibbles nibbles(tile, i, quad);
      codes[i] = vorrq_u8(kHalf == 0 ? nibbles.low : nibbles.high, vandq_u8(shifted[i], two_bits));
    }
  }
};
struct Q3 {
  static constexpr int kTile = 192, kOffset = 4;
  template <int kHalf>
  static void unpack(const uint8_t* tile, int quad, uint8x16_t codes[4]) {
    uint8x16_t blocks[3];
    for (int b = 0; b < 3; b++) {
      blocks[b] = vld1q_u8(tile + 64 * b + 16 * quad);
      codes[b] = vandq_u8(kHalf == 0 ? blocks[b] : vshrq_n_u8(blocks[b], 3), vdupq_n_u8(7));
    }
    const uint8x16_t lowest = vandq_u8(vshrq_n_u8(blocks[2], 6 + kHalf), vdupq_n_u8(1));
    codes[3] = vorrq_u8(vshlq_n_u8(vshrq_n_u8(blocks[kHalf], 6), 1), lowest);
  }
};

template <class Isa, class Codes>
struct Supers {
  static constexpr int kBlock = Isa::kBlock, kTile = Codes::kTile;

  // The sixteenth kHalf of a tile: dots[t][quad] += (its scale) * (code - kOffset) . q.
  template <int kHalf, int kTokens>
  static void add(const uint8_t* tile, const uint8_t* scales, const int8_t* const q[kTokens],
                  const int32_t* const half_sum[kTokens], int32x4_t dots[kTokens][4]) {
    const int8x16_t bytes = vld2q_s8(reinterpret_cast<const int8_t*>(scales)).val[kHalf];
    const int16x8_t words[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
    for (int quad = 0; quad < 4; quad++) {
      Sums<Isa, kTokens> sums;
      uint8x16_t codes[4];
      Codes::template unpack<kHalf>(tile, quad, codes);
      unroll<2>([&](auto pair) {
        sums.template add<pair>(as_signed(codes[2 * pair]), as_signed(codes[2 * pair + 1]), q, 16 * kHalf);
      });
      sums.widen();  // of Q6 4 groups x 63 x 127 = 32,004
      const int32x4_t scale =
          quad % 2 == 0 ? vmovl_s16(vget_low_s16(words[quad / 2])) : vmovl_high_s16(words[quad / 2]);
      for (int t = 0; t < kTokens; t++) {
        const int32x4_t dot = vsubq_s32(sums.total(t), vdupq_n_s32(Codes::kOffset * half_sum[t][kHalf]));
        dots[t][quad] = vmlaq_s32(dots[t][quad], dot, scale);
      }
    }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* block, const Activations& x, int first, float* y, size_t stride) {
    constexpr int kGroups = kSuper / kGroup, kBytes = 288 + kGroups * kTile;
    const int groups = w.cols / kGroup;
    float32x4_t acc[kTokens][4];
    const int8_t* q[kTokens];
    const int32_t* half_sum[kTokens];
    const float* scale[kTokens];
    for (int t = 0; t < kTokens; t++) {
      const size_t at = size_t(first + t) * size_t(groups);
      q[t] = x.q + at * kGroup;
      half_sum[t] = x.half_sum + 2 * at;
      scale[t] = x.scale + at;
      for (int quad = 0; quad < 4; quad++) acc[t][quad] = vdupq_n_f32(0);
    }
    for (int g = 0; g < groups; g++) {
      const int inside = g % kGroups;
      const uint8_t* tile = block + 288 + kTile * inside;
      const uint8_t* scales = block + 32 + 32 * inside;
      if constexpr (kStream) prefetch_ahead<kTile>(tile);
      int32x4_t dots[kTokens][4] = {};
      add<0, kTokens>(tile, scales, q, half_sum, dots);
      add<1, kTokens>(tile, scales, q, half_sum, dots);
      for (int quad = 0; quad < 4; quad++) {
        const float32x4_t weight_scale = load_scales(block + 8 * quad);
        for (int t = 0; t < kTokens; t++)
          acc[t][quad] = vfmaq_f32(acc[t][quad], vcvtq_f32_s32(dots[t][quad]), vmulq_n_f32(weight_scale, scale[t][g]));
      }
      for (int t = 0; t < kTokens; t++) q[t] += kGroup, half_sum[t] += 2;
      if (inside == kGroups - 1) block += kBytes;
    }
    for (int t = 0; t < kTokens; t++)
      for (int quad = 0; quad < 4; quad++) vst1q_f32(y + size_t(first + t) * stride + 4 * quad, acc[t][quad]);
  }
};

template <class Isa>
void scores_int8(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& soon) {
  const int last = (length - 1) / 16 * 16;
  const uint8_t* at = keys - size_t(head_dim + 4) * size_t(last + 16);
  for (int s = last; s >= 0; s -= 16) {
    soon.fetch();
    const float* key_scales = reinterpret_cast<const float*>(at);
    at += 64;
    typename Isa::Sum sums[4] = {};
    for (int d = 0; d < head_dim; d += 4, at += 64) {
      soon.fetch();
      const int8x16_t q = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(query.q + d)));
      for (int quad = 0; quad < 4; quad++) {
        Isa::template add<0>(sums[quad], load_signed(at + 16 * quad), q);
        Isa::widen(sums[quad]);
      }
    }
    for (int quad = 0; quad < 4; quad++) {
      const float32x4_t scale = vmulq_n_f32(vld1q_f32(key_scales + 4 * quad), query.scale);
      vst1q_f32(scores + s + 4 * quad, vmulq_f32(vcvtq_f32_s32(Isa::total(sums[quad])), scale));
    }
  }
}

}  // namespace
}  // namespace mobillama
