// Rounding to the file's types. A block's scale is the one of least squared error among a few dozen: each candidate
// gives integers, the integers give the scale that suits them best (least squares), rounded to half precision, and that
// scale gives integers and error anew. The rule of the largest weight (it lands on the last integer) is one of them, so
// that no block comes out worse than by that rule. The same bits on every machine: no step depends on its vectors.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "failure.h"
#include "tensor_type.h"

namespace mobillama {

namespace {

// Four floats side by side; sums run in four lanes that are added in a fixed order.
using Lanes = float __attribute__((vector_size(16)));

Lanes all(float value) { return Lanes{value, value, value, value}; }
float sum(Lanes v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// Measured on normal weights: 13 places come within 0.1% of the least error that 2,000 find for Q4_0, within 0.3% for
// Q5_0.
constexpr int tries_each_way = 6;
constexpr float try_step = 0.2f;

// What integers a block may hold.
struct Grid {
  float low, high;
};

// Nearest integers, ties to even: adding 1.5 * 2^23 pushes the fraction out of a float.
Lanes nearest(Lanes v, Grid grid) {
  v = v < all(grid.low) ? all(grid.low) : v;
  v = v > all(grid.high) ? all(grid.high) : v;
  return (v + all(12582912.0f)) - all(12582912.0f);
}

template <int N>
struct Block {
  Lanes x[N / 4], w[N / 4];  // weights, and what a squared error at each of them counts
  float largest = 0;         // the weight of largest size, with its sign

  // Importance counts relative to `most`, so that sums stay in range; without it (most = 0) all weights count alike.
  Block(const float* weights, const float* importance, float most) {
    for (int i = 0; i < N; ++i) {
      if (std::fabs(weights[i]) > std::fabs(largest)) largest = weights[i];
      x[i / 4][i % 4] = weights[i];
      w[i / 4][i % 4] = most > 0 ? importance[i] / most : 1;
    }
  }

  // The best scale for the integers that `scale` gives; 0 where these are all 0.
  float refit(float scale, Grid grid) const {
    const Lanes inverse = all(1 / scale);
    Lanes qx = all(0), qq = all(0);
    for (int i = 0; i < N / 4; ++i) {
      const Lanes q = nearest(x[i] * inverse, grid), wq = w[i] * q;
      qx += wq * x[i];
      qq += wq * q;
    }
    const float below = sum(qq);
    return below > 0 ? sum(qx) / below : 0;
  }

  float error(float scale, Grid grid) const {
    const Lanes inverse = all(scale != 0 ? 1 / scale : 0), step = all(scale);
    Lanes total = all(0);
    for (int i = 0; i < N / 4; ++i) {
      const Lanes difference = x[i] - step * nearest(x[i] * inverse, grid);
      total += w[i] * difference * difference;
    }
    return sum(total);
  }

  void integers(float scale, Grid grid, int* out) const {
    const Lanes inverse = all(scale != 0 ? 1 / scale : 0);
    for (int i = 0; i < N / 4; ++i) {
      const Lanes q = nearest(x[i] * inverse, grid);
      for (int j = 0; j < 4; ++j) out[4 * i + j] = int(q[j]);
    }
  }

  // The best scale, as `round` leaves it, with the largest weight tried at a few places around either end of the grid.
  template <typename Round>
  float best_scale(Grid grid, Round round) const {
    float best = round(largest / grid.low);
    float least = error(best, grid);
    const auto consider = [&](float scale) {
      scale = round(scale);
      const float now = error(scale, grid);
      if (now < least) {
        least = now;
        best = scale;
      }
    };
    for (int t = -tries_each_way; t <= tries_each_way; ++t) {
      const float place = float(t) * try_step;
      consider(refit(largest / (grid.low + place), grid));
      consider(refit(largest / (grid.high + place), grid));
    }
    return best;
  }
};

// The largest of n importances; 0 if there are none.
float most_important(const float* importance, int n) {
  float most = 0;
  for (int i = 0; importance != nullptr && i < n; ++i) most = std::max(most, importance[i]);
  return most;
}

float to_half_and_back(float scale) { return half_to_float(float_to_half(scale)); }

void store_half(float value, uint8_t* at) {
  const uint16_t half = float_to_half(value);
  std::memcpy(at, &half, sizeof half);
}

// Blocks of 32 with one half-precision scale; `pack` writes a block's integers behind it.
template <typename Pack>
void quantize_32(const float* row, int64_t cols, const float* importance, Grid grid, int bytes, uint8_t* out,
                 Pack pack) {
  for (int64_t i = 0; i < cols; i += 32, out += bytes) {
    const float* important = importance == nullptr ? nullptr : importance + i;
    const Block<32> block(row + i, important, most_important(important, 32));
    const float scale = block.best_scale(grid, to_half_and_back);
    int q[32];
    block.integers(scale, grid, q);
    store_half(scale, out);
    pack(q, out + 2);
  }
}

void pack_q4_0(const int* q, uint8_t* out) {
  for (int j = 0; j < 16; ++j) out[j] = uint8_t((q[j] + 8) | (q[j + 16] + 8) << 4);
}

void pack_q5_0(const int* q, uint8_t* out) {
  uint32_t fifth = 0;
  for (int j = 0; j < 32; ++j) fifth |= uint32_t((q[j] + 16) >> 4) << j;
  std::memcpy(out, &fifth, sizeof fifth);
  for (int j = 0; j < 16; ++j) out[4 + j] = uint8_t(((q[j] + 16) & 15) | ((q[j + 16] + 16) & 15) << 4);
}

void pack_q8_0(const int* q, uint8_t* out) {
  for (int j = 0; j < 32; ++j) out[j] = uint8_t(int8_t(q[j]));
}

// Sixteen runs of 16 weights, the scale of each a whole multiple of the block's half.
struct Q6 {
  static constexpr Grid grid{-32, 31};
  static constexpr int least = -128, most = 127;  // multiples
  // Of the largest scale. A smaller one moves all others: one of a few suits them best.
  static constexpr int largest[] = {-128, -127, -126, -125, -124, -122, -120, -116};
  static void pack(const int* q, const int* multiples, float unit, uint8_t* out) {
    for (int half = 0; half < 2; ++half) {
      const int* from = q + 128 * half;
      for (int j = 0; j < 64; ++j)
        out[64 * half + j] = uint8_t(((from[j] + 32) & 15) | ((from[j + 64] + 32) & 15) << 4);
      for (int j = 0; j < 32; ++j) {
        int high = 0;
        for (int run = 0; run < 4; ++run) high |= (from[32 * run + j] + 32) >> 4 << (2 * run);
        out[128 + 32 * half + j] = uint8_t(high);
      }
    }
    for (int r = 0; r < 16; ++r) out[192 + r] = uint8_t(int8_t(multiples[r]));
    store_half(unit, out + 208);
  }
};

struct Q3 {
  static constexpr Grid grid{-4, 3};
  static constexpr int least = -32, most = 31;
  static constexpr int largest[] = {-32, -31, -30, -29, -28, -27, -26, -25};
  static void pack(const int* q, const int* multiples, float unit, uint8_t* out) {
    std::memset(out, 0, 108);
    for (int i = 0; i < 256; ++i) {
      const int run = i / 32, j = i % 32, code = q[i] + 4;
      out[j] |= uint8_t((code >> 2) << run);
      out[32 + 32 * (run / 4) + j] |= uint8_t((code & 3) << (2 * (run % 4)));
    }
    for (int r = 0; r < 16; ++r) {
      const int code = multiples[r] + 32;
      out[96 + r % 8] |= uint8_t((code & 15) << (r < 8 ? 0 : 4));
      out[104 + r % 4] |= uint8_t((code >> 4) << (2 * (r / 4)));
    }
    store_half(unit, out + 108);
  }
};

template <class Kind>
struct SuperBlock {
  std::vector<Block<16>> runs;
  float scales[16];  // the best of each run, were it free
  float unit = 0, error = std::numeric_limits<float>::infinity();
  int multiples[16];

  SuperBlock(const float* row, const float* importance) {
    const float most = most_important(importance, 256);
    float largest = 0;
    for (int r = 0; r < 16; ++r) {
      runs.emplace_back(row + 16 * r, importance == nullptr ? nullptr : importance + 16 * r, most);
      scales[r] = runs.back().best_scale(Kind::grid, [](float scale) { return scale; });
      if (std::fabs(scales[r]) > std::fabs(largest)) largest = scales[r];
    }
    for (const int multiple : Kind::largest) try_unit(to_half_and_back(largest / float(multiple)));
  }

  void try_unit(float candidate) {
    int chosen[16];
    float total = 0;
    constexpr int low = Kind::least, high = Kind::most;
    for (int r = 0; r < 16; ++r) {
      const int about =
          candidate != 0 ? int(std::clamp(std::nearbyint(scales[r] / candidate), float(low), float(high))) : 0;
      float least = std::numeric_limits<float>::infinity();
      for (int multiple = std::max(about - 1, low); multiple <= std::min(about + 1, high); ++multiple) {
        const float now = runs[size_t(r)].error(candidate * float(multiple), Kind::grid);
        if (now < least) {
          least = now;
          chosen[r] = multiple;
        }
      }
      total += least;
    }
    if (total < error) {
      error = total;
      unit = candidate;
      std::copy(chosen, chosen + 16, multiples);
    }
  }

  void write(uint8_t* out) const {
    int q[256];
    for (int r = 0; r < 16; ++r) runs[size_t(r)].integers(unit * float(multiples[r]), Kind::grid, q + 16 * r);
    Kind::pack(q, multiples, unit, out);
  }
};

template <class Kind>
void quantize_256(const float* row, int64_t cols, const float* importance, int bytes, uint8_t* out) {
  for (int64_t i = 0; i < cols; i += 256, out += bytes)
    SuperBlock<Kind>(row + i, importance == nullptr ? nullptr : importance + i).write(out);
}

uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The largest size of a weight that a type holds: above it the weight, or its block's scale, would round to infinity.
float largest_weight(TensorType type) {
  constexpr float half = 65504;
  switch (type) {
    case TensorType::F16: return half;
    case TensorType::BF16: return 0x1.fep127f;
    case TensorType::Q4_0: return 8 * half;
    case TensorType::Q5_0: return 16 * half;
    case TensorType::Q8_0: return 127 * half;
    // The scale that a run would like best must be finite over its largest multiple.
    case TensorType::Q3_K: return 4 * 22 * half;
    case TensorType::Q6_K: return 32 * 116 * half;
    case TensorType::F32: break;
  }
  return std::numeric_limits<float>::max();
}

void check(const float* row, int64_t cols, const float* importance, float largest, const char* type) {
  for (int64_t i = 0; i < cols; ++i) {
    if (!(std::fabs(row[i]) <= largest)) {
      fail(MOBILLAMA_INVALID, "weight %lld of the row is %g; %s holds finite weights of size up to %g", (long long)i,
           double(row[i]), type, double(largest));
    }
    if (importance != nullptr && !(importance[i] >= 0 && std::isfinite(importance[i]))) {
      fail(MOBILLAMA_INVALID, "the importance of column %lld is %g; expected a finite number, 0 or more", (long long)i,
           double(importance[i]));
    }
  }
}

}  // namespace

void quantize_row(TensorType type, const float* row, int64_t cols, const float* importance, void* blocks) {
  const TypeInfo* info = type_info(int32_t(type));
  if (info == nullptr) fail(MOBILLAMA_INVALID, "there is no tensor type %d in this engine", int(type));
  if (row_bytes(int32_t(type), cols) < 0) {
    fail(MOBILLAMA_INVALID, "a row of %lld weights cannot be %s, whose blocks take %d; choose another type",
         (long long)cols, info->name, info->block);
  }
  check(row, cols, importance, largest_weight(type), info->name);
  auto* out = static_cast<uint8_t*>(blocks);
  switch (type) {
    case TensorType::F32:
      if (cols > 0) std::memcpy(out, row, size_t(cols) * sizeof(float));
      return;
    case TensorType::F16:
      for (int64_t i = 0; i < cols; ++i) store_half(row[i], out + 2 * i);
      return;
    case TensorType::BF16:
      for (int64_t i = 0; i < cols; ++i) {
        const uint16_t rounded = float_to_bf16(row[i]);
        std::memcpy(out + 2 * i, &rounded, sizeof rounded);
      }
      return;
    case TensorType::Q4_0: return quantize_32(row, cols, importance, {-8, 7}, info->bytes, out, pack_q4_0);
    case TensorType::Q5_0: return quantize_32(row, cols, importance, {-16, 15}, info->bytes, out, pack_q5_0);
    case TensorType::Q8_0: return quantize_32(row, cols, importance, {-127, 127}, info->bytes, out, pack_q8_0);
    case TensorType::Q3_K: return quantize_256<Q3>(row, cols, importance, info->bytes, out);
    case TensorType::Q6_K: return quantize_256<Q6>(row, cols, importance, info->bytes, out);
  }
}

}  // namespace mobillama
