// Kernels for x86 with AVX2, FMA and F16C. Built with the flags of those instruction sets; only called where the
// processor has them. Text and order of operations: kernels.h.
#include "kernels_avx2.h"

#include <algorithm>
#include <cmath>

#include "kernels_exp.h"

namespace mobillama {
namespace {

// ---- vectors: a loop in steps of 8, the last of them with only the lanes that are left ----

inline __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256 load_some(const float* at, int n) {
  return n >= 8 ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, lanes(n));
}
inline void store_some(float* at, int n, __m256 v) {
  n >= 8 ? _mm256_storeu_ps(at, v) : _mm256_maskstore_ps(at, lanes(n), v);
}

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
  for (; i + 8 <= n; i += 8)
    sums = _mm_add_epi32(sums, _mm_madd_epi16(_mm_cvtepi8_epi16(load_bytes8(q + i)), _mm_set1_epi16(1)));
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
    const float exact = 127.0f / largest;
    const __m256 inverse = _mm256_set1_ps(std::isinf(exact) ? 0.0f : exact);  // largest is 0, or too small to divide by
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
  for (int i = 0; i < n; i += 16)
    for (int half = 0; half < 2; half++) {
      const __m256 v = load_some(x + i + 8 * half, n - i - 8 * half);
      squares[half] = _mm256_fmadd_ps(v, v, squares[half]);
    }
  const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(tree(squares) / static_cast<float>(n) + eps));
  for (int i = 0; i < n; i += 8)
    store_some(out + i, n - i,
               _mm256_mul_ps(load_some(weight + i, n - i), _mm256_mul_ps(load_some(x + i, n - i), factor)));
}

inline __m256 exponential(__m256 x) {
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(kExpLow)), _mm256_set1_ps(kExpHigh));
  const __m256 n =
      _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2e)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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
  const __m256 most = _mm256_set1_ps(kLargestHalf), least = _mm256_set1_ps(-kLargestHalf);
  for (int i = 0; i < n; i += 8) {
    const __m256 below = _mm256_min_ps(most, load_some(x + i, n - i));  // of a NaN and a number the second
    const __m128i halves = _mm256_cvtps_ph(_mm256_max_ps(least, below), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(out + i, &halves, size_t(std::min(n - i, 8)) * 2);
  }
}

// ---- attention ----

// kBlocks blocks of 16 positions side by side, of which the last come first: their chains of multiply-adds hide each
// other's latency.
template <class Key, int kBlocks>
inline void score_blocks(const float* q, const Key* keys, int head_dim, float* scores, Soon& soon) {
  const size_t block = size_t(head_dim) * 16;
  __m256 acc[kBlocks][2];
  for (int b = 0; b < kBlocks; b++) acc[b][0] = acc[b][1] = _mm256_setzero_ps();
  for (int d = 0; d < head_dim; d++, keys += 16) {
    soon.keep_up<16 * kBlocks * sizeof(Key)>(d);
    const __m256 value = _mm256_set1_ps(q[d]);
    for (int b = 0; b < kBlocks; b++)
      for (int half = 0; half < 2; half++)
        acc[b][half] = _mm256_fmadd_ps(value, load8(keys + size_t(b) * block + 8 * half), acc[b][half]);
  }
  for (int b = 0; b < kBlocks; b++)
    for (int half = 0; half < 2; half++) _mm256_storeu_ps(scores + 16 * (kBlocks - 1 - b) + 8 * half, acc[b][half]);
}

template <class Key>
void scores_float(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& soon) {
  const size_t block = size_t(head_dim) * 16;
  int left = (length + 15) / 16;
  const Key* at = reinterpret_cast<const Key*>(keys) - size_t(left) * block;
  for (; left >= 4; at += 4 * block) score_blocks<Key, 4>(query.x, at, head_dim, scores + 16 * (left -= 4), soon);
  for (; left > 0; at += block) score_blocks<Key, 1>(query.x, at, head_dim, scores + 16 * --left, soon);
}

void scores_int8(const Query& query, const uint8_t* keys, int head_dim, int length, float* scores, Soon& soon) {
  const int last = (length - 1) / 16 * 16;
  const uint8_t* at = keys - size_t(head_dim + 4) * size_t(last + 16);
  const __m256 scale = _mm256_set1_ps(query.scale);
  for (int s = last; s >= 0; s -= 16) {
    soon.fetch();
    const float* key_scales = reinterpret_cast<const float*>(at);
    at += 64;
    __m256i dots[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int d = 0; d < head_dim; d += 4, at += 64) {
      soon.fetch();
      const __m256i q = broadcast4(query.q + d);
      for (int half = 0; half < 2; half++)
        dots[half] = _mm256_add_epi32(dots[half], signed_dot(load_signed(at + 32 * half), q));
    }
    for (int half = 0; half < 2; half++) {
      const __m256 both = _mm256_mul_ps(_mm256_loadu_ps(key_scales + 8 * half), scale);
      _mm256_storeu_ps(scores + s + 8 * half, _mm256_mul_ps(_mm256_cvtepi32_ps(dots[half]), both));
    }
  }
}

float softmax(float* scores, int length) {
  __m256 most = _mm256_set1_ps(scores[0]);
  for (int s = 0; s < length; s += 8) {
    const __m256 v = load_some(scores + s, length - s);
    most = length - s >= 8 ? _mm256_max_ps(most, v)
                           : _mm256_blendv_ps(most, _mm256_max_ps(most, v), _mm256_castsi256_ps(lanes(length - s)));
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

// Components `first` and on, one vector after the other.
template <class Value, int kVectors>
inline void mix_vectors(const float* p, const uint8_t* at, int first, int head_dim, int length, float factor,
                        float* out, Soon& soon) {
  const size_t dim = size_t(head_dim);
  __m256 acc[kVectors];
  for (int i = 0; i < kVectors; i++) acc[i] = _mm256_setzero_ps();
  for (int s = 0; s < length; s += 16) {
    if (sizeof(Value) == 1 && first == 0) soon.fetch();
    const uint8_t* scales = at;
    const Value* values = reinterpret_cast<const Value*>(at + kScaleBytes<Value>) + first;
    at += kScaleBytes<Value> + 16 * dim * sizeof(Value);
    for (int row = 0, rows = std::min(16, length - s); row < rows; row++, values += dim) {
      float weight = p[s + row];
      if constexpr (sizeof(Value) == 1) weight *= load_float(scales + 4 * row);
      const __m256 wide = _mm256_set1_ps(weight);
      soon.keep_up<8 * kVectors * sizeof(Value)>(row);
      for (int i = 0; i < kVectors; i++) acc[i] = _mm256_fmadd_ps(wide, load8(values + 8 * i), acc[i]);
    }
  }
  for (int i = 0; i < kVectors; i++)
    _mm256_storeu_ps(out + first + 8 * i, _mm256_mul_ps(acc[i], _mm256_set1_ps(factor)));
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
void mix(const float* p, const uint8_t* values, int head_dim, int length, float factor, float* out, Soon& soon) {
  int d = 0;
  for (; d + 64 <= head_dim; d += 64) mix_vectors<Value, 8>(p, values, d, head_dim, length, factor, out, soon);
  for (; d + 16 <= head_dim; d += 16) mix_vectors<Value, 2>(p, values, d, head_dim, length, factor, out, soon);
  for (; d + 8 <= head_dim; d += 8) mix_vectors<Value, 1>(p, values, d, head_dim, length, factor, out, soon);
  if (d == head_dim) return;
  const size_t dim = size_t(head_dim), block = kScaleBytes<Value> + 16 * dim * sizeof(Value);
  __m128 acc = _mm_setzero_ps();
  for (int s = 0; s < length; s++) {
    const uint8_t* at = values + size_t(s / 16) * block;
    float weight = p[s];
    if constexpr (sizeof(Value) == 1) weight *= load_float(at + 4 * (s % 16));
    const Value* row = reinterpret_cast<const Value*>(at + kScaleBytes<Value>) + size_t(s % 16) * dim;
    acc = _mm_fmadd_ps(_mm_set1_ps(weight), load4(row + d), acc);
  }
  _mm_storeu_ps(out + d, _mm_mul_ps(acc, _mm_set1_ps(factor)));
}

constexpr Kernels kAvx2 = {
    "avx2",
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

const Kernels* avx2_kernels() { return &kAvx2; }

}  // namespace mobillama
