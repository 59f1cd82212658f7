// What the machine itself can do, for mobillama bench.
#pragma once

#include <cstddef>

namespace mobillama {

// Bytes per second: reading so many bytes of memory over and over. Failure (MEMORY) if there are not so many.
double bandwidth(size_t bytes, int threads, double seconds);

// Seconds for a word written by one thread to reach another and be answered: the least of several tries.
double round_trip();

}  // namespace mobillama
