// The inner loops, one table of them per instruction set, and the layouts they read.
//
// Every function gives the same bits in every table: integer sums are exact, and every floating-point sum has one
// order, written here. Lanes are rows (or positions), so that the width of a vector register does not enter. A
// multiply-add is fused exactly where the text says fma. Files of this room are compiled with -ffp-contract=off.
//
// Legend: R rows, C cols, G = C / 32 groups, n tokens, Dh head_dim, S positions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mobillama {

constexpr int kPanelRows = 16;  // rows computed side by side
constexpr int kGroup = 32;      // weights (and activations) that share a scale
constexpr int kSuper = 256;     // weights of a Q3_K or Q6_K block
constexpr int kMaxHeadDim = 256;
constexpr float kLargestHalf = 65504;

// How a matrix lies in memory. Panels of 16 rows, one after the other; rows past the last one are zero. "Column group"
// j of a tile of 16 rows x 32 columns: columns 4j to 4j + 3 of every row, 64 bytes: row 0's four, row 1's four, ...
//   F32, F16, BF16: (C, 16 rows) values: a column's 16 rows side by side.
//   Q4 (288 bytes a tile): 4 x 64 bytes, block j has column group j in the low and j + 4 in the high nibbles; 16 scales
//   f16.
//     weight = scale * (code - 8).
//   Q5 (352): as Q4; then 8 masks of 64 bits, mask j's bit 4 * row + i is the fifth bit of column 4j + i; 16 scales
//   f16.
//     weight = scale * (code - 16).
//   Q8 (544): 8 x 64 bytes, code = weight + 128; 16 scales f16. weight = scale * (code - 128).
//   Q6K (3,360 for 16 x 256): 16 scales f16; (8 tiles, 16 rows, 2 sixteenths) int8; then, for every 32 columns,
//   a tile:
//     4 x 64 bytes of nibbles as in Q4 and 2 x 64 bytes: block b, bits 2i and 2i + 1 are bits 4 and 5 of column group
//     4b + i.
//     weight = scale * int8 of its sixteenth * (code - 32).
//   Q3K (1,824 for 16 x 256): as Q6K, with tiles of 3 x 64 bytes.
//     Block b: bits 0 to 2 are column group b, bits 3 to 5 column group 4 + b. Bits 6 and 7: of block 0 the upper two
//     bits of column group 3, of block 1 those of column group 7, of block 2 the lowest bit of column group 3 and that
//     of 7. weight = scale * int8 of its sixteenth * (code - 4).
enum class Layout : uint8_t { F32, F16, BF16, Q4, Q5, Q8, Q3K, Q6K };
constexpr int kLayouts = 8;

constexpr bool is_float(Layout layout) { return layout <= Layout::BF16; }

constexpr int kWhole = 256;

struct Panels {
  Layout layout = Layout::F32;
  int rows = 0, cols = 0;
  int panels = 0;  // rows / 16, rounded up
  size_t panel_bytes = 0;
  const uint8_t* data = nullptr;
  int resident = 0;  // of kWhole parts so many are meant to stay in cache; the others are streamed past it

  size_t bytes() const { return static_cast<size_t>(panels) * panel_bytes; }
  // Resident and streamed panels come in runs of 8, spread evenly, so that every worker has its share of both.
  bool is_resident(int panel) const {
    const int run = panel / 8;
    return (run + 1) * resident / kWhole > run * resident / kWhole;
  }
};

// Memory that will be wanted soon and may be fetched beside other work, line by line: what is left of one piece, then
// `more` pieces of `length` bytes, each `stride` bytes behind the one before. It comes into the core's second-level
// cache, or, if it is `read_once`, into the first, past the others.
struct Soon {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  size_t length = 0, stride = 0;
  int more = 0;
  bool read_once = false;

  // The next line, if there is one.
  [[gnu::always_inline]] void fetch() {
    if (at >= end) {
      if (more == 0) return;
      more--, end += stride, at = end - length;
    }
    if (read_once)
      __builtin_prefetch(at, 0, 0);
    else
      __builtin_prefetch(at, 0, 2);
    at += 64;
  }
  // As many bytes as step number `step` of a loop reads, if each reads kBytes.
  template <int kBytes>
  [[gnu::always_inline]] void keep_up(int step) {
    if constexpr (kBytes < 64) {
      if (step % (64 / kBytes) == 0) fetch();
    } else {
      for (int byte = 0; byte < kBytes; byte += 64) fetch();
    }
  }
};

// n vectors of C activations; either the float side or the int8 side is filled, or both.
struct Activations {
  int cols = 0;
  float* x = nullptr;           // (n, C)
  int8_t* q = nullptr;          // (n, C)      x ~ scale * q
  float* scale = nullptr;       // (n, G)
  int32_t* sum = nullptr;       // (n, G)      of q in the group
  int32_t* half_sum = nullptr;  // (n, 2 G)  of q in its sixteens
  Soon* soon = nullptr;         // none, or what a product of one vector by resident panels may fetch beside
};

// y[t * stride + row] for the rows of panels [begin, end) and tokens t in [0, n). Rows of padding are written too.
//   int8 layouts: acc = 0; for each group in order: acc = fma(float(dot), w_scale * x_scale, acc), dot exact in int32
//     (Q3K and Q6K: dot = sum over its two sixteenths of int8 * dot, w_scale its f16).
//   float layouts: four accumulators, column c goes to c % 4 in order: a = fma(w, x, a); y = (a0 + a1) + (a2 + a3).
using Multiply = void (*)(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride);

struct Query {      // of one head
  const float* x;   // (Dh), already divided by sqrt(Dh)
  const int8_t* q;  // (Dh), scale and sum: for int8 keys
  float scale;
  int32_t sum;
};

// Dh is a multiple of 4. Keys and values of one head lie in blocks of 16 positions. A block of int8 ones begins with
// the positions' scales, (16) float32. Then a block of keys is (Dh, 16), of int8 ones (Dh / 4, 16, 4), code = key +
// 128; a block of values is (16, Dh). Keys have their last block first, so that they end where values begin and both
// are read as one piece of memory, from low to high; `keys` points behind block 0, `values` to block 0.
constexpr int kKvTypes = 3;  // in the order of mobillama_kv_type: F16, INT8, F32
constexpr int kKvBlock = 16;
template <class Value>
constexpr int kScaleBytes = sizeof(Value) == 1 ? 4 * kKvBlock : 0;

[[gnu::always_inline]] inline float load_float(const uint8_t* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Kernels {
  const char* name;
  Multiply multiply[kLayouts];

  // Groups of `group` (a multiple of 4; half sums are of group / 2): scale = max|x| / 127, q = nearest-even(x * (127 /
  // max|x|)), all zero where 127 / max|x| is infinite (max|x| is 0 or below 3.8e-37). half_sum may be null.
  void (*quantize)(const float* x, int count, int group, int8_t* q, float* scale, int32_t* sum, int32_t* half_sum);

  // 16 lanes, lane i % 16: s = fma(x, x, s); the lanes are summed as a tree (l + l+8, then +4, +2, +1).
  // out = weight * (x * (1 / sqrt(s / n + eps))).
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);

  // gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i], exp as in kernels_exp.h.
  void (*swiglu)(float* gate, const float* up, int n);

  // Pairs (i, i + half): x1 * cos - x2 * sin, x2 * cos + x1 * sin, as fma(x1, cos, -(x2 * sin)), fma(x2, cos, x1 *
  // sin).
  void (*rotate)(float* x, const float* cos, const float* sin, int half);

  // Nearest even; what is larger than kLargestHalf, infinity too, becomes that. NaN stays one.
  void (*to_half)(const float* x, int n, uint16_t* out);

  // scores[s] for positions 0 to length - 1, and 16-aligned padding behind them: acc = fma(q[d], k[d], acc) over d;
  // int8: float(dot) * (key_scale * query.scale). Beside, as much of `soon` is fetched as is read.
  void (*scores[kKvTypes])(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores,
                           Soon& soon);

  // exp(score - largest) in place, zero in the padding to a multiple of 16; the sum: 16 lanes, then the tree.
  float (*softmax)(float* scores, int length);

  // out[d] = sum over positions in order of fma(p, v, out); int8: fma(p * value_scale, float(v), out); times `factor`
  // at the end. `soon` as for scores.
  void (*mix[kKvTypes])(const float* p, const uint8_t* values, int head_dim, int length, float factor, float* out,
                        Soon& soon);
};

// nullptr where the library was not built for that instruction set.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();
const Kernels* neon_dot_kernels();
const Kernels* neon_i8mm_kernels();

}  // namespace mobillama
