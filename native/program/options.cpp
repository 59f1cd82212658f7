#include "options.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <string_view>
#include <type_traits>

namespace mobillama {

const char* const kUsage =
    R"(mobillama-run FILE.gguf (-p PROMPT | --text-file FILE | --ids 1,2,3) [options]: continue a text
mobillama-run FILE.gguf --tokenize [--split BYTE] < text: its ids
mobillama-run FILE.gguf --detokenize [--split BYTE] < ids: their text

  -p, --prompt TEXT         the text to continue; - is all of stdin. The answer goes to stdout as it comes, timings to stderr
  --text-file FILE          the whole file is the prompt; - is stdin. What is read from a file or stdin is UTF-8; of it a byte
                            order mark and one newline at the end are left out, all other newlines are part of the prompt
  --ids 1,2,3               the prompt as ids: the answer is ids too, exactly -n of them (an end id does not end it)
  -n, --max-new-tokens N    128
  --temperature T           0.8; 0 = the likeliest token
  --top-k K                 0 = all
  --top-p P                 0.95; 1 = all
  --repetition-penalty R    1 = none
  --seed S                  0; same seed, same text
  --stop TEXT               end before this text; may be given several times
  --threads N               0 = one per core
  --context N               tokens of prompt and answer together; 0 = as many as the model was made for
  --kv f16|int8|f32         type in which keys and values are kept (f16)
  --ignore-key NAME         run a file whose key NAME is unknown here, or asks for what this engine cannot compute; may be
                            given several times, and is told beside the timings
  --json                    one line of JSON on stdout in place of text and timings
  --tokenize                one line of ids for the text on stdin, without a begin id
  --detokenize              the text of the ids on stdin; with --split, of each line
  --split BYTE              texts on stdin (stdout) are separated (ended) by this byte: 0 = NUL; 255 is never in UTF-8
  --version, --help

The environment variable MOBILLAMA_ISA (scalar, avx2, avx512, neon, neon-dot, neon-i8mm) forces an instruction set.
Ends with 0, 1 (an error), 2 (a command line that cannot be read) or 130 (Ctrl-C; what was written so far is whole).
)";

namespace {

template <typename T>
T read_number(const std::string& text, const std::string& name, T least, T most) {
  T value{};
  const char* end = text.c_str();
  bool fits = !text.empty() && !std::isspace(static_cast<unsigned char>(text[0]));
  if constexpr (std::is_floating_point_v<T>) {  // not every standard library has from_chars for these
    char* stop = nullptr;
    value = std::strtod(text.c_str(), &stop);
    end = stop;
  } else {
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    end = stop;
    fits = fits && error == std::errc();
  }
  // Written so that NaN is refused too.
  if (!fits || end != text.c_str() + text.size() || !(value >= least && value <= most)) {
    std::ostringstream words;
    words << name << ' ' << text << ": expected a number from " << least << " to " << most;
    throw UsageError(words.str());
  }
  return value;
}

int32_t read_count(const std::string& text, const std::string& name, int32_t least) {
  return read_number<int32_t>(text, name, least, INT32_MAX);
}

mobillama_kv_type read_kv(const std::string& text) {
  if (text == "f16") return MOBILLAMA_KV_F16;
  if (text == "int8") return MOBILLAMA_KV_INT8;
  if (text == "f32") return MOBILLAMA_KV_F32;
  throw UsageError("--kv " + text + ": expected f16, int8 or f32");
}

void check(const Options& options) {
  if (options.task == Task::kHelp || options.task == Task::kVersion) return;
  if (options.file.empty()) throw UsageError("no model: expected the path of a GGUF file");
  const bool generates = options.task == Task::kGenerate;
  const int prompts = options.prompt.has_value() + options.text_file.has_value() + !options.ids.empty();
  if (generates && prompts != 1) {
    throw UsageError("expected a prompt, given once: as text (-p TEXT), in a file (--text-file FILE) or as ids (--ids 1,2,3)");
  }
  if (!generates && prompts > 0) {
    throw UsageError("--tokenize and --detokenize read stdin; leave -p, --text-file and --ids out");
  }
  if (!generates && !options.ignored_keys.empty()) {
    throw UsageError("--ignore-key is about what a model computes; leave it out of --tokenize and --detokenize");
  }
  if (generates && options.split) throw UsageError("--split belongs to --tokenize and --detokenize");
  if (!options.ids.empty() && !options.stops.empty()) throw UsageError("--stop needs text; give the prompt with -p or --text-file");
  for (const std::string& stop : options.stops) {
    if (stop.empty()) throw UsageError("--stop is empty, which would stop before the first character; leave it out");
  }
}

}  // namespace

std::vector<int32_t> read_ids(const std::string& text, const std::string& origin) {
  std::vector<int32_t> ids;
  const std::string_view between = ", \t\r\n";
  for (size_t at = text.find_first_not_of(between); at != std::string::npos;) {
    const size_t end = std::min(text.find_first_of(between, at), text.size());
    ids.push_back(read_count(text.substr(at, end - at), origin, 0));
    at = text.find_first_not_of(between, end);
  }
  return ids;
}

Options read_options(int argc, char** argv) {
  Options options;
  mobillama_sampling& sampling = options.sampling;
  for (int at = 1; at < argc; at++) {
    std::string name = argv[at];
    std::optional<std::string> attached;  // --name=value
    if (const size_t equals = name.find('='); name.starts_with("--") && equals != std::string::npos) {
      attached = name.substr(equals + 1);
      name.resize(equals);
    }
    bool has_value = false;
    const auto value = [&]() -> std::string {
      has_value = true;
      if (attached) return *attached;
      if (at + 1 == argc) throw UsageError(name + " needs a value");
      return argv[++at];
    };
    if (name == "-p" || name == "--prompt") options.prompt = value();
    else if (name == "--text-file") options.text_file = value();
    else if (name == "--ids") {
      options.ids = read_ids(value(), name);
      if (options.ids.empty()) throw UsageError("--ids is empty; expected one id at least, such as --ids 1,2,3");
    }
    else if (name == "-n" || name == "--max-new-tokens") options.max_new_tokens = read_count(value(), name, 1);
    else if (name == "--temperature") sampling.temperature = read_number(value(), name, 0.0, 1e6);
    else if (name == "--top-k") sampling.top_k = read_count(value(), name, 0);
    else if (name == "--top-p") sampling.top_p = read_number(value(), name, 0.0, 1.0);
    else if (name == "--repetition-penalty") sampling.repetition_penalty = read_number(value(), name, 0.01, 100.0);
    else if (name == "--seed") sampling.seed = read_number<uint64_t>(value(), name, 0, UINT64_MAX);
    else if (name == "--stop") options.stops.push_back(value());
    else if (name == "--threads") options.threads = read_count(value(), name, 0);
    else if (name == "--context") options.context = read_count(value(), name, 0);
    else if (name == "--kv") options.kv = read_kv(value());
    else if (name == "--split") options.split = static_cast<char>(read_number<int32_t>(value(), name, 0, 255));
    else if (name == "--ignore-key") options.ignored_keys.push_back(value());
    else if (name == "--json") options.json = true;
    else if (name == "--tokenize") options.task = Task::kTokenize;
    else if (name == "--detokenize") options.task = Task::kDetokenize;
    else if (name == "--version") options.task = Task::kVersion;
    else if (name == "-h" || name == "--help") options.task = Task::kHelp;
    else if (name.starts_with("-")) throw UsageError("unknown option " + name + "; --help lists them");
    else if (options.file.empty()) options.file = argv[at], attached.reset();
    else throw UsageError("a second file, " + name + "; expected one (a prompt is given with -p)");
    if (attached && !has_value) throw UsageError(name + " takes no value");
  }
  check(options);
  return options;
}

}  // namespace mobillama
