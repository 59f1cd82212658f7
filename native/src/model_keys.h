// What the keys `{architecture}.*` of a GGUF file mean to this engine. A key that it does not know, or that asks for
// arithmetic it has not got, would give another model's text without a word: such a file is refused.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace mobillama {

struct Shape;

enum class KeyUse {
  kUsed,      // read by the loader, or what this package says of its own files
  kHarmless,  // without effect on a LLaMA's logits, or of effect only beside another key that is refused
  kChanges,   // changes the arithmetic, unless it has its neutral value
};

// The values with which a key that changes the arithmetic changes nothing. Of an array every item must be so.
enum class Neutral {
  kNone,        // there is none
  kZero,        // 0 or false: there is no such part
  kOne,         // a factor of 1; 0 says that none is given
  kTrue,        // true
  kWidth,       // 0, or the width of the embedding
  kHeadScale,   // 0, or 1 / sqrt(head size)
  kWholeText,   // 0, or a window no shorter than the context
  kRopeFactor,  // as kOne; anything where rope.scaling.type is none
  kRopeType,    // none, or linear, whose factor is a key of its own
  kActivation,  // silu
  kRowOrder,    // the two names that files have for the order of rows of architecture llama
};

struct ModelKey {
  std::string_view name;  // behind the architecture and its dot
  KeyUse use;
  Neutral neutral = Neutral::kNone;  // of kChanges
};

// Every key that is known, in the order of their names.
std::span<const ModelKey> model_keys();

// A neutral value in words.
const char* expected_of(Neutral neutral);

// Failure: UNSUPPORTED for a key that is unknown or changes the arithmetic and is not among `ignored` (whole names);
// INVALID for a name in `ignored` that stands in nobody's way.
void check_keys(const Gguf& gguf, const std::string& path, const std::string& architecture, const Shape& shape,
                const std::vector<std::string>& ignored);

}  // namespace mobillama
