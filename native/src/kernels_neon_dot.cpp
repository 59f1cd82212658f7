// AArch64 processors with dot products of bytes (optional from Armv8.2 on): the integer kernels; all others are NEON's.
// Built with the flags of that instruction set; only called where the processor has it.
#include "kernels_neon.h"

namespace mobillama {
namespace {

struct Dot {
  static constexpr int kBlock = 4;
  struct Sum {
    int32x4_t rows = vdupq_n_s32(0);
  };
  template <int kLane>
  static void add(Sum& sum, int8x16_t codes, int8x16_t q) {
    sum.rows = vdotq_laneq_s32(sum.rows, codes, q, kLane);
  }
  static void widen(Sum&) {}  // it is int32 all along
  static int32x4_t total(const Sum& sum) { return sum.rows; }
};

Kernels with_dot_products() {
  Kernels kernels = *neon_kernels();
  kernels.name = "neon-dot";
  kernels.multiply[static_cast<int>(Layout::Q4)] = multiply<Groups<Dot, Q4>>;
  kernels.multiply[static_cast<int>(Layout::Q5)] = multiply<Groups<Dot, Q5>>;
  kernels.multiply[static_cast<int>(Layout::Q8)] = multiply<Groups<Dot, Q8>>;
  kernels.multiply[static_cast<int>(Layout::Q6K)] = multiply<Supers<Dot>>;
  kernels.scores[1] = scores_int8<Dot>;
  return kernels;
}

}  // namespace

const Kernels* neon_dot_kernels() {
  static const Kernels kernels = with_dot_products();
  return &kernels;
}

}  // namespace mobillama
