// AArch64 processors with dot products of bytes: the integer kernels; all others are NEON's.
// Built with the flags of that instruction set; only called where the processor has it.
#include "kernels_neon_dot.h"

namespace mobillama {
namespace {

Kernels with_dot_products() {
  Kernels kernels = *neon_kernels();
  kernels.name = "neon-dot";
  kernels.multiply[static_cast<int>(Layout::Q4)] = multiply<Groups<Dot, Q4>>;
  kernels.multiply[static_cast<int>(Layout::Q5)] = multiply<Groups<Dot, Q5>>;
  kernels.multiply[static_cast<int>(Layout::Q8)] = multiply<Groups<Dot, Q8>>;
  kernels.multiply[static_cast<int>(Layout::Q3K)] = multiply<Supers<Dot, Q3>>;
  kernels.multiply[static_cast<int>(Layout::Q6K)] = multiply<Supers<Dot, Q6>>;
  kernels.scores[1] = scores_int8<Dot>;
  return kernels;
}

}  // namespace

const Kernels* neon_dot_kernels() {
  static const Kernels kernels = with_dot_products();
  return &kernels;
}

}  // namespace mobillama
