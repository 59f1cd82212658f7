// How every instruction set walks a matrix: panel by panel, the tokens in blocks, so that a panel is unpacked once for
// each block.
//
// `Kind` has kBlock, the most tokens at once, and run<kTokens, kStream>(w, panel, x, first token, y, stride), which
// writes the panel's 16 rows of tokens first to first + kTokens - 1. It may have kPairBlock and pair<kTokens>(...),
// which do so for a panel and the next, where both panels are resident or, if kPairBlock is above 1, for several
// tokens.
#pragma once

#include "kernels.h"

namespace mobillama {
namespace {  // each file that includes this is built with its own instruction set and must keep its own copy

// step(integral constant of a block's tokens, its first token) for blocks of kBlock tokens, then for the rest.
template <int kBlock, class Step>
inline void in_blocks(int n, Step step) {
  int t = 0;
  for (; t + kBlock <= n; t += kBlock) step.template operator()<kBlock>(t);
  if constexpr (kBlock > 1)
    if (t < n)
      in_blocks<kBlock - 1>(n - t, [&]<int kTokens>(int first) { step.template operator()<kTokens>(t + first); });
}

template <class Kind>
void multiply(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) {
  for (int p = begin; p < end; p++) {
    const uint8_t* panel = w.data + size_t(p) * w.panel_bytes;
    float* out = y + size_t(p) * kPanelRows;
    if constexpr (requires { Kind::kPairBlock; })
      if (p + 1 < end && (n > 1 ? Kind::kPairBlock > 1 : w.is_resident(p) && w.is_resident(p + 1))) {
        in_blocks<Kind::kPairBlock>(
            n, [&]<int kTokens>(int first) { Kind::template pair<kTokens>(w, panel, x, first, out, stride); });
        p++;
        continue;
      }
    if (n == 1 && !w.is_resident(p))
      Kind::template run<1, true>(w, panel, x, 0, out, stride);
    else
      in_blocks<Kind::kBlock>(
          n, [&]<int kTokens>(int first) { Kind::template run<kTokens, false>(w, panel, x, first, out, stride); });
  }
}

}  // namespace
}  // namespace mobillama
