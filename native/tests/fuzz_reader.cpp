// The mutation driver's entry that reads headers only.
#include <cstdint>
#include <cstring>

#include "failure.h"
#include "fuzz.h"
#include "gguf.h"

using namespace mobillama;

namespace {

// Every kind of question to one key; a Failure is an answer.
void ask(const Gguf& gguf, const char* key) {
  const auto try_to = [](auto&& question) {
    try {
      question();
    } catch (const Failure& failure) {
      if (failure.status != MOBILLAMA_FORMAT || std::strlen(failure.what()) < 10) give_up(failure.what());
    }
  };
  try_to([&] { gguf.integer(key); });
  try_to([&] { gguf.number(key); });
  try_to([&] { gguf.text(key); });
  try_to([&] { gguf.texts(key); });
  try_to([&] { gguf.numbers(key); });
  try_to([&] { gguf.integers(key); });
}

}  // namespace

mobillama_status enter(const char* path) {
  try {
    const File file(path);
    const Gguf gguf(file);
    for (const char* key :
         {"general.architecture", "llama.block_count", "mobillama.rope.freq_base", "tokenizer.ggml.tokens",
          "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.add_space_prefix"}) {
      ask(gguf, key);
    }
    for (const TensorEntry& tensor : gguf.tensors()) {
      uint8_t byte;
      file.read(tensor.offset, &byte, 1);
      file.read(tensor.offset + tensor.bytes - 1, &byte, 1);
      if (gguf.find(tensor.name) != &tensor) give_up("a tensor is not found by its name");
    }
    file.check_unchanged();
    return MOBILLAMA_OK;
  } catch (const Failure& failure) {
    const bool expected = failure.status == MOBILLAMA_FORMAT || failure.status == MOBILLAMA_UNSUPPORTED;
    if (!expected || std::strlen(failure.what()) < 10) give_up(failure.what());
    return failure.status;
  }
}
