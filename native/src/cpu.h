// What this machine has, asked once: instruction sets, cores, cache.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace mobillama {

// The fastest table this processor runs, or the one that MOBILLAMA_ISA names (scalar, avx2, avx512, neon, neon-dot,
// neon-i8mm).
// Failure (UNSUPPORTED) if that one is unknown, or this processor or this build has not got it.
const Kernels& choose_kernels();

int cores();            // that this process may use: those it may run on, within its control groups' quota (rounded up)
int64_t cache_bytes();  // of the last-level cache; 0 if the system does not say

}  // namespace mobillama
