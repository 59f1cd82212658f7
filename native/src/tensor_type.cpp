#include "tensor_type.h"

#include <bit>
#include <cstring>

namespace mobillama {

const TypeInfo* type_info(int32_t type) {
  static constexpr TypeInfo f32{"F32", 1, 4}, f16{"F16", 1, 2}, bf16{"BF16", 1, 2}, q4_0{"Q4_0", 32, 18},
      q5_0{"Q5_0", 32, 22}, q8_0{"Q8_0", 32, 34}, q3_k{"Q3_K", 256, 110}, q6_k{"Q6_K", 256, 210};
  switch (TensorType(type)) {
    case TensorType::F32: return &f32;
    case TensorType::F16: return &f16;
    case TensorType::BF16: return &bf16;
    case TensorType::Q4_0: return &q4_0;
    case TensorType::Q5_0: return &q5_0;
    case TensorType::Q8_0: return &q8_0;
    case TensorType::Q3_K: return &q3_k;
    case TensorType::Q6_K: return &q6_k;
  }
  return nullptr;
}

int64_t row_bytes(int32_t type, int64_t cols) {
  const TypeInfo* info = type_info(type);
  int64_t bytes = 0;
  if (info == nullptr || cols < 0 || cols % info->block != 0) return -1;
  return __builtin_mul_overflow(cols / info->block, int64_t{info->bytes}, &bytes) ? -1 : bytes;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) {  // zero, or a multiple of 2^-24: exact in a float
    const float value = float(mantissa) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | (size >> 13 & 0x1ff));  // NaN, made quiet
  if (size >= 0x47800000) return uint16_t(sign | 0x7c00);                        // 2^16 and above
  if (size < 0x38800000) {
    // Below 2^-14 halves are multiples of 2^-24. Added to 0.5, whose last bit is 2^-24, the sum is rounded to one by
    // the processor, and its lowest bits are the half.
    const float sum = std::bit_cast<float>(size) + 0.5f;
    return uint16_t(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000));
  }
  // Rounded on the 13 bits that fall away; a carry into the exponent is right, up to infinity.
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
  return uint16_t(sign | ((rounded >> 13) - (112 << 10)));
}

namespace {

uint16_t load_u16(const uint8_t* at) { return uint16_t(at[0] | at[1] << 8); }

// Blocks of 32: a half-precision scale, then the integers. Weight j of the first 16 lies in the low four bits of byte
// j, weight j + 16 in the high four.
void q4_0(const uint8_t* block, float* out) {
  const float scale = half_to_float(load_u16(block));
  for (int j = 0; j < 16; ++j) {
    out[j] = scale * float((block[2 + j] & 15) - 8);
    out[j + 16] = scale * float((block[2 + j] >> 4) - 8);
  }
}

// As Q4_0; bit j of the 32-bit word after the scale is the fifth bit of weight j.
void q5_0(const uint8_t* block, float* out) {
  const float scale = half_to_float(load_u16(block));
  const uint32_t high = uint32_t(load_u16(block + 2)) | uint32_t(load_u16(block + 4)) << 16;
  for (int j = 0; j < 16; ++j) {
    const int first = (block[6 + j] & 15) | int(high >> j & 1) << 4;
    const int second = block[6 + j] >> 4 | int(high >> (j + 16) & 1) << 4;
    out[j] = scale * float(first - 16);
    out[j + 16] = scale * float(second - 16);
  }
}

void q8_0(const uint8_t* block, float* out) {
  const float scale = half_to_float(load_u16(block));
  for (int j = 0; j < 32; ++j) out[j] = scale * float(int8_t(block[2 + j]));
}

// A block of 256: low four bits [128 bytes], high two bits [64], a signed scale for each 16 weights [16], a half. Each
// half of the block has four runs of 32 weights: runs r and r + 2 share bytes of the low bits, all four those of the
// high.
void q6_k(const uint8_t* block, float* out) {
  const float scale = half_to_float(load_u16(block + 208));
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = block + 64 * half;
    const uint8_t* high = block + 128 + 32 * half;
    for (int run = 0; run < 4; ++run) {
      for (int j = 0; j < 32; ++j) {
        const int index = 128 * half + 32 * run + j;
        const int bits = (low[32 * (run & 1) + j] >> (run < 2 ? 0 : 4) & 15) | (high[j] >> (2 * run) & 3) << 4;
        const float run_scale = scale * float(int8_t(block[192 + index / 16]));
        out[index] = run_scale * float(bits - 32);
      }
    }
  }
}

// A block of 256: the third bits [32 bytes], low two bits [64], sixteen 6-bit scales plus 32 [12], a half. Runs of 32
// weights: run r has bit r of the third bits, and bits 2 (r % 4) and above of its half's low bits.
void q3_k(const uint8_t* block, float* out) {
  const float scale = half_to_float(load_u16(block + 108));
  for (int index = 0; index < 256; ++index) {
    const int run = index / 32, j = index % 32;
    const int bits = (block[32 + 32 * (run / 4) + j] >> (2 * (run % 4)) & 3) | (block[j] >> run & 1) << 2;
    const float run_scale = scale * float(q3_k_scale(block + 96, index / 16));
    out[index] = run_scale * float(bits - 4);
  }
}

}  // namespace

int q3_k_scale(const uint8_t* scales, int run) {
  const int low = scales[run % 8] >> (run < 8 ? 0 : 4) & 15, high = scales[8 + run % 4] >> (2 * (run / 4)) & 3;
  return (low | high << 4) - 32;
}

void dequantize_row(TensorType type, const void* blocks, int64_t cols, float* out) {
  const uint8_t* in = static_cast<const uint8_t*>(blocks);
  switch (type) {
    case TensorType::F32:
      if (cols > 0) std::memcpy(out, in, size_t(cols) * sizeof(float));
      return;
    case TensorType::F16:
      for (int64_t i = 0; i < cols; ++i) out[i] = half_to_float(load_u16(in + 2 * i));
      return;
    case TensorType::BF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = std::bit_cast<float>(uint32_t(load_u16(in + 2 * i)) << 16);
      return;
    case TensorType::Q4_0:
      for (int64_t i = 0; i < cols; i += 32, in += 18) q4_0(in, out + i);
      return;
    case TensorType::Q5_0:
      for (int64_t i = 0; i < cols; i += 32, in += 22) q5_0(in, out + i);
      return;
    case TensorType::Q8_0:
      for (int64_t i = 0; i < cols; i += 32, in += 34) q8_0(in, out + i);
      return;
    case TensorType::Q3_K:
      for (int64_t i = 0; i < cols; i += 256, in += 110) q3_k(in, out + i);
      return;
    case TensorType::Q6_K:
      for (int64_t i = 0; i < cols; i += 256, in += 210) q6_k(in, out + i);
      return;
  }
}

}  // namespace mobillama
