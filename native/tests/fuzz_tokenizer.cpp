// The mutation driver's entry through the program's tokenizer: the vocabulary, a text to ids, every id to bytes.
#include <cstring>

#include "../program/tokenizer.h"
#include "failure.h"
#include "fuzz.h"
#include "gguf.h"

using namespace mobillama;

mobillama_status enter(const char* path) {
  try {
    const File file(path);
    const Gguf gguf(file);
    const Tokenizer tokenizer(gguf);
    for (const int32_t id : tokenizer.encode_prompt(" abcd def\xc3\xa9 \xff z")) {
      if (id < 0 || id >= tokenizer.size()) give_up("an id outside the vocabulary");
    }
    size_t bytes = 0;
    for (int32_t id = 0; id < tokenizer.size(); ++id) bytes += tokenizer.bytes(id).size();
    if (bytes > 64 * size_t(file.size())) give_up("more text than the file has");
    return MOBILLAMA_OK;
  } catch (const Failure& failure) {
    const bool expected = failure.status == MOBILLAMA_FORMAT || failure.status == MOBILLAMA_UNSUPPORTED;
    if (!expected || std::strlen(failure.what()) < 10) give_up(failure.what());
    return failure.status;
  }
}
