// The GGUF tensor types this engine knows, as they lie in a file, and the scalar rounding to and from them.
#pragma once

#include <cstdint>

namespace mobillama {

enum class TensorType : int32_t { F32 = 0, F16 = 1, Q4_0 = 2, Q5_0 = 6, Q8_0 = 8, Q3_K = 11, Q6_K = 14, BF16 = 30 };

struct TypeInfo {
  const char* name;
  int block;  // weights per block, along a row
  int bytes;  // of a block
};

// nullptr for a type this engine does not know.
const TypeInfo* type_info(int32_t type);

// Bytes of a row; -1 if the type is unknown or its block does not divide cols.
int64_t row_bytes(int32_t type, int64_t cols);

float half_to_float(uint16_t half);
uint16_t float_to_half(float value);  // to nearest, ties to even; too large gives infinity

// The scale of 16 weights of a Q3_K block, -32 to 31, from the 12 bytes that hold all sixteen.
int q3_k_scale(const uint8_t* scales, int run);

// One row, of `cols` weights, from a file's blocks.
void dequantize_row(TensorType type, const void* blocks, int64_t cols, float* out);

// One row to a file's blocks, with the scales of least (importance-weighted) squared error. importance may be null.
void quantize_row(TensorType type, const float* row, int64_t cols, const float* importance, void* blocks);

}  // namespace mobillama
