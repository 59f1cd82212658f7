// One prompt's continuation through the engine's C door, with the times it took.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "interruption.h"
#include "options.h"

namespace mobillama {

struct Result {
  mobillama_info model = {};
  std::vector<std::string> ignored_keys;  // without which the file was run
  int32_t prompt_tokens = 0;
  std::vector<int32_t> ids;  // the answer's
  std::string text;          // empty where the prompt was ids
  std::string ending;        // eos, length (-n), context (full), stop (text), cancelled
  // Seconds. first_token: from the beginning of opening the file, all included.
  double open = 0, prefill = 0, first_token = 0;
  std::vector<double> tokens;  // of each id after the first
  double decode() const;       // sum of `tokens`
};

// `show` is given the text as it comes, never empty. Failure: what the engine reports, or a tokenizer that is none.
Result generate(const Options& options, Interruption& interruption, const std::function<void(const std::string&)>& show);

}  // namespace mobillama
