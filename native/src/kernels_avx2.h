// Part of kernels_avx2.cpp: every layout's multiply, and what the other kernels load with. A panel of 16 rows is two
// registers of 8 lanes, its "halves".
//
// maddubs multiplies unsigned by signed bytes and adds neighbours in int16, saturating. Where a layout's codes are
// small enough, several of its results are added in int16 before they are widened; the largest possible sum stands
// beside each.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels.h"
#include "kernels_multiply.h"

namespace mobillama {
namespace {

constexpr int kAhead = 4096;  // bytes between a streamed weight's prefetch and its use

inline __m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline __m128i load_bytes16(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }
inline __m128i load_bytes8(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }
inline __m256i broadcast4(const void* four) {
  int32_t value;
  std::memcpy(&value, four, 4);
  return _mm256_set1_epi32(value);
}
inline __m256i widen_pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

template <int kBytes>
inline void prefetch_ahead(const uint8_t* at) {
  for (int line = 0; line < kBytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + line, _MM_HINT_NTA);
}

// Sums in a chain, as written: the compiler would make a tree of them, whose parts do not fit the 16 registers.
inline void add_words(__m256i& sum, __m256i more) {
  sum = _mm256_add_epi16(sum, more);
  asm("" : "+x"(sum));
}
inline void add_ints(__m256i& sum, __m256i more) {
  sum = _mm256_add_epi32(sum, more);
  asm("" : "+x"(sum));
}

// ---- dot products of a tile's codes: dots[t][h] = sum over the 32 columns, lane i for row 8 * (half + h) + i ----

struct Nibbles {
  __m256i low, high;  // of column groups j and j + 4
  Nibbles(const uint8_t* tile, int j, int half) {
    const __m256i both = load(tile + 64 * j + 32 * half), mask = _mm256_set1_epi8(15);
    low = _mm256_and_si256(both, mask);
    high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
};

struct Q4 {
  static constexpr int kBytes = 288, kOffset = 8;
  template <int kTokens, int kHalves>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens][kHalves]) {
    for (int t = 0; t < kTokens; t++)
      for (int h = 0; h < kHalves; h++) dots[t][h] = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++)
      for (int h = 0; h < kHalves; h++) {
        const Nibbles codes(tile, j, half + h);
        for (int t = 0; t < kTokens; t++) {
          add_words(dots[t][h], _mm256_maddubs_epi16(codes.low, broadcast4(q[t] + 4 * j)));
          add_words(dots[t][h], _mm256_maddubs_epi16(codes.high, broadcast4(q[t] + 16 + 4 * j)));
        }
      }
    for (int t = 0; t < kTokens; t++)
      for (int h = 0; h < kHalves; h++) dots[t][h] = widen_pairs(dots[t][h]);  // 8 groups x 2 x 15 x 127 = 30,480
  }
};

struct Q5 {
  static constexpr int kBytes = 352, kOffset = 16;
  // 16 where bit 4 * row + i of column group j's mask is set. sign(a, b) is a, 0 or -a after b's sign: a byte with bit
  // 7 is negative, so there a is -16.
  static __m256i fifth_bits(const uint8_t* tile, int j, int half) {
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i sixteen = _mm256_set1_epi64x(int64_t(0xf010101010101010));
    const __m256i bytes = _mm256_shuffle_epi8(broadcast4(tile + 256 + 8 * j + 4 * half), byte_of);
    return _mm256_sign_epi8(sixteen, _mm256_and_si256(bytes, bit_of));
  }
  template <int kTokens, int kHalves>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens][kHalves]) {
    __m256i low[kTokens][kHalves], high[kTokens][kHalves];
    for (int t = 0; t < kTokens; t++)
      for (int h = 0; h < kHalves; h++) low[t][h] = high[t][h] = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++)
      for (int h = 0; h < kHalves; h++) {
        Nibbles codes(tile, j, half + h);
        codes.low = _mm256_or_si256(codes.low, fifth_bits(tile, j, half + h));
        codes.high = _mm256_or_si256(codes.high, fifth_bits(tile, j + 4, half + h));
        for (int t = 0; t < kTokens; t++) {
          add_words(low[t][h], _mm256_maddubs_epi16(codes.low, broadcast4(q[t] + 4 * j)));
          add_words(high[t][h], _mm256_maddubs_epi16(codes.high, broadcast4(q[t] + 16 + 4 * j)));
        }
      }
    for (int t = 0; t < kTokens; t++)  // each sum: 4 groups x 2 x 31 x 127 = 31,496
      for (int h = 0; h < kHalves; h++) dots[t][h] = _mm256_add_epi32(widen_pairs(low[t][h]), widen_pairs(high[t][h]));
  }
};

// Signed bytes times signed bytes: the sign moves to q, which is never -128. Pairs reach 2 x 128 x 127 = 32,512, so
// each is widened by itself.
inline __m256i signed_dot(__m256i w, __m256i q) {
  return widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)));
}
inline __m256i load_signed(const uint8_t* codes) { return _mm256_xor_si256(load(codes), _mm256_set1_epi8(-128)); }

struct Q8 {
  static constexpr int kBytes = 544, kOffset = 0;  // the codes are made signed instead
  template <int kTokens, int kHalves>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens][kHalves]) {
    for (int t = 0; t < kTokens; t++)
      for (int h = 0; h < kHalves; h++) dots[t][h] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++)
      for (int h = 0; h < kHalves; h++) {
        const __m256i w = load_signed(tile + 64 * j + 32 * (half + h));
        for (int t = 0; t < kTokens; t++) add_ints(dots[t][h], signed_dot(w, broadcast4(q[t] + 4 * j)));
      }
  }
};

// kTokens activation vectors against one panel: a tile's codes are unpacked once for all of them. More than one vector
// meets one half of the rows after the other, for both would not fit the 16 registers.
template <class Codes>
struct Groups {
  static constexpr int kBlock = 4;

  template <int kTokens, int kHalves, bool kStream>
  static void halves(const uint8_t* tile, int half, int groups, const Activations& x, int first, float* y,
                     size_t stride) {
    __m256 acc[kTokens][kHalves];
    const int8_t* q[kTokens];
    size_t at[kTokens];
    for (int t = 0; t < kTokens; t++) {
      at[t] = size_t(first + t) * size_t(groups);
      q[t] = x.q + at[t] * kGroup;
      for (int h = 0; h < kHalves; h++) acc[t][h] = _mm256_setzero_ps();
    }
    constexpr bool kFetch = kTokens == 1 && !kStream;
    Soon soon = kFetch && x.soon != nullptr ? *x.soon : Soon{};
    for (int g = 0; g < groups; g++, tile += Codes::kBytes) {
      if constexpr (kStream) prefetch_ahead<Codes::kBytes>(tile);
      if constexpr (kFetch) soon.fetch();
      __m256i dots[kTokens][kHalves];
      Codes::template dot<kTokens, kHalves>(tile, half, q, dots);
      for (int h = 0; h < kHalves; h++) {
        const __m256 weight_scale = _mm256_cvtph_ps(load_bytes16(tile + Codes::kBytes - 32 + 16 * (half + h)));
        for (int t = 0; t < kTokens; t++) {
          __m256i dot = dots[t][h];
          if constexpr (Codes::kOffset != 0)
            dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(Codes::kOffset * x.sum[at[t]]));
          const __m256 both = _mm256_mul_ps(weight_scale, _mm256_set1_ps(x.scale[at[t]]));
          acc[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), both, acc[t][h]);
        }
      }
      for (int t = 0; t < kTokens; t++) at[t]++, q[t] += kGroup;
    }
    if (kFetch && x.soon != nullptr) *x.soon = soon;
    for (int t = 0; t < kTokens; t++)
      for (int h = 0; h < kHalves; h++) _mm256_storeu_ps(y + size_t(first + t) * stride + 8 * (half + h), acc[t][h]);
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    const int groups = w.cols / kGroup;
    if constexpr (kTokens == 1) return halves<1, 2, kStream>(panel, 0, groups, x, first, y, stride);
    halves<kTokens, 1, kStream>(panel, 0, groups, x, first, y, stride);
    halves<kTokens, 1, kStream>(panel, 1, groups, x, first, y, stride);
  }
};

// ---- codes of half a tile of 32 columns: unpack gives its four column groups of 8 rows; so many products of them fit
// an int16 ----

struct Q6 {
  static constexpr int kTile = 384, kOffset = 32, kProducts = 2;  // 2 x 2 x 63 x 127 = 32,004
  static void unpack(const uint8_t* tile, int sixteenth, int half, __m256i codes[4]) {
    const __m256i two_bits = _mm256_set1_epi8(0x30), bits = load(tile + 256 + 64 * sixteenth + 32 * half);
    const __m256i shifted[4] = {_mm256_slli_epi16(bits, 4), _mm256_slli_epi16(bits, 2), bits,
                                _mm256_srli_epi16(bits, 2)};
    for (int i = 0; i < 4; i++) {
      const Nibbles nibbles(tile, i, half);
      codes[i] = _mm256_or_si256(sixteenth == 0 ? nibbles.low : nibbles.high, _mm256_and_si256(shifted[i], two_bits));
    }
  }
};
struct Q3 {
  static constexpr int kTile = 192, kOffset = 4, kProducts = 4;  // 4 x 2 x 7 x 127 = 7,112
  static void unpack(const uint8_t* tile, int sixteenth, int half, __m256i codes[4]) {
    const __m256i three_bits = _mm256_set1_epi8(7);
    __m256i blocks[3];
    for (int b = 0; b < 3; b++) {
      blocks[b] = load(tile + 64 * b + 32 * half);
      codes[b] = _mm256_and_si256(sixteenth == 0 ? blocks[b] : _mm256_srli_epi16(blocks[b], 3), three_bits);
    }
    const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(blocks[sixteenth], 5), _mm256_set1_epi8(6));
    codes[3] = _mm256_or_si256(
        upper, _mm256_and_si256(_mm256_srli_epi16(blocks[2], sixteenth == 0 ? 6 : 7), _mm256_set1_epi8(1)));
  }
};

template <class Codes>
struct Supers {
  static constexpr int kBlock = 4, kTile = Codes::kTile;

  // dots[t] = sum over both sixteenths of (its scale) * (code - kOffset) . q, for 8 rows.
  template <int kTokens>
  static void dot(const uint8_t* tile, const uint8_t* scales, int half, const int8_t* const q[kTokens],
                  const int32_t* const half_sum[kTokens], __m256i dots[kTokens]) {
    const __m128i both_scales = load_bytes16(scales + 16 * half);
    for (int b = 0; b < 2; b++) {
      const __m128i own = _mm_set1_epi16(b == 0 ? 0x0000 : 0x0101);  // for each row its scale of this sixteenth, twice
      const __m128i rows = _mm_setr_epi8(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
      const __m256i own_twice = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(both_scales, _mm_add_epi8(rows, own)));
      __m256i codes[4];
      Codes::unpack(tile, b, half, codes);
      for (int i = 0; i < 4; i += Codes::kProducts) {
        for (int t = 0; t < kTokens; t++) {
          const int8_t* at = q[t] + 16 * b + 4 * i;
          __m256i sums = _mm256_maddubs_epi16(codes[i], broadcast4(at));
          for (int k = 1; k < Codes::kProducts; k++)
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes[i + k], broadcast4(at + 4 * k)));
          const __m256i scaled = _mm256_madd_epi16(sums, own_twice);
          dots[t] = b == 0 && i == 0 ? scaled : _mm256_add_epi32(dots[t], scaled);
        }
      }
    }
    const __m256i both = _mm256_cvtepi8_epi16(both_scales);
    for (int t = 0; t < kTokens; t++) {
      const uint32_t pair = (static_cast<uint32_t>(half_sum[t][0]) & 0xffff) | static_cast<uint32_t>(half_sum[t][1])
                                                                                   << 16;
      const __m256i offset = _mm256_madd_epi16(both, _mm256_set1_epi32(static_cast<int32_t>(pair)));
      dots[t] = _mm256_sub_epi32(dots[t], _mm256_slli_epi32(offset, std::countr_zero(unsigned{Codes::kOffset})));
    }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* block, const Activations& x, int first, float* y, size_t stride) {
    constexpr int kGroups = kSuper / kGroup, kBytes = 288 + kGroups * kTile;
    constexpr bool kFetch = kTokens == 1 && !kStream;
    Soon soon = kFetch && x.soon != nullptr ? *x.soon : Soon{};
    const int groups = w.cols / kGroup;
    __m256 acc[kTokens][2];
    const int8_t* q[kTokens];
    const float* scale[kTokens];
    const int32_t* half_sum[kTokens];
    for (int t = 0; t < kTokens; t++) {
      const size_t at = size_t(first + t) * size_t(groups);
      acc[t][0] = acc[t][1] = _mm256_setzero_ps();
      q[t] = x.q + at * kGroup;
      scale[t] = x.scale + at;
      half_sum[t] = x.half_sum + 2 * at;
    }
    for (int g = 0; g < groups; g++) {
      const int inside = g % kGroups;
      const uint8_t* tile = block + 288 + kTile * inside;
      if constexpr (kStream) prefetch_ahead<kTile>(tile);
      if constexpr (kFetch) soon.fetch();
      for (int half = 0; half < 2; half++) {
        __m256i dots[kTokens];
        dot<kTokens>(tile, block + 32 + 32 * inside, half, q, half_sum, dots);
        const __m256 weight_scale = _mm256_cvtph_ps(load_bytes16(block + 16 * half));
        for (int t = 0; t < kTokens; t++) {
          const __m256 both = _mm256_mul_ps(weight_scale, _mm256_set1_ps(scale[t][g]));
          acc[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), both, acc[t][half]);
        }
      }
      for (int t = 0; t < kTokens; t++) q[t] += kGroup, half_sum[t] += 2;
      if (inside == kGroups - 1) block += kBytes;
    }
    if (kFetch && x.soon != nullptr) *x.soon = soon;
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < 2; half++) _mm256_storeu_ps(y + size_t(first + t) * stride + 8 * half, acc[t][half]);
  }
};

inline __m256 load8(const float* at) { return _mm256_loadu_ps(at); }
inline __m256 load8(const uint16_t* at) { return _mm256_cvtph_ps(load_bytes16(at)); }
inline __m256 load8(const int8_t* at) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_bytes8(at))); }

template <Layout kLayout>
struct Floats {
  static constexpr int kBlock = 3, kColumnBytes = kPanelRows * (kLayout == Layout::F32 ? 4 : 2);

  static __m256 load_weights(const uint8_t* at) {
    if constexpr (kLayout == Layout::F32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
    if constexpr (kLayout == Layout::F16) return _mm256_cvtph_ps(load_bytes16(at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_bytes16(at)), 16));
  }

  // kHalves halves of the panel, from `panel` on; more than one vector against both would not fit the 16 registers.
  template <int kTokens, int kHalves, bool kStream>
  static void halves(const uint8_t* panel, int cols, const float* x, float* y, size_t stride) {
    __m256 acc[kTokens][kHalves][4];
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < kHalves; half++)
        for (int i = 0; i < 4; i++) acc[t][half][i] = _mm256_setzero_ps();
    const auto column = [&](int c, int i) {
      for (int half = 0; half < kHalves; half++) {
        const __m256 weights = load_weights(panel + size_t(c) * kColumnBytes + half * kColumnBytes / 2);
        for (int t = 0; t < kTokens; t++)
          acc[t][half][i] =
              _mm256_fmadd_ps(weights, _mm256_set1_ps(x[size_t(t) * size_t(cols) + size_t(c)]), acc[t][half][i]);
      }
    };
    const int whole = cols / 4 * 4;
    for (int c = 0; c < whole; c += 4) {
      if constexpr (kStream) prefetch_ahead<4 * kColumnBytes>(panel + size_t(c) * kColumnBytes);
      for (int i = 0; i < 4; i++) column(c + i, i);
    }
    if (whole < cols) column(whole, 0);  // written out: the accumulator's number must be known to the compiler
    if (whole + 1 < cols) column(whole + 1, 1);
    if (whole + 2 < cols) column(whole + 2, 2);
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < kHalves; half++) {
        const __m256* a = acc[t][half];
        _mm256_storeu_ps(y + size_t(t) * stride + 8 * half,
                         _mm256_add_ps(_mm256_add_ps(a[0], a[1]), _mm256_add_ps(a[2], a[3])));
      }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    const float* in = x.x + size_t(first) * size_t(w.cols);
    y += size_t(first) * stride;
    if constexpr (kTokens == 1) return halves<1, 2, kStream>(panel, w.cols, in, y, stride);
    halves<kTokens, 1, kStream>(panel, w.cols, in, y, stride);
    halves<kTokens, 1, kStream>(panel + kColumnBytes / 2, w.cols, in, y + 8, stride);
  }
};

}  // namespace
}  // namespace mobillama
