// Prints what the engine's list says of every key: its name, its use, and the neutral value in words.
#include "model_keys.h"

#include <cstdio>

using namespace mobillama;

int main() {
  static constexpr const char* uses[] = {"used", "harmless", "changes"};
  for (const ModelKey& key : model_keys()) {
    std::printf("%.*s\t%s\t%s\n", int(key.name.size()), key.name.data(), uses[int(key.use)], expected_of(key.neutral));
  }
}
