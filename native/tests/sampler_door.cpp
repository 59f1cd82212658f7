// The sampler alone behind C, for tests/native/test_sampler.py: an id, or -1 - status with the words in `text`.
#include <cstdio>

#include "failure.h"
#include "sampler.h"

extern "C" MOBILLAMA_API int32_t choose_id(const float* logits, int32_t n, const mobillama_sampling* sampling,
                                           int64_t position, const int32_t* seen, int32_t num_seen, char* text,
                                           size_t size) {
  try {
    return mobillama::choose(logits, n, *sampling, position, seen, num_seen);
  } catch (const mobillama::Failure& failure) {
    std::snprintf(text, size, "%s", failure.what());
    return -1 - failure.status;
  }
}
