// What the command line asks for.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "mobillama.h"

namespace mobillama {

enum class Task { kGenerate, kTokenize, kDetokenize, kHelp, kVersion };

struct Options {
  Task task = Task::kGenerate;
  std::string file;
  std::optional<std::string> prompt;     // "-": all of stdin
  std::optional<std::string> text_file;  // the file whose text is the prompt, in place of it; "-": stdin
  std::vector<int32_t> ids;  // in place of a prompt
  std::vector<std::string> stops;
  std::vector<std::string> ignored_keys;  // of the file, by their whole names
  int32_t max_new_tokens = 128;
  mobillama_sampling sampling = {.temperature = 0.8, .top_k = 0, .top_p = 0.95, .repetition_penalty = 1, .seed = 0, .num_ids = 0};
  int32_t threads = 0, context = 0;
  mobillama_kv_type kv = MOBILLAMA_KV_F16;
  bool json = false;
  std::optional<char> split;  // the byte between texts, for kTokenize and kDetokenize
};

// A command line that cannot be read: what is wrong with it and what was expected.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Options read_options(int argc, char** argv);

// Numbers with anything but digits and a sign between them; `origin` names the list in errors.
std::vector<int32_t> read_ids(const std::string& text, const std::string& origin);

extern const char* const kUsage;

}  // namespace mobillama
