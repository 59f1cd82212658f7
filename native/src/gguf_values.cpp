// The values of a GGUF file's metadata.
#include <cmath>
#include <limits>

#include "gguf.h"
#include "gguf_format.h"

namespace mobillama {

using namespace format;

bool Gguf::has(std::string_view key) const { return values_.find(key) != values_.end(); }

bool Gguf::is_text(std::string_view key) const { return value(key, "a value").type == STRING; }

bool Gguf::is_array(std::string_view key) const { return value(key, "a value").type == ARRAY; }

std::vector<std::string> Gguf::keys(std::string_view prefix) const {
  std::vector<std::string> keys;
  for (auto at = values_.lower_bound(prefix); at != values_.end() && at->first.starts_with(prefix); ++at) {
    keys.push_back(at->first);
  }
  return keys;
}

const Gguf::Value& Gguf::value(std::string_view key, const char* expected) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    fail(MOBILLAMA_FORMAT, "%s: has no key %s; expected %s", shown_path(file_.path()).c_str(), shown(key).c_str(),
         expected);
  }
  return found->second;
}

std::vector<uint8_t> Gguf::bytes_of(const Value& value, int64_t n) const {
  std::vector<uint8_t> bytes(static_cast<size_t>(n));
  file_.read(value.offset, bytes.data(), n);
  return bytes;
}

int64_t Gguf::to_integer(std::string_view key, uint32_t type, const uint8_t* at) const {
  switch (type) {
    case U8: return load<uint8_t>(at);
    case I8: return load<int8_t>(at);
    case U16: return load<uint16_t>(at);
    case I16: return load<int16_t>(at);
    case U32: return load<uint32_t>(at);
    case I32: return load<int32_t>(at);
    case I64: return load<int64_t>(at);
    case U64:
      if (load<uint64_t>(at) <= uint64_t(std::numeric_limits<int64_t>::max())) return load<int64_t>(at);
      fail(MOBILLAMA_FORMAT, "%s: key %s is %llu, which is too large", shown_path(file_.path()).c_str(),
           shown(key).c_str(), (unsigned long long)load<uint64_t>(at));
    case BOOL:
      if (*at <= 1) return *at;
      fail(MOBILLAMA_FORMAT, "%s: key %s is a bool of value %d; expected 0 or 1", shown_path(file_.path()).c_str(),
           shown(key).c_str(), *at);
    default: break;
  }
  fail(MOBILLAMA_FORMAT, "%s: key %s has a value of type %s; expected an integer", shown_path(file_.path()).c_str(),
       shown(key).c_str(), value_names[type]);
}

double Gguf::to_number(std::string_view key, uint32_t type, const uint8_t* at) const {
  if (type != FLOAT32 && type != FLOAT64) return double(to_integer(key, type, at));
  const double number = type == FLOAT32 ? load<float>(at) : load<double>(at);
  if (!std::isfinite(number)) {
    fail(MOBILLAMA_FORMAT, "%s: key %s is %f; expected a finite number", shown_path(file_.path()).c_str(),
         shown(key).c_str(), number);
  }
  return number;
}

int64_t Gguf::integer(std::string_view key) const {
  const Value& found = value(key, "an integer");
  return to_integer(key, found.type, bytes_of(found, scalar_bytes[found.type]).data());
}

int64_t Gguf::integer(std::string_view key, int64_t absent) const { return has(key) ? integer(key) : absent; }

double Gguf::number(std::string_view key) const {
  const Value& found = value(key, "a number");
  return to_number(key, found.type, bytes_of(found, scalar_bytes[found.type]).data());
}

double Gguf::number(std::string_view key, double absent) const { return has(key) ? number(key) : absent; }

std::string Gguf::text(std::string_view key) const {
  const Value& found = value(key, "a string");
  if (found.type != STRING) {
    fail(MOBILLAMA_FORMAT, "%s: key %s has a value of type %s; expected a string", shown_path(file_.path()).c_str(),
         shown(key).c_str(), value_names[found.type]);
  }
  std::string text(size_t(found.count), '\0');
  file_.read(found.offset, text.data(), found.count);
  return text;
}

const Gguf::Value& Gguf::array(std::string_view key, const char* expected) const {
  const Value& found = value(key, expected);
  if (found.type != ARRAY) {
    fail(MOBILLAMA_FORMAT, "%s: key %s has a value of type %s; expected %s", shown_path(file_.path()).c_str(),
         shown(key).c_str(), value_names[found.type], expected);
  }
  return found;
}

std::vector<std::string> Gguf::texts(std::string_view key) const {
  const Value& found = array(key, "an array of strings");
  if (found.item_type != STRING) {
    fail(MOBILLAMA_FORMAT, "%s: key %s is an array of %s; expected strings", shown_path(file_.path()).c_str(),
         shown(key).c_str(), value_names[found.item_type]);
  }
  std::vector<std::string> texts;
  texts.reserve(size_t(found.count));  // a string takes at least its 8 bytes of length in the file
  Cursor cursor(file_, found.offset, file_.size());
  for (int64_t i = 0; i < found.count; ++i) {
    texts.push_back(cursor.take_string("an item of key " + shown(key), file_.size()));
  }
  return texts;
}

std::vector<float> Gguf::numbers(std::string_view key) const {
  const Value& found = array(key, "an array of numbers");
  const int64_t width = scalar_bytes[found.item_type];
  const std::vector<uint8_t> bytes = bytes_of(found, width * found.count);
  std::vector<float> numbers;
  for (int64_t i = 0; i < found.count; ++i) {
    numbers.push_back(float(to_number(key, found.item_type, bytes.data() + i * width)));
  }
  return numbers;
}

std::vector<int32_t> Gguf::integers(std::string_view key) const {
  const Value& found = array(key, "an array of integers");
  const int64_t width = scalar_bytes[found.item_type];
  const std::vector<uint8_t> bytes = bytes_of(found, width * found.count);
  std::vector<int32_t> integers;
  for (int64_t i = 0; i < found.count; ++i) {
    const int64_t item = to_integer(key, found.item_type, bytes.data() + i * width);
    if (item != int32_t(item)) {
      fail(MOBILLAMA_FORMAT, "%s: item %lld of key %s is %lld, which does not fit 32 bits",
           shown_path(file_.path()).c_str(), (long long)i, shown(key).c_str(), (long long)item);
    }
    integers.push_back(int32_t(item));
  }
  return integers;
}

}  // namespace mobillama
