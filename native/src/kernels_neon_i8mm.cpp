// AArch64 processors that multiply matrices of bytes (optional from Armv8.2 on): several vectors at once; one vector
// goes by dot products. Built with the flags of that instruction set; only called where the processor has it.
#include "kernels_neon_dot.h"

namespace mobillama {
namespace {

struct Matrix : Dot {};

// Two rows x 8 columns times two vectors of 8 in one instruction: (row 0, row 1) x (vector 0, vector 1).
template <int kTokens>
  requires(kTokens > 1)
struct Sums<Matrix, kTokens> {
  static constexpr int kPairs = (kTokens + 1) / 2;
  int32x4_t of[kPairs][2];  // two vectors x rows 0 and 1, rows 2 and 3

  Sums() {
    for (int i = 0; i < kPairs; i++) of[i][0] = of[i][1] = vdupq_n_s32(0);
  }
  template <int kPair>
  void add(int8x16_t even, int8x16_t odd, const int8_t* const q[kTokens], int from) {
    const int32x4_t first = vreinterpretq_s32_s8(even), second = vreinterpretq_s32_s8(odd);
    const int8x16_t rows[2] = {vreinterpretq_s8_s32(vzip1q_s32(first, second)),
                               vreinterpretq_s8_s32(vzip2q_s32(first, second))};
    for (int i = 0; i < kPairs; i++) {
      const int8_t* one = q[2 * i] + from + 8 * kPair;
      const int8_t* other = q[2 * i + 1 < kTokens ? 2 * i + 1 : 2 * i] + from + 8 * kPair;  // an odd last: twice
      const int8x16_t vectors = vcombine_s8(vld1_s8(one), vld1_s8(other));
      for (int half = 0; half < 2; half++) of[i][half] = vmmlaq_s32(of[i][half], rows[half], vectors);
    }
  }
  void widen() {}  // it is int32 all along
  int32x4_t total(int t) const {
    const int32x4_t* both = of[t / 2];
    return t % 2 == 0 ? vuzp1q_s32(both[0], both[1]) : vuzp2q_s32(both[0], both[1]);
  }
};

Kernels with_matrices() {
  Kernels kernels = *neon_dot_kernels();
  kernels.name = "neon-i8mm";
  kernels.multiply[static_cast<int>(Layout::Q4)] = multiply<Groups<Matrix, Q4>>;
  kernels.multiply[static_cast<int>(Layout::Q5)] = multiply<Groups<Matrix, Q5>>;
  kernels.multiply[static_cast<int>(Layout::Q8)] = multiply<Groups<Matrix, Q8>>;
  kernels.multiply[static_cast<int>(Layout::Q3K)] = multiply<Supers<Matrix, Q3>>;
  kernels.multiply[static_cast<int>(Layout::Q6K)] = multiply<Supers<Matrix, Q6>>;
  return kernels;
}

}  // namespace

const Kernels* neon_i8mm_kernels() {
  static const Kernels kernels = with_matrices();
  return &kernels;
}

}  // namespace mobillama
