#include "gguf_parts.h"

#include <cstdio>

#include "failure.h"
#include "gguf_format.h"

namespace mobillama {

namespace {

constexpr const char *kNumber = "split.no", *kCount = "split.count", *kTensors = "split.tensors.count";
constexpr int64_t kMostParts = 99999;  // the names have five digits

// The end of a part's name; `number` is from 0.
std::string ending(int64_t number, int64_t count) {
  char text[32];
  std::snprintf(text, sizeof text, "-%05lld-of-%05lld.gguf", static_cast<long long>(number + 1),
                static_cast<long long>(count));
  return text;
}

}  // namespace

GgufParts::GgufParts(const std::string& path) {
  add(path);
  const Gguf& first = keys();
  const int64_t count = first.integer(kCount, 1);
  const int64_t number = first.integer(kNumber, 0);
  if (count > 1 || number > 0) {
    if (count < 1 || count > kMostParts || number < 0 || number >= count) {
      fail(MOBILLAMA_FORMAT, "%s: %s is %lld and %s is %lld; expected 1 to %lld parts, numbered from 0",
           shown_path(path).c_str(), kCount, static_cast<long long>(count), kNumber, static_cast<long long>(number),
           static_cast<long long>(kMostParts));
    }
    open_further(path, count);
  }
  const int64_t expected = first.integer(kTensors, static_cast<int64_t>(tensors_.size()));
  if (expected != static_cast<int64_t>(tensors_.size())) {
    fail(MOBILLAMA_FORMAT, "%s: %s is %lld, but the parts have %zu tensors: one of them belongs to another file",
         shown_path(path).c_str(), kTensors, static_cast<long long>(expected), tensors_.size());
  }
}

void GgufParts::open_further(const std::string& path, int64_t count) {
  const int64_t number = keys().integer(kNumber, 0);
  const std::string own = ending(number, count);
  if (!path.ends_with(own)) {
    fail(MOBILLAMA_UNSUPPORTED, "%s is part %lld of %lld of a model; expected a name that ends in %s, with the others beside it",
         shown_path(path).c_str(), static_cast<long long>(number + 1), static_cast<long long>(count), own.c_str());
  }
  const std::string stem = path.substr(0, path.size() - own.size());
  if (number != 0) {
    fail(MOBILLAMA_UNSUPPORTED, "%s is part %lld of %lld of a model; give the first, %s", shown_path(path).c_str(),
         static_cast<long long>(number + 1), static_cast<long long>(count), shown_path(stem + ending(0, count)).c_str());
  }
  for (int64_t i = 1; i < count; i++) {
    const std::string further = stem + ending(i, count);
    add(further);
    const Gguf& found = parts_.back()->gguf;
    if (found.integer(kNumber, -1) != i || found.integer(kCount, -1) != count) {
      fail(MOBILLAMA_FORMAT, "%s: says that it is part %lld of %lld; expected %lld of %lld from its name",
           shown_path(further).c_str(), static_cast<long long>(found.integer(kNumber, -1) + 1),
           static_cast<long long>(found.integer(kCount, -1)), static_cast<long long>(i + 1),
           static_cast<long long>(count));
    }
  }
}

void GgufParts::add(const std::string& path) {
  auto part = std::make_unique<const Part>(path);
  for (const TensorEntry& entry : part->gguf.tensors()) {
    if (find(entry.name) != nullptr) {
      fail(MOBILLAMA_FORMAT, "%s: tensor %s is in an earlier part too", shown_path(path).c_str(),
           format::shown(entry.name).c_str());
    }
    tensors_.push_back(&entry);
  }
  parts_.push_back(std::move(part));
}

const TensorEntry* GgufParts::find(std::string_view name) const {
  for (const auto& part : parts_) {
    if (const TensorEntry* entry = part->gguf.find(name)) return entry;
  }
  return nullptr;
}

int64_t GgufParts::size() const {
  int64_t bytes = 0;
  for (const auto& part : parts_) bytes += part->file.size();
  return bytes;
}

void GgufParts::check_unchanged() const {
  for (const auto& part : parts_) part->file.check_unchanged();
}

}  // namespace mobillama
