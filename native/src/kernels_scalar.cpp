// The reference: every kernel in plain C++, the text of kernels.h turned into loops. Slow; all others are tested
// against it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "kernels_exp.h"
#include "tensor_type.h"

namespace mobillama {
namespace {

float load_half(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, 2);
  return half_to_float(half);
}

template <Layout kLayout>
float float_weight(const uint8_t* panel, int c, int row) {
  const size_t index = static_cast<size_t>(c) * kPanelRows + static_cast<size_t>(row);
  if constexpr (kLayout == Layout::F32) {
    float value;
    std::memcpy(&value, panel + 4 * index, 4);
    return value;
  } else if constexpr (kLayout == Layout::F16) {
    return load_half(panel + 2 * index);
  } else {
    uint16_t high;
    std::memcpy(&high, panel + 2 * index, 2);
    const uint32_t bits = static_cast<uint32_t>(high) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
}

template <Layout kLayout>
void multiply_float(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  for (int panel = begin; panel < end; panel++) {
    const uint8_t* data = w.data + static_cast<size_t>(panel) * w.panel_bytes;
    for (int t = 0; t < n; t++)
      for (int row = 0; row < kPanelRows; row++) {
        float acc[4] = {};
        const float* in = x.x + static_cast<size_t>(t) * static_cast<size_t>(w.cols);
        for (int c = 0; c < w.cols; c++) acc[c % 4] = std::fma(float_weight<kLayout>(data, c, row), in[c], acc[c % 4]);
        y[static_cast<size_t>(t) * stride + static_cast<size_t>(panel * kPanelRows + row)] =
            (acc[0] + acc[1]) + (acc[2] + acc[3]);
      }
  }
}

int nibble(const uint8_t* tile, int c, int row) {  // of column c in a tile's 4 x 64 bytes
  const int group = c / 4;
  const int byte = tile[64 * (group % 4) + 4 * row + c % 4];
  return group < 4 ? byte & 15 : byte >> 4;
}

struct Q4 {
  static constexpr int kBytes = 288, kOffset = 8;
  static int code(const uint8_t* tile, int c, int row) { return nibble(tile, c, row); }
};
struct Q5 {
  static constexpr int kBytes = 352, kOffset = 16;
  static int code(const uint8_t* tile, int c, int row) {
    const int bit = 4 * row + c % 4;
    return nibble(tile, c, row) | (tile[256 + 8 * (c / 4) + bit / 8] >> (bit % 8) & 1) << 4;
  }
};
struct Q8 {
  static constexpr int kBytes = 544, kOffset = 128;
  static int code(const uint8_t* tile, int c, int row) { return tile[64 * (c / 4) + 4 * row + c % 4]; }
};

template <class Codes>
void multiply_groups(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  const int groups = w.cols / kGroup;
  for (int panel = begin; panel < end; panel++)
    for (int t = 0; t < n; t++)
      for (int row = 0; row < kPanelRows; row++) {
        const uint8_t* tile = w.data + static_cast<size_t>(panel) * w.panel_bytes;
        float acc = 0;
        for (int g = 0; g < groups; g++, tile += Codes::kBytes) {
          const size_t at = static_cast<size_t>(t) * static_cast<size_t>(groups) + static_cast<size_t>(g);
          const int8_t* q = x.q + at * kGroup;
          int32_t dot = 0;
          for (int c = 0; c < kGroup; c++) dot += (Codes::code(tile, c, row) - Codes::kOffset) * q[c];
          acc = std::fma(static_cast<float>(dot), load_half(tile + Codes::kBytes - 32 + 2 * row) * x.scale[at], acc);
        }
        y[static_cast<size_t>(t) * stride + static_cast<size_t>(panel * kPanelRows + row)] = acc;
      }
}

struct Q6 {  // 256 bytes of nibbles, 128 of two bits each
  static constexpr int kTile = 384, kOffset = 32;
  static int code(const uint8_t* tile, int c, int row) {
    const int group = c / 4;
    return nibble(tile, c, row) | (tile[256 + 64 * (group / 4) + 4 * row + c % 4] >> (2 * (group % 4)) & 3) << 4;
  }
};
struct Q3 {
  static constexpr int kTile = 192, kOffset = 4;
  static int code(const uint8_t* tile, int c, int row) {
    const int group = c / 4, half = group / 4;
    const uint8_t* at = tile + 4 * row + c % 4;
    if (group % 4 < 3) return at[64 * (group % 4)] >> (3 * half) & 7;
    return (at[64 * half] >> 6) << 1 | (at[128] >> (6 + half) & 1);
  }
};

template <class Codes>
void multiply_supers(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  constexpr int kGroups = kSuper / kGroup, kBytes = 288 + kGroups * Codes::kTile;
  const int groups = w.cols / kGroup;
  for (int panel = begin; panel < end; panel++)
    for (int t = 0; t < n; t++)
      for (int row = 0; row < kPanelRows; row++) {
        const uint8_t* block = w.data + static_cast<size_t>(panel) * w.panel_bytes;
        float acc = 0;
        for (int g = 0; g < groups; g++) {
          const int inside = g % kGroups;
          const uint8_t* scales = block + 32 + 32 * inside;
          const uint8_t* tile = block + 288 + Codes::kTile * inside;
          const size_t at = static_cast<size_t>(t) * static_cast<size_t>(groups) + static_cast<size_t>(g);
          int32_t dots[2] = {};
          for (int c = 0; c < kGroup; c++)
            dots[c / 16] += (Codes::code(tile, c, row) - Codes::kOffset) * x.q[at * kGroup + static_cast<size_t>(c)];
          const int32_t dot =
              static_cast<int8_t>(scales[2 * row]) * dots[0] + static_cast<int8_t>(scales[2 * row + 1]) * dots[1];
          acc = std::fma(static_cast<float>(dot), load_half(block + 2 * row) * x.scale[at], acc);
          if (inside == kGroups - 1) block += kBytes;
        }
        y[static_cast<size_t>(t) * stride + static_cast<size_t>(panel * kPanelRows + row)] = acc;
      }
}

void quantize(const float* x, int count, int group, int8_t* q, float* scale, int32_t* sum, int32_t* half_sum) {
  for (int begin = 0, g = 0; begin < count; begin += group, g++) {
    float largest = 0;
    for (int i = 0; i < group; i++) largest = std::max(largest, std::fabs(x[begin + i]));
    const float exact = 127.0f / largest;
    const float inverse = std::isinf(exact) ? 0.0f : exact;  // largest is 0, or too small to divide by
    int32_t halves[2] = {};
    for (int i = 0; i < group; i++) {
      const float code = std::nearbyint(x[begin + i] * inverse);
      q[begin + i] =
          std::fabs(code) <= 127.0f ? static_cast<int8_t>(code) : int8_t{0};  // not a number: anything defined
      halves[i >= group / 2] += q[begin + i];
    }
    scale[g] = largest / 127.0f;
    sum[g] = halves[0] + halves[1];
    if (half_sum) half_sum[2 * g] = halves[0], half_sum[2 * g + 1] = halves[1];
  }
}

float tree(float* lanes) {  // of 16
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; i++) lanes[i] += lanes[i + step];
  return lanes[0];
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  float lanes[16] = {};
  for (int i = 0; i < n; i++) lanes[i % 16] = std::fma(x[i], x[i], lanes[i % 16]);
  const float factor = 1.0f / std::sqrt(tree(lanes) / static_cast<float>(n) + eps);
  for (int i = 0; i < n; i++) out[i] = weight[i] * (x[i] * factor);
}

float exponential(float x) {
  x = x > kExpLow ? x : kExpLow;  // in this form what is not a number becomes the lower end
  x = x < kExpHigh ? x : kExpHigh;
  const float n = std::nearbyint(x * kLog2e);
  const float r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));
  float value = kExp[6];
  for (int i = 5; i >= 0; i--) value = std::fma(value, r, kExp[i]);
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return value * power;
}

void swiglu(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

void rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i++) {
    const float first = x[i], second = x[i + half];
    x[i] = std::fma(first, cos[i], -(second * sin[i]));
    x[i + half] = std::fma(second, cos[i], first * sin[i]);
  }
}

void to_half(const float* x, int n, uint16_t* out) {
  for (int i = 0; i < n; i++) out[i] = float_to_half(std::clamp(x[i], -kLargestHalf, kLargestHalf));
}

float as_float(uint16_t value) { return half_to_float(value); }
float as_float(float value) { return value; }
float as_float(int8_t value) { return value; }

template <class Key>
void scores_float(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon&) {
  const Key* block = reinterpret_cast<const Key*>(keys) - 16 * head_dim;
  for (int s = 0; s < length; s += 16, block -= 16 * head_dim)
    for (int lane = 0; lane < 16; lane++) {
      float acc = 0;
      for (int d = 0; d < head_dim; d++) acc = std::fma(query.x[d], as_float(block[16 * d + lane]), acc);
      scores[s + lane] = acc;
    }
}

void scores_int8(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon&) {
  const int block_bytes = kScaleBytes<int8_t> + 16 * head_dim;
  const uint8_t* block = keys - block_bytes;
  for (int s = 0; s < length; s += 16, block -= block_bytes)
    for (int lane = 0; lane < 16; lane++) {
      const uint8_t* codes = block + kScaleBytes<int8_t> + 4 * lane;
      int32_t dot = 0;
      for (int d = 0; d < head_dim; d++) dot += (codes[64 * (d / 4) + d % 4] - 128) * query.q[d];
      scores[s + lane] = static_cast<float>(dot) * (load_float(block + 4 * lane) * query.scale);
    }
}

float softmax(float* scores, int length) {
  float largest = scores[0];
  for (int s = 1; s < length; s++) largest = std::max(largest, scores[s]);
  float lanes[16] = {};
  for (int s = 0; s < length; s++) {
    scores[s] = exponential(scores[s] - largest);
    lanes[s % 16] += scores[s];
  }
  for (int s = length; s % 16; s++) scores[s] = 0;
  return tree(lanes);
}

template <class Value>
void mix(const float* p, const uint8_t* values, int head_dim, int length, float factor, float* out, Soon&) {
  const size_t dim = static_cast<size_t>(head_dim), block_bytes = kScaleBytes<Value> + 16 * dim * sizeof(Value);
  for (size_t d = 0; d < dim; d++) {
    float acc = 0;
    for (size_t s = 0; s < static_cast<size_t>(length); s++) {
      const uint8_t* block = values + s / 16 * block_bytes;
      const Value* rows = reinterpret_cast<const Value*>(block + kScaleBytes<Value>);
      const float weight = sizeof(Value) == 1 ? p[s] * load_float(block + 4 * (s % 16)) : p[s];
      acc = std::fma(weight, as_float(rows[s % 16 * dim + d]), acc);
    }
    out[d] = acc * factor;
  }
}

constexpr Kernels kScalar = {
    "scalar",
    {multiply_float<Layout::F32>, multiply_float<Layout::F16>, multiply_float<Layout::BF16>, multiply_groups<Q4>,
     multiply_groups<Q5>, multiply_groups<Q8>, multiply_supers<Q3>, multiply_supers<Q6>},
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

const Kernels* scalar_kernels() { return &kScalar; }

}  // namespace mobillama
