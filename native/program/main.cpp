// mobillama-run: a GGUF file continues a text, on machines without Python.
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>

#include "failure.h"
#include "file.h"
#include "generate.h"
#include "gguf.h"
#include "printable.h"
#include "prompt.h"
#include "report.h"
#include "text_stream.h"

namespace mobillama {
namespace {

constexpr int kError = 1, kUsageError = 2, kInterrupted = 130;

// Parts of a text; the one after the last separator counts only if something is in it, so that one may end the text too.
std::vector<std::string> split(const std::string& text, std::optional<char> separator) {
  if (!separator) return {text};
  std::vector<std::string> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(*separator, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

void tokenize(const Options& options, const Tokenizer& tokenizer) {
  for (const std::string& text : split(read_stdin(), options.split)) {
    const char* between = "";
    for (const int32_t id : tokenizer.encode(text)) std::cout << std::exchange(between, " ") << id;
    std::cout << '\n';
  }
}

void detokenize(const Options& options, const Tokenizer& tokenizer) {
  const std::optional<char> lines = options.split ? std::optional('\n') : std::nullopt;
  for (const std::string& line : split(read_stdin(), lines)) {
    TextStream stream(tokenizer);
    for (const int32_t id : read_ids(line, "stdin")) std::cout << stream.push(id);
    std::cout << stream.flush();
    if (options.split) std::cout << *options.split;
  }
}

int answer(Options options) {
  if (options.text_file) options.prompt = read_prompt(*options.text_file);
  else if (options.prompt == "-") options.prompt = read_prompt(*options.prompt);
  Interruption interruption;
  const bool streams = options.prompt && !options.json;
  const Result result = generate(options, interruption, [&](const std::string& text) {
    if (streams) std::cout << text << std::flush;
  });
  const auto peak = peak_memory();
  if (options.json) {
    std::cout << to_json(result, peak) << '\n';
  } else {
    if (!options.prompt) {
      const char* between = "";
      for (const int32_t id : result.ids) std::cout << std::exchange(between, " ") << id;
    }
    std::cout << std::endl;
    std::cerr << summary(result, peak) << '\n';
  }
  return result.ending == "cancelled" ? kInterrupted : 0;
}

int run(const Options& options) {
  switch (options.task) {
    case Task::kHelp: std::cout << kUsage; return 0;
    case Task::kVersion: std::cout << "mobillama-run, engine version " << mobillama_version() << '\n'; return 0;
    case Task::kGenerate: return answer(options);
    case Task::kTokenize:
    case Task::kDetokenize: break;
  }
  const File file(options.file);
  const Tokenizer tokenizer{Gguf(file)};
  options.task == Task::kTokenize ? tokenize(options, tokenizer) : detokenize(options, tokenizer);
  return 0;
}

}  // namespace
}  // namespace mobillama

int main(int argc, char** argv) {
  try {
    const int code = mobillama::run(mobillama::read_options(argc, argv));
    std::cout.flush();
    if (!std::cout) throw std::runtime_error("stdout cannot be written to");
    return code;
  } catch (const mobillama::UsageError& error) {
    std::cerr << "mobillama-run: " << mobillama::printable(error.what()) << '\n';
    return mobillama::kUsageError;
  } catch (const std::bad_alloc&) {
    std::cerr << "mobillama-run: the system gives no more memory\n";
  } catch (const std::exception& error) {
    std::cerr << "mobillama-run: " << mobillama::printable(error.what()) << '\n';
  }
  return mobillama::kError;
}
