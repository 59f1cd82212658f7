// What reading the header and reading the values of a GGUF file share: the format's value types and a checked cursor.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "failure.h"
#include "file.h"
#include "printable.h"

namespace mobillama::format {

static_assert(std::endian::native == std::endian::little, "GGUF values are read as they lie in memory");

// clang-format off
enum ValueType : uint32_t {
  U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64, NUM_VALUE_TYPES
};
// clang-format on
inline constexpr const char* value_names[NUM_VALUE_TYPES] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                             "int32",  "float32", "bool",   "string", "array",
                                                             "uint64", "int64",   "float64"};
inline constexpr int scalar_bytes[NUM_VALUE_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: not a scalar

// A name out of a file for a message: in quotes, nothing that steers a terminal, not too long.
inline std::string shown(std::string_view name) {
  return "'" + printable(name.substr(0, 80)) + (name.size() > 80 ? "...'" : "'");
}

template <typename T>
T load(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Reads forward through bytes [at, end) of a file, a block at a time. `what` names the thing read, for messages.
class Cursor {
 public:
  Cursor(const File& file, int64_t at, int64_t end)
      : path(shown_path(file.path())),
        file_(file),
        at_(at),
        end_(end),
        block_(size_t(std::min<int64_t>(end - at, 65536))) {}

  const std::string path;
  int64_t at() const { return at_; }
  int64_t left() const { return end_ - at_; }

  void need(uint64_t n, const std::string& what) const {
    if (n > uint64_t(left())) {
      fail(MOBILLAMA_FORMAT, "%s: %s needs %llu bytes at byte %lld, but %lld are left: the file is cut or damaged",
           path.c_str(), what.c_str(), (unsigned long long)n, (long long)at_, (long long)left());
    }
  }

  void skip(uint64_t n, const std::string& what) {
    need(n, what);
    at_ += int64_t(n);
  }

  template <typename T>
  T take(const std::string& what) {
    uint8_t bytes[sizeof(T)];
    take_bytes(bytes, sizeof bytes, what);
    return load<T>(bytes);
  }

  std::string take_string(const std::string& what, int64_t most) {
    const auto length = take<uint64_t>(what);
    need(length, what);
    if (length > uint64_t(most)) {
      fail(MOBILLAMA_FORMAT, "%s: %s at byte %lld has %llu bytes, at most %lld are allowed", path.c_str(), what.c_str(),
           (long long)at_, (unsigned long long)length, (long long)most);
    }
    std::string text(size_t(length), '\0');
    take_bytes(text.data(), length, what);
    return text;
  }

 private:
  void take_bytes(void* to, uint64_t n, const std::string& what) {
    need(n, what);
    auto* out = static_cast<uint8_t*>(to);
    while (n > 0) {
      if (at_ >= block_end_ || at_ < block_at_) {
        block_at_ = at_;
        block_end_ = at_ + std::min(int64_t(block_.size()), left());
        file_.read(block_at_, block_.data(), block_end_ - block_at_);
      }
      const int64_t now = std::min(int64_t(n), block_end_ - at_);
      std::memcpy(out, block_.data() + (at_ - block_at_), size_t(now));
      out += now;
      at_ += now;
      n -= uint64_t(now);
    }
  }

  const File& file_;
  int64_t at_, end_;
  std::vector<uint8_t> block_;
  int64_t block_at_ = 0, block_end_ = 0;
};

}  // namespace mobillama::format
