#include "mutate.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

#include "tensor_type.h"

namespace {

// A number near which something may go wrong; now and then any number.
uint64_t interesting(Random& random) {
  static constexpr uint64_t values[] = {0,
                                        1,
                                        2,
                                        3,
                                        4,
                                        5,
                                        7,
                                        8,
                                        15,
                                        16,
                                        17,
                                        24,
                                        31,
                                        32,
                                        33,
                                        48,
                                        63,
                                        64,
                                        96,
                                        127,
                                        128,
                                        255,
                                        256,
                                        257,
                                        512,
                                        1024,
                                        4096,
                                        8192,
                                        0x7fff,
                                        0x8000,
                                        0xffff,
                                        0x10000,
                                        0xffffff,
                                        0x1000000,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        0x100000000,
                                        1ull << 40,
                                        1ull << 60,
                                        1ull << 61,
                                        1ull << 62,
                                        (1ull << 63) - 1,
                                        1ull << 63,
                                        (1ull << 63) + 32,
                                        ~0ull - 31,
                                        ~0ull - 7,
                                        ~0ull};
  return random.one_in(16) ? random.next() : values[random.below(std::size(values))];
}

// A number that is only a little off.
uint64_t near(uint64_t value, Random& random) {
  switch (random.below(5)) {
    case 0: return value + 1;
    case 1: return value - 1;
    case 2: return value * 2;
    case 3: return value / 2;
    default: return interesting(random);
  }
}

// Overwrites some bytes with one of the patterns that floats, halves and integers find hard.
void disturb(std::string& bytes, Random& random) {
  if (bytes.empty()) return;
  static constexpr uint32_t patterns[] = {0,          0xffffffff, 0x7c007c00, 0xfc00fc00, 0x7bff7bff,
                                          0x7fc00000, 0x7f800000, 0x7f7fffff, 0xff7fffff, 0x00000001,
                                          0x80808080, 0x7f7f7f7f, 0x00010001};
  const uint32_t pattern = random.one_in(4) ? uint32_t(random.next()) : patterns[random.below(std::size(patterns))];
  const uint64_t begin = random.below(bytes.size()), length = 1 + random.below(random.one_in(3) ? bytes.size() : 8);
  for (uint64_t i = 0; i < length && begin + i < bytes.size(); ++i) bytes[begin + i] = char(pattern >> 8 * (i % 4));
}

// A whole number in the first `width` bytes.
void change_number(std::string& bytes, size_t at, size_t width, Random& random) {
  if (bytes.size() < at + width) return;
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, width);
  value = near(value, random);
  std::memcpy(bytes.data() + at, &value, width);
}

template <typename T>
T& any(std::vector<T>& items, Random& random) {
  return items[random.below(items.size())];
}

void insert_key(Draft& draft, Random& random) {
  static constexpr const char* names[] = {"general.alignment",
                                          "llama.expert_count",
                                          "mobillama.vocab_size",
                                          "llama.attention.key_length",
                                          "mobillama.rope.scaling.type",
                                          "llama.rope.scaling.type",
                                          "general.file_type",
                                          "split.count",
                                          "x"};
  DraftKey key{names[random.below(std::size(names))], uint32_t(random.below(14)),
               std::string(1 + random.below(24), '\0')};
  change_number(key.value, 0, key.value.size() < 8 ? 1 : 8, random);
  draft.keys.insert(draft.keys.begin() + int64_t(random.below(draft.keys.size() + 1)), std::move(key));
}

void mutate_key(Draft& draft, Random& random) {
  DraftKey& key = any(draft.keys, random);
  const size_t index = size_t(&key - draft.keys.data());
  switch (random.below(10)) {
    case 0: key.type = uint32_t(random.one_in(3) ? interesting(random) : random.below(14)); break;
    case 1: draft.keys.erase(draft.keys.begin() + int64_t(index)); break;
    case 2: draft.keys.push_back(DraftKey(key)); break;
    case 3: std::swap(key, any(draft.keys, random)); break;
    case 4: std::swap(key.value, any(draft.keys, random).value); break;
    case 5: insert_key(draft, random); break;
    case 6: disturb(random.one_in(2) ? key.name : key.value, random); break;
    // The length of a string, the item type or count of an array, or the value of a scalar.
    case 7: change_number(key.value, key.type == 9 ? 4 : 0, key.type == 9 || key.type == 8 ? 8 : 4, random); break;
    case 8: change_number(key.value, 0, 4, random); break;
    default: change_number(key.value, 0, key.value.size() < 8 ? key.value.size() : 8, random);
  }
}

// Data of the size that type and dimensions ask for, where that is small: the change then reaches what lies behind the
// reader.
void refill(DraftTensor& tensor) {
  uint64_t rows = 1;
  for (size_t i = 1; i < tensor.dims.size(); ++i) rows *= tensor.dims[i];
  if (tensor.dims.empty() || tensor.dims[0] > 4096 || rows > 4096) return;
  const int64_t row = mobillama::row_bytes(int32_t(tensor.type), int64_t(tensor.dims[0]));
  if (row >= 0 && uint64_t(row) * rows <= 32768) tensor.data.resize(size_t(row) * rows, '\1');
}

void mutate_tensor(Draft& draft, Random& random) {
  DraftTensor& tensor = any(draft.tensors, random);
  const size_t index = size_t(&tensor - draft.tensors.data());
  switch (random.below(12)) {
    case 0:
      if (!tensor.dims.empty()) {
        uint64_t& dim = any(tensor.dims, random);
        dim = near(dim, random);
      }
      break;
    case 1: tensor.dims.push_back(random.one_in(2) ? 1 : interesting(random)); break;
    case 2: tensor.dims.resize(random.below(6), 1); break;
    case 3: tensor.type = uint32_t(random.one_in(4) ? interesting(random) : random.below(42)); break;
    case 4: tensor.offset = random.one_in(2) ? interesting(random) : 32 * random.below(512); break;
    case 5: draft.tensors.erase(draft.tensors.begin() + int64_t(index)); return;
    case 6: draft.tensors.push_back(DraftTensor(tensor)); return;
    case 7: std::swap(tensor.name, any(draft.tensors, random).name); break;
    case 8: std::swap(tensor, any(draft.tensors, random)); break;
    case 9: disturb(tensor.name, random); break;
    default: disturb(tensor.data, random);
  }
  if (random.one_in(2)) refill(tensor);
}

// Changes that only agree with each other: of one dimension in the keys and in all tensors.
void rescale(Draft& draft, Random& random) {
  const DraftTensor& tensor = any(draft.tensors, random);
  if (tensor.dims.empty()) return;
  const uint64_t from = tensor.dims[0], to = near(from, random);
  for (DraftKey& key : draft.keys) {
    if (key.type == 4 && key.value == std::string{char(from), 0, 0, 0}) std::memcpy(key.value.data(), &to, 4);
  }
  for (DraftTensor& each : draft.tensors) {
    for (uint64_t& dim : each.dims) dim = dim == from ? to : dim;
    refill(each);
  }
}

}  // namespace

void mutate(Draft& draft, Random& random) {
  for (uint64_t times = 1 + random.below(3); times > 0; --times) {
    const uint64_t kind = random.below(24);
    if (kind == 0) draft.version = uint32_t(random.one_in(2) ? random.below(5) : interesting(random));
    if (kind == 1) draft.num_keys = near(draft.keys.size(), random);
    if (kind == 2) draft.num_tensors = near(draft.tensors.size(), random);
    if (kind == 3 && !draft.tensors.empty()) rescale(draft, random);
    if (kind >= 4 && kind < 13 && !draft.keys.empty()) mutate_key(draft, random);
    if (kind >= 13 && !draft.tensors.empty()) mutate_tensor(draft, random);
  }
}

void mutate(std::string& bytes, Random& random) {
  for (uint64_t times = 1 + random.below(3); times > 0 && !bytes.empty(); --times) {
    const uint64_t at = random.below(random.one_in(2) ? bytes.size() : std::min<uint64_t>(bytes.size(), 2048));
    const uint64_t length = std::min<uint64_t>(1 + random.below(64), bytes.size() - at);
    switch (random.below(7)) {
      case 0: bytes[at] = char(bytes[at] ^ 1 << random.below(8)); break;
      case 1: bytes[at] = char(random.next()); break;
      case 2: change_number(bytes, at, size_t{1} << random.below(4), random); break;
      case 3: bytes.resize(at); break;
      case 4: bytes.erase(at, length); break;
      case 5: bytes.insert(random.below(bytes.size()), bytes.substr(at, length)); break;
      default: bytes.append(length * 64, '\0');
    }
  }
}
