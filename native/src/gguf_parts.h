// A model's GGUF file, or the parts that llama.cpp splits a large one into: NAME-00001-of-00003.gguf and so on. The
// first part has all keys; each has a share of the tensors, and says with split.no (from 0) and split.count which.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "file.h"
#include "gguf.h"

namespace mobillama {

class GgufParts {
 public:
  // path: of the file, or of the first part. Failure: as Gguf; FORMAT or UNSUPPORTED where the parts are not all of one
  // model, IO where one is not there.
  explicit GgufParts(const std::string& path);
  const Gguf& keys() const { return parts_[0]->gguf; }
  const std::vector<const TensorEntry*>& tensors() const { return tensors_; }  // of all parts
  const TensorEntry* find(std::string_view name) const;                        // nullptr if it is not there
  int64_t size() const;                                                        // bytes of all parts
  void check_unchanged() const;                                                // as File, of every part

 private:
  struct Part {
    explicit Part(const std::string& path) : file(path), gguf(file) {}
    const File file;
    const Gguf gguf;
  };
  void add(const std::string& path);
  void open_further(const std::string& path, int64_t count);
  std::vector<std::unique_ptr<const Part>> parts_;
  std::vector<const TensorEntry*> tensors_;
};

}  // namespace mobillama
