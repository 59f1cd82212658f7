// Choice of the next token from one row of logits. Oracle: src/mobillama/generation/sampling.py.
#pragma once

#include <cstdint>

#include "mobillama.h"

namespace mobillama {

// The id of the next token: penalty, temperature, top-k, top-p, draw, in this order; ties go to the lowest id.
//
// position: tokens before the new one; the random number is a function of (seed, position) alone. seen: ids already in
// the text, repeats allowed, read only if there is a penalty. All arithmetic is in double, in one order, without libm:
// the same logits give the same id on every machine. Memory: scratch of the calling thread, 20 bytes an id, kept.
// Failure: MOBILLAMA_INVALID for settings or ids out of range, or if the largest logit is not a finite number.
int32_t choose(const float* logits, int32_t n, const mobillama_sampling& sampling, int64_t position,
               const int32_t* seen, int32_t num_seen);

}  // namespace mobillama
