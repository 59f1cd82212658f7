// Large zeroed buffers straight from the system, in 2 MB pages where it allows; pages are taken when first touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace mobillama {

class Buffer {
 public:
  Buffer() = default;
  // Failure (MEMORY) if the system has none. huge: ask for 2 MB pages.
  explicit Buffer(size_t bytes, bool huge = true);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Give the pages of [from, bytes) back to the system; they read as zero afterwards.
  void forget(size_t from);

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace mobillama
