// Kernels for x86 with AVX2, FMA and F16C. Built with the flags of those instruction sets; only called where the processor
// has them. Text and order of operations: kernels.h. A panel of 16 rows is two registers of 8 lanes, its "halves".
//
// maddubs multiplies unsigned by signed bytes and adds neighbours in int16, saturating. Where a layout's codes are small
// enough, several of its results are added in int16 before they are widened; the largest possible sum stands beside each.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "kernels_exp.h"

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
  for (int line = 0; line < kBytes; line += 64) _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead + line, _MM_HINT_NTA);
}

// ---- dot products of a tile's codes: dots[t] = sum over the 32 columns, in the 8 lanes of rows 8 * half + lane ----

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
  template <int kTokens>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens]) {
    for (int t = 0; t < kTokens; t++) dots[t] = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) {
      const Nibbles codes(tile, j, half);
      for (int t = 0; t < kTokens; t++) {
        dots[t] = _mm256_add_epi16(dots[t], _mm256_maddubs_epi16(codes.low, broadcast4(q[t] + 4 * j)));
        dots[t] = _mm256_add_epi16(dots[t], _mm256_maddubs_epi16(codes.high, broadcast4(q[t] + 16 + 4 * j)));
      }
    }
    for (int t = 0; t < kTokens; t++) dots[t] = widen_pairs(dots[t]);  // 8 groups x 2 x 15 x 127 = 30,480
  }
};

struct Q5 {
  static constexpr int kBytes = 352, kOffset = 16;
  // 16 where bit 4 * row + i of column group j's mask is set.
  static __m256i fifth_bits(const uint8_t* tile, int j, int half) {
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bytes = _mm256_shuffle_epi8(broadcast4(tile + 256 + 8 * j + 4 * half), byte_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of), _mm256_set1_epi8(16));
  }
  template <int kTokens>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens]) {
    __m256i low[kTokens], high[kTokens];
    for (int t = 0; t < kTokens; t++) low[t] = high[t] = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) {
      Nibbles codes(tile, j, half);
      codes.low = _mm256_or_si256(codes.low, fifth_bits(tile, j, half));
      codes.high = _mm256_or_si256(codes.high, fifth_bits(tile, j + 4, half));
      for (int t = 0; t < kTokens; t++) {
        low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(codes.low, broadcast4(q[t] + 4 * j)));
        high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(codes.high, broadcast4(q[t] + 16 + 4 * j)));
      }
    }
    // Each 4 groups x 2 x 31 x 127 = 31,496.
    for (int t = 0; t < kTokens; t++) dots[t] = _mm256_add_epi32(widen_pairs(low[t]), widen_pairs(high[t]));
  }
};

// Signed bytes times signed bytes: the sign moves to q, which is never -128. Pairs reach 2 x 128 x 127 = 32,512, so each
// is widened by itself.
inline __m256i signed_dot(__m256i w, __m256i q) {
  return widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)));
}
inline __m256i load_signed(const uint8_t* codes) { return _mm256_xor_si256(load(codes), _mm256_set1_epi8(-128)); }

struct Q8 {
  static constexpr int kBytes = 544, kOffset = 0;  // the codes are made signed instead
  template <int kTokens>
  static void dot(const uint8_t* tile, int half, const int8_t* const q[kTokens], __m256i dots[kTokens]) {
    for (int t = 0; t < kTokens; t++) dots[t] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
      const __m256i w = load_signed(tile + 64 * j + 32 * half);
      for (int t = 0; t < kTokens; t++) dots[t] = _mm256_add_epi32(dots[t], signed_dot(w, broadcast4(q[t] + 4 * j)));
    }
  }
};

// kTokens activation vectors against one panel: a tile's codes are unpacked once for all of them.
template <class Codes>
struct Groups {
  static constexpr int kBlock = 4;
  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* tile, const Activations& x, int first, float* y, size_t stride) {
    const int groups = w.cols / kGroup;
    __m256 acc[kTokens][2];
    const int8_t* q[kTokens];
    const float* scale[kTokens];
    const int32_t* sum[kTokens];
    for (int t = 0; t < kTokens; t++) {
      const size_t at = static_cast<size_t>(first + t) * static_cast<size_t>(groups);
      acc[t][0] = acc[t][1] = _mm256_setzero_ps();
      q[t] = x.q + at * kGroup;
      scale[t] = x.scale + at;
      sum[t] = x.sum + at;
    }
    for (int g = 0; g < groups; g++, tile += Codes::kBytes) {
      if constexpr (kStream) prefetch_ahead<Codes::kBytes>(tile);
      for (int half = 0; half < 2; half++) {
        __m256i dots[kTokens];
        Codes::template dot<kTokens>(tile, half, q, dots);
        const __m256 weight_scale = _mm256_cvtph_ps(load_bytes16(tile + Codes::kBytes - 32 + 16 * half));
        for (int t = 0; t < kTokens; t++) {
          if constexpr (Codes::kOffset != 0) dots[t] = _mm256_sub_epi32(dots[t], _mm256_set1_epi32(Codes::kOffset * sum[t][g]));
          const __m256 both = _mm256_mul_ps(weight_scale, _mm256_set1_ps(scale[t][g]));
          acc[t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), both, acc[t][half]);
        }
      }
      for (int t = 0; t < kTokens; t++) q[t] += kGroup;
    }
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < 2; half++) _mm256_storeu_ps(y + static_cast<size_t>(first + t) * stride + 8 * half, acc[t][half]);
  }
};

struct Supers {  // Q6K
  static constexpr int kBlock = 4, kTile = 384;

  // dots[t] = sum over both sixteenths of (its scale) * (code - 32) . q, for 8 rows.
  template <int kTokens>
  static void dot(const uint8_t* tile, const uint8_t* scales, int half, const int8_t* const q[kTokens],
                  const int32_t* const half_sum[kTokens], __m256i dots[kTokens]) {
    const __m128i first = load_bytes8(scales + 8 * half), second = load_bytes8(scales + 16 + 8 * half);
    const __m256i two_bits = _mm256_set1_epi8(0x30);
    for (int b = 0; b < 2; b++) {
      const __m128i own = b == 0 ? first : second;
      const __m256i own_twice = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(own, own));  // a pair of int16 for each row
      const __m256i bits = load(tile + 256 + 64 * b + 32 * half);
      const __m256i shifted[4] = {_mm256_slli_epi16(bits, 4), _mm256_slli_epi16(bits, 2), bits, _mm256_srli_epi16(bits, 2)};
      for (int i = 0; i < 4; i += 2) {
        __m256i codes[2];
        for (int k = 0; k < 2; k++) {
          const Nibbles nibbles(tile, i + k, half);
          codes[k] = _mm256_or_si256(b == 0 ? nibbles.low : nibbles.high, _mm256_and_si256(shifted[i + k], two_bits));
        }
        for (int t = 0; t < kTokens; t++) {
          const int8_t* at = q[t] + 16 * b + 4 * i;
          const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(codes[0], broadcast4(at)),
                                                _mm256_maddubs_epi16(codes[1], broadcast4(at + 4)));  // 2 x 2 x 63 x 127 = 32,004
          const __m256i scaled = _mm256_madd_epi16(sums, own_twice);
          dots[t] = b == 0 && i == 0 ? scaled : _mm256_add_epi32(dots[t], scaled);
        }
      }
    }
    const __m256i both = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second));
    for (int t = 0; t < kTokens; t++) {
      const uint32_t pair = (static_cast<uint32_t>(half_sum[t][0]) & 0xffff) | static_cast<uint32_t>(half_sum[t][1]) << 16;
      const __m256i offset = _mm256_madd_epi16(both, _mm256_set1_epi32(static_cast<int32_t>(pair)));
      dots[t] = _mm256_sub_epi32(dots[t], _mm256_slli_epi32(offset, 5));
    }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* block, const Activations& x, int first, float* y, size_t stride) {
    constexpr int kGroups = kSuper / kGroup, kBytes = 3360;
    const int groups = w.cols / kGroup;
    __m256 acc[kTokens][2];
    const int8_t* q[kTokens];
    const float* scale[kTokens];
    const int32_t* half_sum[kTokens];
    for (int t = 0; t < kTokens; t++) {
      const size_t at = static_cast<size_t>(first + t) * static_cast<size_t>(groups);
      acc[t][0] = acc[t][1] = _mm256_setzero_ps();
      q[t] = x.q + at * kGroup;
      scale[t] = x.scale + at;
      half_sum[t] = x.half_sum + 2 * at;
    }
    for (int g = 0; g < groups; g++) {
      const int inside = g % kGroups;
      const uint8_t* tile = block + 288 + kTile * inside;
      if constexpr (kStream) prefetch_ahead<kTile>(tile);
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
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < 2; half++) _mm256_storeu_ps(y + static_cast<size_t>(first + t) * stride + 8 * half, acc[t][half]);
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
        const __m256 weights = load_weights(panel + static_cast<size_t>(c) * kColumnBytes + half * kColumnBytes / 2);
        for (int t = 0; t < kTokens; t++)
          acc[t][half][i] = _mm256_fmadd_ps(weights, _mm256_set1_ps(x[static_cast<size_t>(t) * static_cast<size_t>(cols) + static_cast<size_t>(c)]), acc[t][half][i]);
      }
    };
    const int whole = cols / 4 * 4;
    for (int c = 0; c < whole; c += 4) {
      if constexpr (kStream) prefetch_ahead<4 * kColumnBytes>(panel + static_cast<size_t>(c) * kColumnBytes);
      for (int i = 0; i < 4; i++) column(c + i, i);
    }
    if (whole < cols) column(whole, 0);
    if (whole + 1 < cols) column(whole + 1, 1);
    if (whole + 2 < cols) column(whole + 2, 2);
    for (int t = 0; t < kTokens; t++)
      for (int half = 0; half < kHalves; half++) {
        const __m256* a = acc[t][half];
        _mm256_storeu_ps(y + static_cast<size_t>(t) * stride + 8 * half, _mm256_add_ps(_mm256_add_ps(a[0], a[1]), _mm256_add_ps(a[2], a[3])));
      }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    const float* in = x.x + static_cast<size_t>(first) * static_cast<size_t>(w.cols);
    y += static_cast<size_t>(first) * stride;
    if constexpr (kTokens == 1) return halves<1, 2, kStream>(panel, w.cols, in, y, stride);
    halves<kTokens, 1, kStream>(panel, w.cols, in, y, stride);
    halves<kTokens, 1, kStream>(panel + kColumnBytes / 2, w.cols, in, y + 8, stride);
  }
};

template <class Kind, int kTokens>
inline void rest_of_tokens(int left, const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
  if constexpr (kTokens > 0) {
    if (left == kTokens) return Kind::template run<kTokens, false>(w, panel, x, first, y, stride);
    rest_of_tokens<Kind, kTokens - 1>(left, w, panel, x, first, y, stride);
  }
}

template <class Kind>
void multiply(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  for (int p = begin; p < end; p++) {
    const uint8_t* panel = w.data + static_cast<size_t>(p) * w.panel_bytes;
    float* out = y + static_cast<size_t>(p) * kPanelRows;
    if (n == 1) {
      p < w.resident ? Kind::template run<1, false>(w, panel, x, 0, out, stride) : Kind::template run<1, true>(w, panel, x, 0, out, stride);
      continue;
    }
    int t = 0;
    for (; t + Kind::kBlock <= n; t += Kind::kBlock) Kind::template run<Kind::kBlock, false>(w, panel, x, t, out, stride);
    rest_of_tokens<Kind, Kind::kBlock - 1>(n - t, w, panel, x, t, out, stride);
  }
}

// ---- vectors: a loop in steps of 8, the last of them with only the lanes that are left ----

inline __m256i lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
inline __m256 load_some(const float* at, int n) { return n >= 8 ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, lanes(n)); }
inline void store_some(float* at, int n, __m256 v) { n >= 8 ? _mm256_storeu_ps(at, v) : _mm256_maskstore_ps(at, lanes(n), v); }

inline float tree(const __m256 v[2]) {  // of 16 lanes, the order of kernels.h
  const __m256 eight = _mm256_add_ps(v[0], v[1]);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float largest_of(__m256 v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline int32_t sum_of(const int8_t* q, int n) {
  __m128i sums = _mm_setzero_si128();
  int i = 0;
  for (; i + 8 <= n; i += 8) sums = _mm_add_epi32(sums, _mm_madd_epi16(_mm_cvtepi8_epi16(load_bytes8(q + i)), _mm_set1_epi16(1)));
  sums = _mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums));
  int32_t sum = _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 1);
  for (; i < n; i++) sum += q[i];
  return sum;
}

void quantize(const float* x, int count, int group, int8_t* q, float* scale, int32_t* sum, int32_t* half_sum) {
  const __m256 size = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MAX));
  for (int g = 0; g * group < count; g++, x += group, q += group) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < group; i += 8) most = _mm256_max_ps(most, _mm256_and_ps(load_some(x + i, group - i), size));
    const float largest = largest_of(most);
    const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    for (int i = 0; i < group; i += 8) {
      const __m256i codes = _mm256_cvtps_epi32(_mm256_mul_ps(load_some(x + i, group - i), inverse));
      const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
      const int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
      std::memcpy(q + i, &bytes, group - i >= 8 ? 8 : 4);
    }
    const int32_t first = sum_of(q, group / 2), second = sum_of(q + group / 2, group / 2);
    scale[g] = largest / 127.0f;
    sum[g] = first + second;
    if (half_sum) half_sum[2 * g] = first, half_sum[2 * g + 1] = second;
  }
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  __m256 squares[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int i = 0; i < n; i += 8) {
    const __m256 v = load_some(x + i, n - i);
    __m256& lanes8 = squares[i / 8 % 2];
    lanes8 = _mm256_fmadd_ps(v, v, lanes8);
  }
  const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(tree(squares) / static_cast<float>(n) + eps));
  for (int i = 0; i < n; i += 8)
    store_some(out + i, n - i, _mm256_mul_ps(load_some(weight + i, n - i), _mm256_mul_ps(load_some(x + i, n - i), factor)));
}

inline __m256 exponential(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(kExpLow)), _mm256_set1_ps(kExpHigh));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2e)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2Low), _mm256_fmadd_ps(n, _mm256_set1_ps(-kLn2High), x));
  __m256 value = _mm256_set1_ps(kExp[6]);
  for (int i = 5; i >= 0; i--) value = _mm256_fmadd_ps(value, r, _mm256_set1_ps(kExp[i]));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(value, _mm256_castsi256_ps(power));
}

void swiglu(float* gate, const float* up, int n) {
  const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
  for (int i = 0; i < n; i += 8) {
    const __m256 g = load_some(gate + i, n - i);
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, exponential(_mm256_xor_ps(g, sign))));
    store_some(gate + i, n - i, _mm256_mul_ps(silu, load_some(up + i, n - i)));
  }
}

void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 8) {
    const int left = half - i;
    const __m256 first = load_some(x + i, left), second = load_some(x + half + i, left);
    const __m256 c = load_some(cos + i, left), s = load_some(sin + i, left);
    store_some(x + i, left, _mm256_fmsub_ps(first, c, _mm256_mul_ps(second, s)));
    store_some(x + half + i, left, _mm256_fmadd_ps(second, c, _mm256_mul_ps(first, s)));
  }
}

void to_half(const float* x, int n, uint16_t* out) {
  for (int i = 0; i < n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(load_some(x + i, n - i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(out + i, &halves, static_cast<size_t>(std::min(n - i, 8)) * 2);
  }
}

// ---- attention ----

// kBlocks blocks of 16 positions side by side: their chains of multiply-adds hide each other's latency.
template <class Key, int kBlocks>
inline void score_blocks(const float* q, const Key* keys, int head_dim, float* scores) {
  const size_t block = static_cast<size_t>(head_dim) * 16;
  __m256 acc[kBlocks][2];
  for (int b = 0; b < kBlocks; b++) acc[b][0] = acc[b][1] = _mm256_setzero_ps();
  for (int d = 0; d < head_dim; d++, keys += 16) {
    const __m256 value = _mm256_set1_ps(q[d]);
    for (int b = 0; b < kBlocks; b++)
      for (int half = 0; half < 2; half++)
        acc[b][half] = _mm256_fmadd_ps(value, load8(keys + static_cast<size_t>(b) * block + 8 * half), acc[b][half]);
  }
  for (int b = 0; b < kBlocks; b++)
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(scores + 16 * b + 8 * half, acc[b][half]);
}

template <class Key>
void scores_float(const Query& query, const void* keys, const float*, int head_dim, int length, float* scores) {
  const Key* at = static_cast<const Key*>(keys);
  const size_t block = static_cast<size_t>(head_dim) * 16;
  int s = 0;
  for (; s + 48 < length; s += 64, at += 4 * block) {
    for (size_t line = 0; line < 4 * block * sizeof(Key); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(at + 4 * block) + line, _MM_HINT_NTA);
    score_blocks<Key, 4>(query.x, at, head_dim, scores + s);
  }
  for (; s < length; s += 16, at += block) score_blocks<Key, 1>(query.x, at, head_dim, scores + s);
}

void scores_int8(const Query& query, const void* keys, const float* key_scales, int head_dim, int length, float* scores) {
  const uint8_t* at = static_cast<const uint8_t*>(keys);
  const __m256 scale = _mm256_set1_ps(query.scale);
  for (int s = 0; s < length; s += 16) {
    __m256i dots[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int d = 0; d < head_dim; d += 4, at += 64) {
      prefetch_ahead<64>(at);
      const __m256i q = broadcast4(query.q + d);
      for (int half = 0; half < 2; half++) dots[half] = _mm256_add_epi32(dots[half], signed_dot(load_signed(at + 32 * half), q));
    }
    for (int half = 0; half < 2; half++) {
      const __m256 both = _mm256_mul_ps(_mm256_loadu_ps(key_scales + s + 8 * half), scale);
      _mm256_storeu_ps(scores + s + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(dots[half]), both));
    }
  }
}

float softmax(float* scores, int length) {
  __m256 most = _mm256_set1_ps(scores[0]);
  for (int s = 0; s < length; s += 8) {
    const __m256 v = load_some(scores + s, length - s);
    most = length - s >= 8 ? _mm256_max_ps(most, v) : _mm256_blendv_ps(most, _mm256_max_ps(most, v), _mm256_castsi256_ps(lanes(length - s)));
  }
  const __m256 largest = _mm256_set1_ps(largest_of(most));
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int s = 0; s < length; s += 16)
    for (int half = 0; half < 2; half++) {
      float* at = scores + s + 8 * half;
      const __m256 mask = _mm256_castsi256_ps(lanes(length - s - 8 * half));
      const __m256 power = _mm256_and_ps(exponential(_mm256_sub_ps(_mm256_loadu_ps(at), largest)), mask);
      _mm256_storeu_ps(at, power);
      sums[half] = _mm256_add_ps(sums[half], power);
    }
  return tree(sums);
}

template <class Value, int kVectors>
inline void mix_vectors(const float* p, const Value* values, const float* value_scales, int head_dim, int length, float factor, float* out) {
  __m256 acc[kVectors];
  for (int i = 0; i < kVectors; i++) acc[i] = _mm256_setzero_ps();
  for (int s = 0; s < length; s++, values += head_dim) {
    float weight = p[s];
    if constexpr (sizeof(Value) == 1) weight *= value_scales[s];
    const __m256 wide = _mm256_set1_ps(weight);
    prefetch_ahead<8 * kVectors * sizeof(Value)>(reinterpret_cast<const uint8_t*>(values));
    for (int i = 0; i < kVectors; i++) acc[i] = _mm256_fmadd_ps(wide, load8(values + 8 * i), acc[i]);
  }
  for (int i = 0; i < kVectors; i++) _mm256_storeu_ps(out + 8 * i, _mm256_mul_ps(acc[i], _mm256_set1_ps(factor)));
}

// Four values: where 8 no longer fit a head_dim that is a multiple of 4.
inline __m128 load4(const float* at) { return _mm_loadu_ps(at); }
inline __m128 load4(const uint16_t* at) { return _mm_cvtph_ps(load_bytes8(at)); }
inline __m128 load4(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}

template <class Value>
void mix(const float* p, const void* values, const float* value_scales, int head_dim, int length, float factor, float* out) {
  const Value* v = static_cast<const Value*>(values);
  int d = 0;
  for (; d + 64 <= head_dim; d += 64) mix_vectors<Value, 8>(p, v + d, value_scales, head_dim, length, factor, out + d);
  for (; d + 16 <= head_dim; d += 16) mix_vectors<Value, 2>(p, v + d, value_scales, head_dim, length, factor, out + d);
  for (; d + 8 <= head_dim; d += 8) mix_vectors<Value, 1>(p, v + d, value_scales, head_dim, length, factor, out + d);
  if (d == head_dim) return;
  __m128 acc = _mm_setzero_ps();
  v += d;
  for (int s = 0; s < length; s++, v += head_dim) {
    float weight = p[s];
    if constexpr (sizeof(Value) == 1) weight *= value_scales[s];
    acc = _mm_fmadd_ps(_mm_set1_ps(weight), load4(v), acc);
  }
  _mm_storeu_ps(out + d, _mm_mul_ps(acc, _mm_set1_ps(factor)));
}

constexpr Kernels kAvx2 = {
    "avx2",
    {multiply<Floats<Layout::F32>>, multiply<Floats<Layout::F16>>, multiply<Floats<Layout::BF16>>, multiply<Groups<Q4>>,
     multiply<Groups<Q5>>, multiply<Groups<Q8>>, multiply<Supers>},
    quantize,
    rms_norm,
    swiglu,
    rotate,
    to_half,
    {scores_float<uint16_t>, scores_int8, scores_float<float>},
    softmax,
    {mix<uint16_t>, mix<int8_t>, mix<float>},
};

}  // namespace

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace mobillama
