// How every instruction set walks a matrix: panel by panel, the tokens in blocks, so that a panel is unpacked once for
// each block.
//
// `Kind` has kBlock, the most tokens at once, and run<kTokens, kStream>(w, panel, x, first token, y, stride), which
// writes the panel's 16 rows of tokens first to first + kTokens - 1.
#pragma once

#include "kernels.h"

namespace mobillama {
namespace {  // each file that includes this is built with its own instruction set and must keep its own copy

template <class Kind, int kTokens>
inline void rest_of_tokens(int left, const Panels& w, const uint8_t* panel, const Activations& x, int first, float* y,
                           size_t stride) {
  if constexpr (kTokens > 0) {
    if (left == kTokens) return Kind::template run<kTokens, false>(w, panel, x, first, y, stride);
    rest_of_tokens<Kind, kTokens - 1>(left, w, panel, x, first, y, stride);
  }
}

template <class Kind>
void multiply(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  for (int p = begin; p < end; p++) {
    const uint8_t* panel = w.data + size_t(p) * w.panel_bytes;
    float* out = y + size_t(p) * kPanelRows;
    if (n == 1) {
      w.is_resident(p) ? Kind::template run<1, false>(w, panel, x, 0, out, stride)
                     : Kind::template run<1, true>(w, panel, x, 0, out, stride);
      continue;
    }
    int t = 0;
    for (; t + Kind::kBlock <= n; t += Kind::kBlock)
      Kind::template run<Kind::kBlock, false>(w, panel, x, t, out, stride);
    rest_of_tokens<Kind, Kind::kBlock - 1>(n - t, w, panel, x, t, out, stride);
  }
}

}  // namespace
}  // namespace mobillama
