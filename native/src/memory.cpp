#include "memory.h"

#include <sys/mman.h>

#include "failure.h"

namespace mobillama {
namespace {
constexpr size_t kHugePage = size_t{1} << 21, kPage = 4096;
}

Buffer::Buffer(size_t bytes, bool huge) {
  if (bytes == 0) return;
  // Aligned to 2 MB: map more, cut off the rest.
  const size_t wanted = (bytes + kPage - 1) / kPage * kPage, extra = huge ? kHugePage : 0;
  void* found = wanted > SIZE_MAX - extra ? MAP_FAILED
                                          : mmap(nullptr, wanted + extra, PROT_READ | PROT_WRITE,
                                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED)
    fail(MOBILLAMA_MEMORY, "the system gives no %zu bytes; close programs, or use a smaller model or context", bytes);
  auto* start = static_cast<uint8_t*>(found);
  const size_t before = huge ? (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage : 0;
  if (before > 0) munmap(start, before);
  if (extra > before) munmap(start + before + wanted, extra - before);
  data_ = start + before;
  bytes_ = wanted;
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: where it is not granted, small pages serve
#endif
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Buffer::forget(size_t from) {
  from = (from + kPage - 1) / kPage * kPage;
  if (from < bytes_) madvise(data_ + from, bytes_ - from, MADV_DONTNEED);
}

}  // namespace mobillama
