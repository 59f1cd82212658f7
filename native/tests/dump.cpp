// Prints what the reader finds in each GGUF file: one line per tensor and per key asked for, or the status and words.
// dump [--integer KEY | --number KEY | --text KEY | --texts KEY | --numbers KEY | --integers KEY]... FILE...
#include <cstdio>
#include <string_view>

#include "failure.h"
#include "gguf.h"

using namespace mobillama;

static void show(const Gguf& gguf, std::string_view kind, const char* key) {
  std::printf("%s", key);
  if (kind == "--integer") std::printf(" %lld", (long long)gguf.integer(key));
  if (kind == "--number") std::printf(" %.17g", gguf.number(key));
  if (kind == "--text") std::printf(" %s", gguf.text(key).c_str());
  if (kind == "--texts") {
    for (const std::string& text : gguf.texts(key)) std::printf(" %s", text.c_str());
  }
  if (kind == "--numbers") {
    for (const float number : gguf.numbers(key)) std::printf(" %.9g", double(number));
  }
  if (kind == "--integers") {
    for (const int32_t item : gguf.integers(key)) std::printf(" %d", item);
  }
  std::printf("\n");
}

int main(int argc, char** argv) {
  int first = 1;
  while (first + 1 < argc && std::string_view(argv[first]).substr(0, 2) == "--") first += 2;
  for (int i = first; i < argc; ++i) {
    try {
      const File file(argv[i]);
      const Gguf gguf(file);
      for (const TensorEntry& tensor : gguf.tensors()) {
        std::printf("%s %s %lld %lld %lld %lld\n", tensor.name.c_str(), type_info(int32_t(tensor.type))->name,
                    (long long)tensor.cols, (long long)tensor.rows, (long long)tensor.offset, (long long)tensor.bytes);
      }
      for (int j = 1; j < first; j += 2) show(gguf, argv[j], argv[j + 1]);
    } catch (const Failure& failure) {
      std::printf("status %d: %s\n", int(failure.status), failure.what());
    }
  }
}
