// An array whose end is the end of its memory: the next byte belongs to a page that faults when touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

template <class T>
class Guarded {
 public:
  // With `slack`, that many elements are left unused before the page: for other alignments.
  explicit Guarded(size_t count, size_t slack = 0) : count_(count) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t inner = ((count + slack) * sizeof(T) + page - 1) / page * page;
    mapped_ = inner + 2 * page;  // a page that faults on both sides
    void* memory = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) failed();
    base_ = static_cast<uint8_t*>(memory);
    if (inner > 0 && mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) != 0) failed();
    data_ = reinterpret_cast<T*>(base_ + page + inner) - count - slack;
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }

 private:
  [[noreturn]] static void failed() {
    std::perror("guarded array");
    std::exit(1);
  }

  size_t count_, mapped_ = 0;
  uint8_t* base_ = nullptr;
  T* data_ = nullptr;
};
