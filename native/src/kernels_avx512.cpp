// Kernels for x86 with AVX-512 and its 8-bit dot product (VNNI). Built with the flags of that instruction set; only
// called where the processor has it. Text and order of operations: kernels.h.
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "kernels_exp.h"
#include "kernels_multiply.h"

namespace mobillama {
namespace {

constexpr int kAhead = 4096;           // bytes between a streamed weight's prefetch and its use
constexpr int kAheadResident = 16384;  // likewise for weights that stay in the last-level cache
constexpr int kAheadPair = 8192;       // likewise, in each of two neighbouring panels

inline __m512 load_scales(const uint8_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline __m512i load_pairs(const uint8_t* at) {  // 16 rows x 2 signed bytes as int16
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline __m512i broadcast4(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// Streamed weights pass by the caches; resident ones are fetched from the last-level cache into the core's own second
// level, well ahead: into the first level they would take the places that the loads need.
template <int kBytes, bool kStream>
inline void prefetch_tile(const uint8_t* tile) {
  const char* from = reinterpret_cast<const char*>(tile) + (kStream ? kAhead : kAheadResident);
  for (int line = 0; line < kBytes; line += 64) {
    if constexpr (kStream)
      _mm_prefetch(from + line, _MM_HINT_NTA);
    else
      _mm_prefetch(from + line, _MM_HINT_T1);
  }
}

// ---- unsigned codes of a tile: column groups j and j + 4 of 16 rows x 4 columns, the latter times 2^kHighShift ----

struct Q4 {  // high nibbles stay where they are: one shift of the dot product takes the place of four
  static constexpr int kBytes = 288, kOffset = 8, kHighShift = 4;
  static void unpack(const uint8_t* tile, int j, __m512i& first, __m512i& second) {
    const __m512i low = _mm512_set1_epi8(15), both = _mm512_loadu_si512(tile + 64 * j);
    first = _mm512_and_si512(both, low);
    second = _mm512_andnot_si512(low, both);
  }
};

inline void unpack_nibbles(const uint8_t* tile, int j, __m512i& first, __m512i& second) {
  Q4::unpack(tile, j, first, second);
  second = _mm512_srli_epi16(second, 4);
}

struct Q5 {
  static constexpr int kBytes = 352, kOffset = 16, kHighShift = 0;
  static __m512i with_fifth(__m512i nibbles, const uint8_t* tile, int j) {
    const __m512i fifth = _mm512_set1_epi8(16);
    uint64_t mask;
    std::memcpy(&mask, tile + 256 + 8 * j, 8);
    return _mm512_mask_add_epi8(nibbles, mask, nibbles, fifth);
  }
  static void unpack(const uint8_t* tile, int j, __m512i& first, __m512i& second) {
    unpack_nibbles(tile, j, first, second);
    first = with_fifth(first, tile, j);
    second = with_fifth(second, tile, j + 4);
  }
};
struct Q8 {
  static constexpr int kBytes = 544, kOffset = 128, kHighShift = 0;
  static void unpack(const uint8_t* tile, int j, __m512i& first, __m512i& second) {
    first = _mm512_loadu_si512(tile + 64 * j);
    second = _mm512_loadu_si512(tile + 64 * (j + 4));
  }
};

// kTokens activation vectors against kPanels neighbouring panels: a tile is unpacked once for all vectors, and four
// activations are loaded once for all panels; the load unit is what limits this loop. A pair of panels is fetched past
// its end into the next pair.
template <class Codes, int kTokens, int kPanels, bool kStream>
inline void panel_groups(const uint8_t* tile, size_t panel_bytes, int groups, const Activations& x, int first, float* y,
                         size_t stride) {
  __m512 acc[kPanels][kTokens];
  const int8_t* q[kTokens];
  const float* scale[kTokens];
  const int32_t* sum[kTokens];
  for (int t = 0; t < kTokens; t++) {
    const size_t at = static_cast<size_t>(first + t) * static_cast<size_t>(groups);
    for (int p = 0; p < kPanels; p++) acc[p][t] = _mm512_setzero_ps();
    q[t] = x.q + at * kGroup;
    scale[t] = x.scale + at;
    sum[t] = x.sum + at;
  }
  constexpr bool kFetch = kTokens == 1 && !kStream;
  Soon soon = kFetch && x.soon != nullptr ? *x.soon : Soon{};
  for (int g = 0; g < groups; g++, tile += Codes::kBytes) {
    if constexpr (kTokens == 1 && kPanels == 1) prefetch_tile<Codes::kBytes, kStream>(tile);
    if constexpr (kTokens == 1 && kPanels > 1) {
      const bool inside = (groups - g) * Codes::kBytes > kAheadPair;
      const uint8_t* ahead = tile + kAheadPair + (inside ? 0 : (kPanels - 1) * panel_bytes);
      for (int p = 0; p < kPanels; p++, ahead += panel_bytes)
        for (int line = 0; line < Codes::kBytes; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(ahead) + line, _MM_HINT_T1);
    }
    if constexpr (kFetch)
      for (int p = 0; p < kPanels; p++) soon.fetch();
    __m512i low[kPanels][kTokens], high[kPanels][kTokens];
    for (int t = 0; t < kTokens; t++)
      for (int p = 0; p < kPanels; p++) {
        low[p][t] = _mm512_set1_epi32(-Codes::kOffset * sum[t][g]);
        high[p][t] = _mm512_setzero_si512();
      }
    for (int j = 0; j < 4; j++) {
      __m512i codes[kPanels][2];
      for (int p = 0; p < kPanels; p++)
        Codes::unpack(tile + static_cast<size_t>(p) * panel_bytes, j, codes[p][0], codes[p][1]);
      for (int t = 0; t < kTokens; t++) {
        const __m512i one = broadcast4(q[t] + g * kGroup + 4 * j), other = broadcast4(q[t] + g * kGroup + 16 + 4 * j);
        for (int p = 0; p < kPanels; p++) {
          low[p][t] = _mm512_dpbusd_epi32(low[p][t], codes[p][0], one);
          high[p][t] = _mm512_dpbusd_epi32(high[p][t], codes[p][1], other);
        }
      }
    }
    for (int p = 0; p < kPanels; p++) {
      const __m512 weight_scale = load_scales(tile + static_cast<size_t>(p) * panel_bytes + Codes::kBytes - 32);
      for (int t = 0; t < kTokens; t++) {
        if constexpr (Codes::kHighShift > 0) high[p][t] = _mm512_srai_epi32(high[p][t], Codes::kHighShift);
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_add_epi32(low[p][t], high[p][t]));
        acc[p][t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale[t][g])), acc[p][t]);
      }
    }
  }
  if (kFetch && x.soon != nullptr) *x.soon = soon;
  for (int t = 0; t < kTokens; t++)
    for (int p = 0; p < kPanels; p++)
      _mm512_storeu_ps(y + static_cast<size_t>(first + t) * stride + kPanelRows * p, acc[p][t]);
}

// ---- codes of a tile of 32 columns, half by half: `unpack` gives a half's four column groups, unsigned and times
// 2^kShift[half]; `weigh` takes the dot products of both halves, likewise, and their scales ----

struct Q6 {
  static constexpr int kTile = 384, kOffset = 32, kShift[2] = {0, 0};
  struct Tile {
    const uint8_t* at;
    explicit Tile(const uint8_t* tile) : at(tile) {}
  };
  template <int kHalf>
  static void unpack(const Tile& tile, __m512i codes[4]) {
    const __m512i two_bits = _mm512_set1_epi8(0x30), bits = _mm512_loadu_si512(tile.at + 256 + 64 * kHalf);
    const __m512i shifted[4] = {_mm512_slli_epi16(bits, 4), _mm512_slli_epi16(bits, 2), bits,
                                _mm512_srli_epi16(bits, 2)};
    for (int j = 0; j < 4; j++) {
      __m512i nibbles[2];
      unpack_nibbles(tile.at, j, nibbles[0], nibbles[1]);
      codes[j] = _mm512_or_si512(nibbles[kHalf], _mm512_and_si512(shifted[j], two_bits));
    }
  }
  static __m512i weigh(__m512i first, __m512i second, __m512i scales) {
    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16), high = _mm512_srai_epi32(scales, 16);
    return _mm512_add_epi32(_mm512_mullo_epi32(first, low), _mm512_mullo_epi32(second, high));
  }
};
// Most codes stay where their bits lie: one shift of the sum takes the place of three. A half's sum is at most
// 16 x 4 x 127 = 8,128 and so fits an int16.
struct Q3 {
  static constexpr int kTile = 192, kOffset = 4, kShift[2] = {0, 3};
  struct Tile {
    __m512i blocks[3];
    explicit Tile(const uint8_t* tile) {
      for (int b = 0; b < 3; b++) {
        blocks[b] = _mm512_loadu_si512(tile + 64 * b);
        asm("" : "+v"(blocks[b]));  // loaded once: the compiler would load them again for every use
      }
    }
  };
  template <int kHalf>
  static void unpack(const Tile& tile, __m512i codes[4]) {
    constexpr int kAt = kShift[kHalf];
    for (int b = 0; b < 3; b++) codes[b] = _mm512_and_si512(tile.blocks[b], _mm512_set1_epi8(7 << kAt));
    const __m512i upper = _mm512_srli_epi16(tile.blocks[kHalf], 5 - kAt);
    const __m512i lowest = _mm512_srli_epi16(tile.blocks[2], 6 + kHalf - kAt);
    codes[3] = _mm512_ternarylogic_epi32(upper, _mm512_set1_epi8(6 << kAt),  // (upper & these) | (lowest & one)
                                         _mm512_and_si512(lowest, _mm512_set1_epi8(1 << kAt)), 0xea);
  }
  static __m512i weigh(__m512i first, __m512i second, __m512i scales) {
    const __m512i upper = _mm512_slli_epi32(second, 16 - kShift[1]);
    return _mm512_madd_epi16(_mm512_mask_blend_epi16(0x55555555, upper, first), scales);
  }
};

// As panel_groups.
template <class Codes, int kTokens, int kPanels, bool kStream>
inline void panel_supers(const uint8_t* block, size_t panel_bytes, int groups, const Activations& x, int first,
                         float* y, size_t stride) {
  constexpr int kGroups = kSuper / kGroup, kBytes = 288 + kGroups * Codes::kTile;
  constexpr int kEach = kBytes / kGroups;  // to fetch beside each tile: scales too
  __m512 acc[kPanels][kTokens];
  size_t at[kTokens];
  for (int t = 0; t < kTokens; t++) {
    for (int p = 0; p < kPanels; p++) acc[p][t] = _mm512_setzero_ps();
    at[t] = static_cast<size_t>(first + t) * static_cast<size_t>(groups);
  }
  constexpr bool kFetch = kTokens == 1 && !kStream;
  Soon soon = kFetch && x.soon != nullptr ? *x.soon : Soon{};
  for (int g = 0; g < groups; block += kBytes) {
    __m512 weight_scale[kPanels];
    for (int p = 0; p < kPanels; p++) weight_scale[p] = load_scales(block + static_cast<size_t>(p) * panel_bytes);
    const bool within = (groups - g) / kGroups * kBytes > kAheadPair;
    for (int inside = 0; inside < kGroups; inside++, g++) {
      const uint8_t* tile = block + 288 + Codes::kTile * inside;
      const uint8_t* here = block + kEach * inside;
      if constexpr (kTokens == 1 && kPanels == 1) prefetch_tile<kEach, kStream>(here);
      if constexpr (kTokens == 1 && kPanels > 1) {
        const uint8_t* ahead = here + kAheadPair + (within ? 0 : (kPanels - 1) * panel_bytes);
        for (int p = 0; p < kPanels; p++, ahead += panel_bytes)
          for (int line = 0; line < kEach; line += 64)
            _mm_prefetch(reinterpret_cast<const char*>(ahead) + line, _MM_HINT_T1);
      }
      if constexpr (kFetch)
        for (int p = 0; p < kPanels; p++) soon.fetch();
      const auto part = [&]<int... kPanel>(std::integer_sequence<int, kPanel...>) {
        return std::array{typename Codes::Tile(tile + static_cast<size_t>(kPanel) * panel_bytes)...};
      }(std::make_integer_sequence<int, kPanels>());
      __m512i sum[2][kPanels][kTokens];
      const auto half = [&]<int kHalf>() {
        __m512i codes[kPanels][4];
        for (int p = 0; p < kPanels; p++) Codes::template unpack<kHalf>(part[static_cast<size_t>(p)], codes[p]);
        for (int t = 0; t < kTokens; t++) {
          const size_t group = at[t] + static_cast<size_t>(g);
          const int8_t* q = x.q + group * kGroup + 16 * kHalf;
          const int32_t offset = -(Codes::kOffset << Codes::kShift[kHalf]) * x.half_sum[2 * group + kHalf];
          for (int p = 0; p < kPanels; p++) sum[kHalf][p][t] = _mm512_set1_epi32(offset);
          for (int j = 0; j < 4; j++) {
            const __m512i four = broadcast4(q + 4 * j);
            for (int p = 0; p < kPanels; p++)
              sum[kHalf][p][t] = _mm512_dpbusd_epi32(sum[kHalf][p][t], codes[p][j], four);
          }
        }
      };
      half.template operator()<0>();
      half.template operator()<1>();
      __m512i scales[kPanels];
      for (int p = 0; p < kPanels; p++)
        scales[p] = load_pairs(block + static_cast<size_t>(p) * panel_bytes + 32 + 32 * inside);
      for (int t = 0; t < kTokens; t++) {
        const __m512 scale = _mm512_set1_ps(x.scale[at[t] + static_cast<size_t>(g)]);
        for (int p = 0; p < kPanels; p++) {
          const __m512i dot = Codes::weigh(sum[0][p][t], sum[1][p][t], scales[p]);
          acc[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(weight_scale[p], scale), acc[p][t]);
        }
      }
    }
  }
  if (kFetch && x.soon != nullptr) *x.soon = soon;
  for (int t = 0; t < kTokens; t++)
    for (int p = 0; p < kPanels; p++)
      _mm512_storeu_ps(y + static_cast<size_t>(first + t) * stride + kPanelRows * p, acc[p][t]);
}

template <Layout kLayout>
inline __m512 load_floats(const uint8_t* at, size_t index) {
  if constexpr (kLayout == Layout::F32) return _mm512_loadu_ps(at + 4 * index);
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 2 * index));
  if constexpr (kLayout == Layout::F16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

template <Layout kLayout, int kTokens, bool kStream>
inline void panel_floats(const uint8_t* panel, int cols, const Activations& x, int first, float* y, size_t stride) {
  constexpr int kColumnBytes = kPanelRows * (kLayout == Layout::F32 ? 4 : 2);
  __m512 acc[kTokens][4];
  for (int t = 0; t < kTokens; t++)
    for (int i = 0; i < 4; i++) acc[t][i] = _mm512_setzero_ps();
  const float* in = x.x + static_cast<size_t>(first) * static_cast<size_t>(cols);
  const int whole = cols / 4 * 4;
  for (int c = 0; c < whole; c += 4) {
    if constexpr (kStream) prefetch_tile<4 * kColumnBytes, true>(panel + static_cast<size_t>(c) * kColumnBytes);
    for (int i = 0; i < 4; i++) {
      const __m512 w = load_floats<kLayout>(panel, static_cast<size_t>(c + i) * kPanelRows);
      for (int t = 0; t < kTokens; t++)
        acc[t][i] = _mm512_fmadd_ps(
            w, _mm512_set1_ps(in[static_cast<size_t>(t) * static_cast<size_t>(cols) + static_cast<size_t>(c + i)]),
            acc[t][i]);
    }
  }
  for (int c = whole; c < cols; c++) {
    const __m512 w = load_floats<kLayout>(panel, static_cast<size_t>(c) * kPanelRows);
    for (int t = 0; t < kTokens; t++)
      acc[t][c - whole] = _mm512_fmadd_ps(
          w, _mm512_set1_ps(in[static_cast<size_t>(t) * static_cast<size_t>(cols) + static_cast<size_t>(c)]),
          acc[t][c - whole]);
  }
  for (int t = 0; t < kTokens; t++)
    _mm512_storeu_ps(y + static_cast<size_t>(first + t) * stride,
                     _mm512_add_ps(_mm512_add_ps(acc[t][0], acc[t][1]), _mm512_add_ps(acc[t][2], acc[t][3])));
}

// How one panel meets kTokens vectors, for each kind of layout.
template <class Codes>
struct Groups {
  static constexpr int kBlock = 8, kPairBlock = 4;
  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    panel_groups<Codes, kTokens, 1, kStream>(panel, w.panel_bytes, w.cols / kGroup, x, first, y, stride);
  }
  template <int kTokens>
  static void pair(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    panel_groups<Codes, kTokens, 2, false>(panel, w.panel_bytes, w.cols / kGroup, x, first, y, stride);
  }
};
template <class Codes>
struct Supers {
  static constexpr int kBlock = 8, kPairBlock = 1;
  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    panel_supers<Codes, kTokens, 1, kStream>(panel, w.panel_bytes, w.cols / kGroup, x, first, y, stride);
  }
  template <int kTokens>
  static void pair(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    panel_supers<Codes, kTokens, 2, false>(panel, w.panel_bytes, w.cols / kGroup, x, first, y, stride);
  }
};
template <Layout kLayout>
struct Floats {
  static constexpr int kBlock = 4;
  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    panel_floats<kLayout, kTokens, kStream>(panel, w.cols, x, first, y, stride);
  }
};

// ---- vectors ----

inline __mmask16 lanes(int n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1);
}

inline float tree(__m512 v) {  // of 16 lanes, the order of kernels.h
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

void quantize(const float* x, int count, int group, int8_t* q, float* scale, int32_t* sum, int32_t* half_sum) {
  for (int begin = 0, g = 0; begin < count; begin += group, g++) {
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < group; i += 16)
      most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(group - i), x + begin + i)));
    const float largest = _mm512_reduce_max_ps(most);
    const float factor = 127.0f / largest;  // infinite where the group is too small to divide by: all zero
    const __m512 inverse = _mm512_set1_ps(std::isinf(factor) ? 0.0f : factor);
    __m512i totals[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    const int half = group / 2;
    for (int part = 0; part < 2; part++)
      for (int i = part * half; i < (part + 1) * half; i += 16) {
        const __mmask16 mask = lanes((part + 1) * half - i);
        const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + begin + i), inverse));
        _mm_mask_storeu_epi8(q + begin + i, mask, _mm512_cvtepi32_epi8(code));
        // As bytes again: what is not a number has become the lowest int, and sums of it would overflow.
        totals[part] = _mm512_add_epi32(totals[part], _mm512_cvtepi8_epi32(_mm512_cvtepi32_epi8(code)));
      }
    const int32_t first = _mm512_reduce_add_epi32(totals[0]), second = _mm512_reduce_add_epi32(totals[1]);
    scale[g] = largest / 127.0f;
    sum[g] = first + second;
    if (half_sum) half_sum[2 * g] = first, half_sum[2 * g + 1] = second;
  }
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes(n - i), x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(tree(squares) / static_cast<float>(n) + eps));
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes(n - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight + i), scaled));
  }
}

inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(kExpLow)), _mm512_set1_ps(kExpHigh));
  const __m512 n =
      _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2Low), _mm512_fmadd_ps(n, _mm512_set1_ps(-kLn2High), x));
  __m512 value = _mm512_set1_ps(kExp[6]);
  for (int i = 5; i >= 0; i--) value = _mm512_fmadd_ps(value, r, _mm512_set1_ps(kExp[i]));
  const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(value, _mm512_castsi512_ps(power));
}

void swiglu(float* gate, const float* up, int n) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes(n - i);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + i);
    const __m512 negative = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(g), _mm512_set1_epi32(INT32_MIN)));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exponential(negative)));
    _mm512_mask_storeu_ps(gate + i, mask, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + i)));
  }
}

void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const __mmask16 mask = lanes(half - i);
    const __m512 first = _mm512_maskz_loadu_ps(mask, x + i), second = _mm512_maskz_loadu_ps(mask, x + half + i);
    const __m512 c = _mm512_maskz_loadu_ps(mask, cos + i), s = _mm512_maskz_loadu_ps(mask, sin + i);
    const __m512 turned = _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s));
    _mm512_mask_storeu_ps(x + half + i, mask, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
    _mm512_mask_storeu_ps(x + i, mask, turned);
  }
}

void to_half(const float* x, int n, uint16_t* out) {
  const __m512 most = _mm512_set1_ps(kLargestHalf), least = _mm512_set1_ps(-kLargestHalf);
  for (int i = 0; i < n; i += 16) {
    const __mmask16 mask = lanes(n - i);
    const __m512 below = _mm512_min_ps(most, _mm512_maskz_loadu_ps(mask, x + i));  // of a NaN and a number the second
    const __m256i halves = _mm512_cvtps_ph(_mm512_max_ps(least, below), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(out + i, mask, halves);
  }
}

// ---- attention ----

inline __m512 load16(const uint16_t* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline __m512 load16(const float* at) { return _mm512_loadu_ps(at); }
inline __m512 load16(const int8_t* at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
inline __m512 load_some(const uint16_t* at, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at));
}
inline __m512 load_some(const float* at, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, at); }
inline __m512 load_some(const int8_t* at, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, at)));
}

// kBlocks blocks of 16 positions side by side, of which the last come first: their chains of multiply-adds hide each
// other's latency.
template <class Key, int kBlocks>
inline void score_blocks(const float* q, const Key* keys, int head_dim, float* scores, Soon& soon) {
  const size_t block = static_cast<size_t>(head_dim) * 16;
  __m512 acc[kBlocks];
  for (int b = 0; b < kBlocks; b++) acc[b] = _mm512_setzero_ps();
  for (int d = 0; d < head_dim; d++) {
    soon.keep_up<16 * kBlocks * sizeof(Key)>(d);
    const __m512 value = _mm512_set1_ps(q[d]);
    for (int b = 0; b < kBlocks; b++)
      acc[b] =
          _mm512_fmadd_ps(value, load16(keys + static_cast<size_t>(b) * block + 16 * static_cast<size_t>(d)), acc[b]);
  }
  for (int b = 0; b < kBlocks; b++) _mm512_storeu_ps(scores + 16 * (kBlocks - 1 - b), acc[b]);
}

template <class Key>
void scores_float(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& wanted) {
  Soon soon = wanted;
  const size_t block = static_cast<size_t>(head_dim) * 16;
  int left = (length + 15) / 16;
  const Key* at = reinterpret_cast<const Key*>(keys) - static_cast<size_t>(left) * block;
  for (; left >= 4; at += 4 * block) score_blocks<Key, 4>(query.x, at, head_dim, scores + 16 * (left -= 4), soon);
  for (; left > 0; at += block) score_blocks<Key, 1>(query.x, at, head_dim, scores + 16 * --left, soon);
  wanted = soon;
}

void scores_int8(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& wanted) {
  Soon soon = wanted;
  const int last = (length - 1) / 16 * 16;
  const uint8_t* at = keys - static_cast<size_t>(head_dim + 4) * static_cast<size_t>(last + 16);
  const __m512 scale = _mm512_set1_ps(query.scale);
  const __m512i offset = _mm512_set1_epi32(-128 * query.sum);
  for (int s = last; s >= 0; s -= 16) {
    soon.fetch();
    const __m512 scales = _mm512_mul_ps(_mm512_loadu_ps(at), scale);
    at += 64;
    __m512i even = offset, odd = _mm512_setzero_si512();
    int d = 0;
    for (; d + 8 <= head_dim; d += 8, at += 128) {
      soon.keep_up<128>(d);
      even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(at), broadcast4(query.q + d));
      odd = _mm512_dpbusd_epi32(odd, _mm512_loadu_si512(at + 64), broadcast4(query.q + d + 4));
    }
    if (d < head_dim) {
      even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(at), broadcast4(query.q + d));
      at += 64;
    }
    _mm512_storeu_ps(scores + s, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scales));
  }
  wanted = soon;
}

float softmax(float* scores, int length) {
  __m512 most = _mm512_set1_ps(scores[0]);
  for (int s = 0; s < length; s += 16) {
    const __mmask16 mask = lanes(length - s);
    most = _mm512_mask_max_ps(most, mask, most, _mm512_maskz_loadu_ps(mask, scores + s));
  }
  const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  __m512 sum = _mm512_setzero_ps();
  for (int s = 0; s < length; s += 16) {
    const __m512 power =
        _mm512_maskz_mov_ps(lanes(length - s), exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + s), largest)));
    _mm512_storeu_ps(scores + s, power);
    sum = _mm512_add_ps(sum, power);
  }
  return tree(sum);
}

// Components `first` and on, one vector after the other.
template <class Value, int kVectors>
inline void mix_vectors(const float* p, const uint8_t* at, int first, int head_dim, int length, float factor,
                        float* out, Soon& wanted) {
  Soon soon = wanted;
  const size_t dim = static_cast<size_t>(head_dim);
  __m512 acc[kVectors];
  for (int i = 0; i < kVectors; i++) acc[i] = _mm512_setzero_ps();
  for (int s = 0; s < length; s += 16) {
    if (sizeof(Value) == 1 && first == 0) soon.fetch();
    const uint8_t* scales = at;
    const Value* values = reinterpret_cast<const Value*>(at + kScaleBytes<Value>) + first;
    at += kScaleBytes<Value> + 16 * dim * sizeof(Value);
    for (int row = 0, rows = length - s < 16 ? length - s : 16; row < rows; row++, values += dim) {
      float weight = p[s + row];
      if constexpr (sizeof(Value) == 1) weight *= load_float(scales + 4 * row);
      const __m512 wide = _mm512_set1_ps(weight);
      soon.keep_up<16 * kVectors * sizeof(Value)>(row);
      for (int i = 0; i < kVectors; i++) acc[i] = _mm512_fmadd_ps(wide, load16(values + 16 * i), acc[i]);
    }
  }
  for (int i = 0; i < kVectors; i++)
    _mm512_storeu_ps(out + first + 16 * i, _mm512_mul_ps(acc[i], _mm512_set1_ps(factor)));
  wanted = soon;
}

template <class Value>
void mix(const float* p, const uint8_t* values, int head_dim, int length, float factor, float* out, Soon& soon) {
  int d = 0;
  for (; d + 64 <= head_dim; d += 64) mix_vectors<Value, 4>(p, values, d, head_dim, length, factor, out, soon);
  for (; d + 16 <= head_dim; d += 16) mix_vectors<Value, 1>(p, values, d, head_dim, length, factor, out, soon);
  if (d == head_dim) return;
  const __mmask16 mask = lanes(head_dim - d);
  const size_t dim = static_cast<size_t>(head_dim), block = kScaleBytes<Value> + 16 * dim * sizeof(Value);
  __m512 acc = _mm512_setzero_ps();
  for (int s = 0; s < length; s++) {
    const uint8_t* at = values + static_cast<size_t>(s / 16) * block;
    float weight = p[s];
    if constexpr (sizeof(Value) == 1) weight *= load_float(at + 4 * (s % 16));
    const Value* row = reinterpret_cast<const Value*>(at + kScaleBytes<Value>) + static_cast<size_t>(s % 16) * dim;
    acc = _mm512_fmadd_ps(_mm512_set1_ps(weight), load_some(row + d, mask), acc);
  }
  _mm512_mask_storeu_ps(out + d, mask, _mm512_mul_ps(acc, _mm512_set1_ps(factor)));
}

constexpr Kernels kAvx512 = {
    "avx512",
    {multiply<Floats<Layout::F32>>, multiply<Floats<Layout::F16>>, multiply<Floats<Layout::BF16>>, multiply<Groups<Q4>>,
     multiply<Groups<Q5>>, multiply<Groups<Q8>>, multiply<Supers<Q3>>, multiply<Supers<Q6>>},
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

const Kernels* avx512_kernels() { return &kAvx512; }

}  // namespace mobillama
