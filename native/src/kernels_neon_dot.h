// Dot products of bytes (optional from Armv8.2 on), as kernels_neon.h wants them.
#pragma once

#include "kernels_neon.h"

namespace mobillama {
namespace {  // each file that includes this is built with its own instruction set and must keep its own copy

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

}  // namespace
}  // namespace mobillama
