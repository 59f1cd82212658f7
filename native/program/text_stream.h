// Ids to text as they come: only whole characters are given out, and nothing of a stop string.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer.h"

namespace mobillama {

// What `push` and a last `flush` give adds up to what sentencepiece decodes.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  // The characters that this id completes. Failure: MOBILLAMA_INVALID for an id outside the vocabulary.
  std::string push(int32_t id);
  // U+FFFD for each byte that waits for the rest of a character; the stream can go on after it.
  std::string flush();

 private:
  std::string take(bool all);
  const Tokenizer& tokenizer_;
  std::string waiting_;
  bool begun_ = false;
};

// Passes text on until it holds a stop string; what is passed does not depend on how the text was cut in pieces. Of
// several stop strings the one that is complete first counts, and of those that end there the one that began first.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  // The text that can be shown now; nothing more once it has stopped.
  std::string push(std::string_view text);
  // The text held back, when no more will come.
  std::string flush() { return std::exchange(held_, {}); }
  bool stopped() const { return stopped_; }

 private:
  size_t open_length() const;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace mobillama
