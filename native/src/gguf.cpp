#include "gguf.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <utility>

#include "gguf_format.h"

namespace mobillama {

using namespace format;

namespace {

constexpr int64_t max_key_bytes = 65535, max_name_bytes = 64;  // as the format says
constexpr int64_t min_key_record = 8 + 1 + 4 + 1, min_tensor_record = 8 + 1 + 4 + 8 + 4 + 8;
constexpr int64_t default_alignment = 32, max_alignment = 65536;

// The format's tensor types by number, to name those that this engine does not know.
const char* format_type_name(uint32_t type) {
  static constexpr const char* names[] = {
      "F32",    "F16",     "Q4_0",    "Q4_1",    "removed", "removed", "Q5_0",    "Q5_1",    "Q8_0",    "Q8_1",
      "Q2_K",   "Q3_K",    "Q4_K",    "Q5_K",    "Q6_K",    "Q8_K",    "IQ2_XXS", "IQ2_XS",  "IQ3_XXS", "IQ1_S",
      "IQ4_NL", "IQ3_S",   "IQ2_S",   "IQ4_XS",  "I8",      "I16",     "I32",     "I64",     "F64",     "IQ1_M",
      "BF16",   "removed", "removed", "removed", "TQ1_0",   "TQ2_0",   "removed", "removed", "removed", "MXFP4"};
  return type < std::size(names) ? names[type] : "unknown";
}

}  // namespace

Gguf::Gguf(const File& file) : file_(file) {
  Cursor cursor(file, 0, file.size());
  const char* path = cursor.path.c_str();
  const auto magic = cursor.take<uint32_t>("the magic number");
  if (magic != 0x46554747) {
    fail(MOBILLAMA_FORMAT, "%s: begins with 0x%08x, not with GGUF: it is no GGUF file", path, magic);
  }
  const auto version = cursor.take<uint32_t>("the version");
  if (version != 2 && version != 3) {
    if (const uint32_t swapped = __builtin_bswap32(version); swapped == 2 || swapped == 3) {
      fail(MOBILLAMA_UNSUPPORTED,
           "%s: is a big-endian GGUF file; this engine reads little-endian ones: gguf-convert-endian of the gguf package "
           "turns it round", path);
    }
    fail(MOBILLAMA_UNSUPPORTED, "%s: GGUF version %u; this engine reads 2 and 3: %s", path, version,
         version > 3 ? "it needs a newer engine" : "convert the model with a newer program");
  }
  const auto num_tensors = cursor.take<uint64_t>("the number of tensors");
  const auto num_keys = cursor.take<uint64_t>("the number of keys");
  if (num_keys > uint64_t(cursor.left() / min_key_record) ||
      num_tensors > uint64_t(cursor.left() / min_tensor_record)) {
    fail(MOBILLAMA_FORMAT, "%s: %llu keys and %llu tensors cannot lie in %lld bytes: the file is cut or damaged", path,
         (unsigned long long)num_keys, (unsigned long long)num_tensors, (long long)file.size());
  }
  read_keys(cursor, num_keys);
  const int64_t alignment = integer("general.alignment", default_alignment);
  if (alignment < 8 || alignment > max_alignment || (alignment & (alignment - 1)) != 0) {
    fail(MOBILLAMA_FORMAT, "%s: general.alignment is %lld; expected a power of two from 8 to %lld", path,
         (long long)alignment, (long long)max_alignment);
  }
  read_tensors(cursor, num_tensors);
  place_tensors((cursor.at() + alignment - 1) / alignment * alignment, alignment);
}

void Gguf::read_keys(Cursor& cursor, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = cursor.take_string("the name of key " + std::to_string(i), max_key_bytes);
    const std::string what = "key " + shown(key);
    if (key.empty()) fail(MOBILLAMA_FORMAT, "%s: key %llu has no name", cursor.path.c_str(), (unsigned long long)i);
    Value value;
    value.type = cursor.take<uint32_t>(what);
    value.offset = cursor.at();
    uint32_t type = value.type;
    if (value.type == ARRAY) {
      type = value.item_type = cursor.take<uint32_t>(what);
      const auto items = cursor.take<uint64_t>(what);
      value.offset = cursor.at();
      if (type == ARRAY) {
        fail(MOBILLAMA_UNSUPPORTED, "%s: %s is an array of arrays, which no model this engine knows has",
             cursor.path.c_str(), what.c_str());
      }
      // Each item takes at least a byte: what follows cannot overflow.
      cursor.need(items, what);
      value.count = int64_t(items);
    }
    if (type >= NUM_VALUE_TYPES) {
      fail(MOBILLAMA_FORMAT, "%s: %s has value type %u; GGUF has 0 to %d", cursor.path.c_str(), what.c_str(), type,
           int(NUM_VALUE_TYPES) - 1);
    }
    const int64_t values = value.type == ARRAY ? value.count : 1;
    if (type == STRING) {
      for (int64_t j = 0; j < values; ++j) {
        const auto length = cursor.take<uint64_t>(what);
        if (value.type == STRING) {
          value.offset = cursor.at();
          cursor.need(length, what);
          value.count = int64_t(length);
        }
        cursor.skip(length, what);
      }
    } else {
      cursor.skip(uint64_t(values) * uint64_t(scalar_bytes[type]), what);
    }
    if (!values_.emplace(std::move(key), value).second) {
      fail(MOBILLAMA_FORMAT, "%s: %s is there twice", cursor.path.c_str(), what.c_str());
    }
  }
}

void Gguf::read_tensors(Cursor& cursor, uint64_t count) {
  const char* path = cursor.path.c_str();
  for (uint64_t i = 0; i < count; ++i) {
    TensorEntry tensor;
    tensor.file = &file_;
    tensor.name = cursor.take_string("the name of tensor " + std::to_string(i), max_name_bytes);
    const std::string what = "tensor " + shown(tensor.name);
    if (tensor.name.empty()) fail(MOBILLAMA_FORMAT, "%s: tensor %llu has no name", path, (unsigned long long)i);
    const auto num_dims = cursor.take<uint32_t>(what);
    if (num_dims < 1 || num_dims > 4) {
      fail(MOBILLAMA_FORMAT, "%s: %s has %u dimensions; expected 1 to 4", path, what.c_str(), num_dims);
    }
    uint64_t dims[4] = {1, 1, 1, 1};
    for (uint32_t j = 0; j < num_dims; ++j) dims[j] = cursor.take<uint64_t>(what);
    if (dims[2] != 1 || dims[3] != 1) {
      fail(MOBILLAMA_UNSUPPORTED,
           "%s: %s has the shape %llu x %llu x %llu x %llu; this engine knows matrices and vectors", path, what.c_str(),
           (unsigned long long)dims[0], (unsigned long long)dims[1], (unsigned long long)dims[2],
           (unsigned long long)dims[3]);
    }
    const auto type = cursor.take<uint32_t>(what);
    const TypeInfo* info = type <= uint32_t(std::numeric_limits<int32_t>::max()) ? type_info(int32_t(type)) : nullptr;
    if (info == nullptr) {
      fail(MOBILLAMA_UNSUPPORTED,
           "%s: %s has type %u (%s); this engine knows F32, F16, BF16, Q4_0, Q5_0, Q8_0, Q3_K and Q6_K", path, what.c_str(),
           type, format_type_name(type));
    }
    tensor.type = TensorType(type);
    const auto most = uint64_t(file_.size());  // a weight takes half a byte or more: no tensor has over twice as many
    if (dims[0] < 1 || dims[1] < 1 || dims[0] > 2 * most || dims[1] > 2 * most) {
      fail(MOBILLAMA_FORMAT, "%s: %s has the shape %llu x %llu, which is empty or cannot lie in %lld bytes", path,
           what.c_str(), (unsigned long long)dims[0], (unsigned long long)dims[1], (long long)file_.size());
    }
    tensor.cols = int64_t(dims[0]);
    tensor.rows = int64_t(dims[1]);
    const int64_t row = row_bytes(int32_t(type), tensor.cols);
    if (row < 0) {
      fail(MOBILLAMA_FORMAT, "%s: %s has rows of %lld weights; the blocks of %s take %d each", path, what.c_str(),
           (long long)tensor.cols, info->name, info->block);
    }
    const auto offset = cursor.take<uint64_t>(what);
    if (__builtin_mul_overflow(row, tensor.rows, &tensor.bytes) || tensor.bytes > file_.size() || offset > most) {
      fail(MOBILLAMA_FORMAT, "%s: %s, %lld x %lld of %s at %llu, cannot lie in a file of %lld bytes", path,
           what.c_str(), (long long)tensor.cols, (long long)tensor.rows, info->name, (unsigned long long)offset,
           (long long)file_.size());
    }
    tensor.offset = int64_t(offset);
    if (!index_.emplace(tensor.name, tensors_.size()).second) {
      fail(MOBILLAMA_FORMAT, "%s: %s is there twice", path, what.c_str());
    }
    tensors_.push_back(std::move(tensor));
  }
}

// Offsets, so far those written in the file, become positions in it.
void Gguf::place_tensors(int64_t data_at, int64_t alignment) {
  const std::string path = shown_path(file_.path());
  for (TensorEntry& tensor : tensors_) {
    if (tensor.offset % alignment != 0) {
      fail(MOBILLAMA_FORMAT, "%s: tensor %s lies at %lld, which is no multiple of the alignment %lld", path.c_str(),
           shown(tensor.name).c_str(), (long long)tensor.offset, (long long)alignment);
    }
    tensor.offset += data_at;
    if (tensor.offset > file_.size() || tensor.bytes > file_.size() - tensor.offset) {
      fail(MOBILLAMA_FORMAT, "%s: tensor %s takes bytes %lld to %lld, but the file has %lld: it is cut or damaged",
           path.c_str(), shown(tensor.name).c_str(), (long long)tensor.offset,
           (long long)(tensor.offset + tensor.bytes), (long long)file_.size());
    }
  }
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return tensors_[a].offset < tensors_[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const TensorEntry &before = tensors_[order[i - 1]], &after = tensors_[order[i]];
    if (before.offset + before.bytes > after.offset) {
      fail(MOBILLAMA_FORMAT, "%s: tensors %s and %s overlap at byte %lld", path.c_str(), shown(before.name).c_str(),
           shown(after.name).c_str(), (long long)after.offset);
    }
  }
}

const TensorEntry* Gguf::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace mobillama
