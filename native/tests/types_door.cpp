// A C door to the tensor types, for tests/native/test_tensor_types.py.
#include <cstring>

#include "failure.h"
#include "tensor_type.h"

#define DOOR extern "C" __attribute__((visibility("default")))

using namespace mobillama;

static thread_local char words[1024];

DOOR const char* last_words() { return words; }
DOOR int64_t bytes_of_row(int32_t type, int64_t cols) { return row_bytes(type, cols); }

DOOR void halves_to_floats(const uint16_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(in[i]);
}

DOOR void floats_to_halves(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = float_to_half(in[i]);
}

DOOR void dequantize(int32_t type, const uint8_t* in, int64_t rows, int64_t cols, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    dequantize_row(TensorType(type), in + r * row_bytes(type, cols), cols, out + r * cols);
}

// The status; its words are last_words().
DOOR int quantize(int32_t type, const float* in, int64_t rows, int64_t cols, const float* importance, uint8_t* out) {
  try {
    for (int64_t r = 0; r < rows; ++r) {
      quantize_row(TensorType(type), in + r * cols, cols, importance, out + r * row_bytes(type, cols));
    }
  } catch (const Failure& failure) {
    std::snprintf(words, sizeof words, "%s", failure.what());
    return failure.status;
  }
  return MOBILLAMA_OK;
}
