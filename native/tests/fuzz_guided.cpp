// The entries of fuzz.h under libFuzzer, which keeps inputs that reach new code. Linked instead of fuzz.cpp, built by
// Clang with -fsanitize=fuzzer,address,undefined; libFuzzer's own options bound time and heap. Linux only.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "fuzz.h"
#include "mutate.h"
#include "seeds.h"

namespace {
size_t mapped = 0, mapped_limit = 0;
}  // namespace

void give_up(const char* reason) {
  std::fprintf(stderr, "fuzz: %s\n", reason);
  std::abort();
}

void count_mapped(size_t bytes) {
  mapped += bytes;
  if (mapped_limit > 0 && mapped > mapped_limit) give_up("more mapped memory than the file's size allows");
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

// One in four inputs is a sound model with a changed structure; the others are changed bytes of inputs that were kept.
extern "C" __attribute__((visibility("default"))) size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                                                               size_t most, unsigned seed) {
  Random random{seed};
  if (!random.one_in(4)) return LLVMFuzzerMutate(data, size, most);
  static const std::vector<Draft> drafts = seeds();
  Draft draft = drafts[random.below(drafts.size())];
  mutate(draft, random);
  const std::string bytes = draft.write();
  const size_t kept = std::min(bytes.size(), most);
  std::memcpy(data, bytes.data(), kept);
  return kept;
}

extern "C" __attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, data, size, 0) != static_cast<ssize_t>(size))
    give_up("the input cannot be written");
  mapped = 0;
  mapped_limit = mapped_bound(size);
  enter(path.c_str());
  return 0;
}
