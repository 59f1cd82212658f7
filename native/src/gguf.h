// Reading a GGUF file's header: metadata and the table of tensors. Trusts nothing: every count, length and offset is
// checked against the file's size before memory is taken for it, so that memory stays a small multiple of the header.
// Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "file.h"
#include "tensor_type.h"

namespace mobillama {

struct TensorEntry {
  std::string name;
  TensorType type = TensorType::F32;
  int64_t cols = 0, rows = 0;     // GGUF dimensions 0 and 1; a vector has rows = 1
  const File* file = nullptr;
  int64_t offset = 0, bytes = 0;  // in the file, checked to lie inside it and to overlap no other
};

namespace format {
class Cursor;
}

// Must not outlive its file: arrays are read when they are asked for.
class Gguf {
 public:
  explicit Gguf(const File& file);
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  const TensorEntry* find(std::string_view name) const;  // nullptr if it is not there

  // Metadata. A key that is absent gives the default; without a default, or with a value of another kind, a Failure.
  // Whole numbers of any width and bool are integers; a number is finite and may be written as an integer.
  bool has(std::string_view key) const;
  bool is_text(std::string_view key) const;
  bool is_array(std::string_view key) const;
  std::vector<std::string> keys(std::string_view prefix) const;  // those that begin so, in the order of their bytes
  int64_t integer(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t absent) const;
  double number(std::string_view key) const;
  double number(std::string_view key, double absent) const;
  std::string text(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  std::vector<float> numbers(std::string_view key) const;
  std::vector<int32_t> integers(std::string_view key) const;

 private:
  struct Value {
    uint32_t type = 0, item_type = 0;  // item_type: of an array's items
    int64_t count = 0;                 // of an array's items, of a string's bytes
    int64_t offset = 0;                // of the scalar, the first item or the first byte
  };
  void read_keys(format::Cursor& cursor, uint64_t count);
  void read_tensors(format::Cursor& cursor, uint64_t count);
  void place_tensors(int64_t data_at, int64_t alignment);
  const Value& value(std::string_view key, const char* expected) const;
  const Value& array(std::string_view key, const char* expected) const;
  std::vector<uint8_t> bytes_of(const Value& value, int64_t n) const;
  int64_t to_integer(std::string_view key, uint32_t type, const uint8_t* at) const;
  double to_number(std::string_view key, uint32_t type, const uint8_t* at) const;

  const File& file_;
  std::map<std::string, Value, std::less<>> values_;  // ordered: names chosen to collide cannot slow it
  std::vector<TensorEntry> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace mobillama
