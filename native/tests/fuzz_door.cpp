// The mutation driver's entry through the C door. Link with -Wl,--wrap=mmap, so that mapped memory is counted.
#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "fuzz.h"

extern "C" void* __real_mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset);
extern "C" void* __wrap_mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset) {
  count_mapped(bytes);
  return __real_mmap(address, bytes, protection, flags, descriptor, offset);
}

namespace {

void expect(bool good, const char* call) {
  if (!good) give_up((std::string(call) + " fails for a reason no file may give: " + mobillama_last_error()).c_str());
}

// Whether a call gave logits. Then they are numbers; a mutated weight may be such that there are none.
bool finite(const mobillama_context* context, const mobillama_info& info, mobillama_status status, const char* call) {
  if (status == MOBILLAMA_FORMAT) return false;
  expect(status == MOBILLAMA_OK, call);
  const float* logits = mobillama_logits(context, 0);
  for (int i = 0; i < info.vocab_size; i++) expect(std::isfinite(logits[i]), "a logit that is no number");
  return true;
}

void compute(mobillama_model* model) {
  mobillama_info info;
  expect(mobillama_describe(model, &info) == MOBILLAMA_OK, "describe");
  const int32_t last = info.vocab_size - 1, ids[3] = {0, last / 2, last};
  for (const int32_t kv_type : {MOBILLAMA_KV_F16, MOBILLAMA_KV_INT8}) {
    mobillama_context_options options{};
    options.threads = 1;
    options.max_tokens = 4;
    options.kv_type = kv_type;
    mobillama_context* context = nullptr;
    expect(mobillama_context_new(model, &options, &context) == MOBILLAMA_OK, "context_new");
    const int32_t sequence = 0;
    if (finite(context, info, mobillama_prefill(context, 0, ids, 3), "prefill") &&
        finite(context, info, mobillama_decode(context, &sequence, ids, 1), "decode"))
      expect(mobillama_decode(context, &sequence, ids, 1) == MOBILLAMA_FULL, "decode of a fifth token");
    mobillama_context_free(context);
  }
}

}  // namespace

mobillama_status enter(const char* path) {
  mobillama_open_options options{};
  options.threads = 1;
  mobillama_model* model = nullptr;
  const mobillama_status status = mobillama_open(path, &options, &model);
  if (status == MOBILLAMA_OK) {
    compute(model);
    mobillama_close(model);
  } else {
    expect(status == MOBILLAMA_FORMAT || status == MOBILLAMA_UNSUPPORTED, "open");
    expect(model == nullptr && std::strlen(mobillama_last_error()) >= 10, "open, without words,");
  }
  return status;
}
