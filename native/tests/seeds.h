// Tiny GGUF models, built in parts so that tests can spoil any of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct DraftKey {
  std::string name;
  uint32_t type = 0;
  std::string value;  // as it lies in the file: for a string its length and bytes, for an array item type, count, items
};

struct DraftTensor {
  std::string name;
  std::vector<uint64_t> dims;
  uint32_t type = 0;
  std::string data;                // written one after the other, aligned
  std::optional<uint64_t> offset;  // what the header says where that is not the truth
};

struct Draft {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> num_keys, num_tensors;  // likewise
  std::vector<DraftKey> keys;
  std::vector<DraftTensor> tensors;

  std::string write() const;  // the file's bytes
};

// Sound models below 8 KB with random weights, which the engine runs: both architectures, shared and dense FFNs, tied
// and separate heads, one and several query heads per key head, and every tensor type.
std::vector<Draft> seeds();
