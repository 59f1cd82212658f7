// Kernels for every AArch64 processor: Armv8.0 with NEON. Text and order of operations: kernels.h.
#include "kernels_neon.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels_exp.h"

namespace mobillama {
namespace {

// Bytes are multiplied into int16, two columns apart side by side, and neighbours are added when they are widened.
struct Neon {
  static constexpr int kBlock = 2;
  struct Sum {
    int16x8_t narrow[2] = {vdupq_n_s16(0), vdupq_n_s16(0)};
    int32x4_t wide[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  };
  template <int kLane>
  static void add(Sum& sum, int8x16_t codes, int8x16_t q) {
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(q), kLane));
    sum.narrow[0] = vmlal_s8(sum.narrow[0], vget_low_s8(codes), vget_low_s8(four));
    sum.narrow[1] = vmlal_high_s8(sum.narrow[1], codes, four);
  }
  static void widen(Sum& sum) {
    for (int i = 0; i < 2; i++) {
      sum.wide[i] = vpadalq_s16(sum.wide[i], sum.narrow[i]);
      sum.narrow[i] = vdupq_n_s16(0);
    }
  }
  static int32x4_t total(const Sum& sum) { return vpaddq_s32(sum.wide[0], sum.wide[1]); }
};

template <Layout kLayout>
struct Floats {
  static constexpr int kBlock = 3, kColumnBytes = kPanelRows * (kLayout == Layout::F32 ? 4 : 2);

  static float32x4_t load_weights(const uint8_t* at) {
    if constexpr (kLayout == Layout::F32) return vreinterpretq_f32_u8(vld1q_u8(at));
    if constexpr (kLayout == Layout::F16) return load_scales(at);
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(at)), 16));
  }

  // kQuads times 4 rows, from `panel` on; more than one vector against all of them would not fit the 32 registers.
  template <int kTokens, int kQuads, bool kStream>
  static void quads(const uint8_t* panel, int cols, const float* x, float* y, size_t stride) {
    float32x4_t acc[kTokens][kQuads][4];
    for (int t = 0; t < kTokens; t++)
      for (int quad = 0; quad < kQuads; quad++)
        for (int i = 0; i < 4; i++) acc[t][quad][i] = vdupq_n_f32(0);
    const auto column = [&](int c, int i) {
      for (int quad = 0; quad < kQuads; quad++) {
        const float32x4_t weights = load_weights(panel + size_t(c) * kColumnBytes + quad * kColumnBytes / 4);
        for (int t = 0; t < kTokens; t++)
          acc[t][quad][i] = vfmaq_n_f32(acc[t][quad][i], weights, x[size_t(t) * size_t(cols) + size_t(c)]);
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
      for (int quad = 0; quad < kQuads; quad++) {
        const float32x4_t* a = acc[t][quad];
        vst1q_f32(y + size_t(t) * stride + 4 * quad, vaddq_f32(vaddq_f32(a[0], a[1]), vaddq_f32(a[2], a[3])));
      }
  }

  template <int kTokens, bool kStream>
  static void run(const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y, size_t stride) {
    const float* in = x.x + size_t(first) * size_t(w.cols);
    y += size_t(first) * stride;
    if constexpr (kTokens == 1) return quads<1, 4, kStream>(panel, w.cols, in, y, stride);
    quads<kTokens, 2, kStream>(panel, w.cols, in, y, stride);
    quads<kTokens, 2, kStream>(panel + kColumnBytes / 2, w.cols, in, y + 8, stride);
  }
};

// ---- vectors: in steps of 4 lanes, the last of them with only those that are left ----

inline float32x4_t load_some(const float* at, int n) {  // zeros behind the n-th
  if (n >= 4) return vld1q_f32(at);
  float values[4] = {};
  for (int i = 0; i < n; i++) values[i] = at[i];
  return vld1q_f32(values);
}

inline void store_some(float* at, int n, float32x4_t v) {
  if (n >= 4) return vst1q_f32(at, v);
  float values[4];
  vst1q_f32(values, v);
  for (int i = 0; i < n; i++) at[i] = values[i];
}

inline float tree(const float32x4_t v[4]) {  // of 16 lanes, the order of kernels.h
  const float32x4_t four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

inline int32_t sum_of(const int8_t* q, int n) {
  int32_t sum = 0;
  int i = 0;
  for (; i + 16 <= n; i += 16) sum += vaddlvq_s8(vld1q_s8(q + i));
  for (; i < n; i++) sum += q[i];
  return sum;
}

void quantize(const float* x, int count, int group, int8_t* q, float* scale, int32_t* sum, int32_t* half_sum) {
  for (int g = 0; g * group < count; g++, x += group, q += group) {
    float32x4_t most = vdupq_n_f32(0);
    for (int i = 0; i < group; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
    const float largest = vmaxvq_f32(most);
    const float exact = 127.0f / largest;
    const float inverse = std::isinf(exact) ? 0.0f : exact;  // largest is 0, or too small to divide by
    for (int i = 0; i < group; i += 4) {
      const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse)));
      const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
      std::memcpy(q + i, &bytes, 4);
    }
    const int32_t first = sum_of(q, group / 2), second = sum_of(q + group / 2, group / 2);
    scale[g] = largest / 127.0f;
    sum[g] = first + second;
    if (half_sum) half_sum[2 * g] = first, half_sum[2 * g + 1] = second;
  }
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  float32x4_t squares[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int i = 0; i < n; i += 16)
    for (int quad = 0; quad < 4; quad++) {
      const float32x4_t v = load_some(x + i + 4 * quad, n - i - 4 * quad);
      squares[quad] = vfmaq_f32(squares[quad], v, v);
    }
  const float factor = 1.0f / std::sqrt(tree(squares) / static_cast<float>(n) + eps);
  for (int i = 0; i < n; i += 4)
    store_some(out + i, n - i, vmulq_f32(load_some(weight + i, n - i), vmulq_n_f32(load_some(x + i, n - i), factor)));
}

inline float32x4_t exponential(float32x4_t x) {
  x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(kExpLow)), vdupq_n_f32(kExpHigh));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(x, kLog2e));
  const float32x4_t r = vfmaq_n_f32(vfmaq_n_f32(x, n, -kLn2High), n, -kLn2Low);
  float32x4_t value = vdupq_n_f32(kExp[6]);
  for (int i = 5; i >= 0; i--) value = vfmaq_f32(vdupq_n_f32(kExp[i]), value, r);
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(value, vreinterpretq_f32_s32(power));
}

void swiglu(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i += 4) {
    const float32x4_t g = load_some(gate + i, n - i);
    const float32x4_t silu = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), exponential(vnegq_f32(g))));
    store_some(gate + i, n - i, vmulq_f32(silu, load_some(up + i, n - i)));
  }
}

void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 4) {
    const int left = half - i;
    const float32x4_t first = load_some(x + i, left), second = load_some(x + half + i, left);
    const float32x4_t c = load_some(cos + i, left), s = load_some(sin + i, left);
    store_some(x + i, left, vfmaq_f32(vnegq_f32(vmulq_f32(second, s)), first, c));
    store_some(x + half + i, left, vfmaq_f32(vmulq_f32(first, s), second, c));
  }
}

void to_half(const float* x, int n, uint16_t* out) {
  const float32x4_t most = vdupq_n_f32(kLargestHalf), least = vdupq_n_f32(-kLargestHalf);
  for (int i = 0; i < n; i += 4) {
    const float16x4_t halves = vcvt_f16_f32(vmaxq_f32(least, vminq_f32(most, load_some(x + i, n - i))));
    std::memcpy(out + i, &halves, size_t(std::min(n - i, 4)) * 2);
  }
}

// ---- attention ----

// kBlocks blocks of 16 positions side by side, of which the last come first: their chains of multiply-adds hide each
// other's latency.
template <class Key, int kBlocks>
inline void score_blocks(const float* q, const Key* keys, int head_dim, float* scores, Soon& soon) {
  const size_t block = size_t(head_dim) * 16;
  float32x4_t acc[kBlocks][4];
  for (int b = 0; b < kBlocks; b++)
    for (int quad = 0; quad < 4; quad++) acc[b][quad] = vdupq_n_f32(0);
  for (int d = 0; d < head_dim; d++, keys += 16) {
    soon.keep_up<16 * kBlocks * sizeof(Key)>(d);
    for (int b = 0; b < kBlocks; b++)
      for (int quad = 0; quad < 4; quad++)
        acc[b][quad] = vfmaq_n_f32(acc[b][quad], load4(keys + size_t(b) * block + 4 * quad), q[d]);
  }
  for (int b = 0; b < kBlocks; b++)
    for (int quad = 0; quad < 4; quad++) vst1q_f32(scores + 16 * (kBlocks - 1 - b) + 4 * quad, acc[b][quad]);
}

template <class Key>
void scores_float(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& soon) {
  const size_t block = size_t(head_dim) * 16;
  int left = (length + 15) / 16;
  const Key* at = reinterpret_cast<const Key*>(keys) - size_t(left) * block;
  for (; left >= 4; at += 4 * block) score_blocks<Key, 4>(query.x, at, head_dim, scores + 16 * (left -= 4), soon);
  for (; left > 0; at += block) score_blocks<Key, 1>(query.x, at, head_dim, scores + 16 * --left, soon);
}

inline uint32x4_t lanes(int n) {
  const int32x4_t lane = {0, 1, 2, 3};
  return vcltq_s32(lane, vdupq_n_s32(n));
}

float softmax(float* scores, int length) {
  float32x4_t most = vdupq_n_f32(scores[0]);
  for (int s = 0; s < length; s += 4) most = vbslq_f32(lanes(length - s), vmaxq_f32(most, vld1q_f32(scores + s)), most);
  const float32x4_t largest = vdupq_n_f32(vmaxvq_f32(most));
  float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int s = 0; s < length; s += 16)
    for (int quad = 0; quad < 4; quad++) {
      float* at = scores + s + 4 * quad;
      const float32x4_t power = exponential(vsubq_f32(vld1q_f32(at), largest));
      const float32x4_t kept = vbslq_f32(lanes(length - s - 4 * quad), power, vdupq_n_f32(0));
      vst1q_f32(at, kept);
      sums[quad] = vaddq_f32(sums[quad], kept);
    }
  return tree(sums);
}

inline float32x4_t load_value(const float* at) { return load4(at); }
inline float32x4_t load_value(const uint16_t* at) { return load4(at); }
inline float32x4_t load_value(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(static_cast<uint32_t>(four))))));
}

// Components `first` and on, one vector after the other.
template <class Value, int kVectors>
inline void mix_vectors(const float* p, const uint8_t* at, int first, int head_dim, int length, float factor,
                        float* out, Soon& soon) {
  const size_t dim = size_t(head_dim);
  float32x4_t acc[kVectors];
  for (int i = 0; i < kVectors; i++) acc[i] = vdupq_n_f32(0);
  for (int s = 0; s < length; s += 16) {
    if (sizeof(Value) == 1 && first == 0) soon.fetch();
    const uint8_t* scales = at;
    const Value* values = reinterpret_cast<const Value*>(at + kScaleBytes<Value>) + first;
    at += kScaleBytes<Value> + 16 * dim * sizeof(Value);
    for (int row = 0, rows = std::min(16, length - s); row < rows; row++, values += dim) {
      float weight = p[s + row];
      if constexpr (sizeof(Value) == 1) weight *= load_float(scales + 4 * row);
      soon.keep_up<4 * kVectors * sizeof(Value)>(row);
      for (int i = 0; i < kVectors; i++) acc[i] = vfmaq_n_f32(acc[i], load_value(values + 4 * i), weight);
    }
  }
  for (int i = 0; i < kVectors; i++) vst1q_f32(out + first + 4 * i, vmulq_n_f32(acc[i], factor));
}

template <class Value>
void mix(const float* p, const uint8_t* values, int head_dim, int length, float factor, float* out, Soon& soon) {
  int d = 0;  // head_dim is a multiple of 4
  for (; d + 64 <= head_dim; d += 64) mix_vectors<Value, 16>(p, values, d, head_dim, length, factor, out, soon);
  for (; d + 16 <= head_dim; d += 16) mix_vectors<Value, 4>(p, values, d, head_dim, length, factor, out, soon);
  for (; d + 4 <= head_dim; d += 4) mix_vectors<Value, 1>(p, values, d, head_dim, length, factor, out, soon);
}

constexpr Kernels kNeon = {
    "neon",
    {multiply<Floats<Layout::F32>>, multiply<Floats<Layout::F16>>, multiply<Floats<Layout::BF16>>,
     multiply<Groups<Neon, Q4>>, multiply<Groups<Neon, Q5>>, multiply<Groups<Neon, Q8>>, multiply<Supers<Neon, Q3>>,
     multiply<Supers<Neon, Q6>>},
    quantize,
    rms_norm,
    swiglu,
    rotate,
    to_half,
    {scores_float<uint16_t>, scores_int8<Neon>, scores_float<float>},
    softmax,
    {mix<uint16_t>, mix<int8_t>, mix<float>},
};

}  // namespace

const Kernels* neon_kernels() { return &kNeon; }

}  // namespace mobillama
