#include "generate.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "failure.h"
#include "file.h"
#include "gguf.h"
#include "text_stream.h"
#include "tokenizer.h"

namespace mobillama {

namespace {

// The library's words for C and Python, and those of the command line for the same.
constexpr std::pair<std::string_view, std::string_view> kWords[] = {
    {"threads=", "--threads "},
    {"max_tokens=", "--context "},
    {"temperature=", "--temperature "},
    {"top_k=", "--top-k "},
    {"top_p=", "--top-p "},
    {"repetition_penalty=", "--repetition-penalty "},
    {"kv_type=", "--kv "},
    {" (in Python, ignore_keys)", ""},
};

void need(mobillama_status status) {
  if (status == MOBILLAMA_OK) return;
  std::string text = mobillama_last_error();
  for (const auto& [theirs, ours] : kWords) {
    if (const size_t at = text.find(theirs); at != std::string::npos) text.replace(at, theirs.size(), ours);
  }
  throw Failure(status, text);
}

class Clock {
 public:
  // Seconds since it was made, or since the last call.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double> passed = now - std::exchange(last_, now);
    return passed.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

struct ModelCloser {
  void operator()(mobillama_model* model) const { mobillama_close(model); }
};
using Model = std::unique_ptr<mobillama_model, ModelCloser>;

// A context that Ctrl-C cancels for as long as it lives.
class Context {
 public:
  Context(mobillama_model* model, const mobillama_context_options& options, Interruption& interruption)
      : interruption_(interruption) {
    need(mobillama_context_new(model, &options, &context_));
    interruption_.watch(context_);
  }
  ~Context() {
    interruption_.watch(nullptr);
    mobillama_context_free(context_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  mobillama_context* get() const { return context_; }

 private:
  Interruption& interruption_;
  mobillama_context* context_ = nullptr;
};

std::unique_ptr<Tokenizer> read_tokenizer(const std::string& path, int32_t vocab_size) {
  const File file(path);
  auto tokenizer = std::make_unique<Tokenizer>(Gguf(file));
  if (tokenizer->size() > vocab_size) {
    fail(MOBILLAMA_FORMAT, "%s: the tokenizer has %d pieces, the model an embedding of %d rows: it is not the model's own",
         shown_path(path).c_str(), tokenizer->size(), vocab_size);
  }
  return tokenizer;
}

// The text of an answer, behind a prompt: a space between the two is kept.
class Answer {
 public:
  Answer(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt, const std::vector<std::string>& stops)
      : stream_(tokenizer), stops_(stops) {
    for (const int32_t id : prompt) stream_.push(id);
  }
  std::string push(int32_t id) { return stops_.push(stream_.push(id)); }
  std::string flush() { return stops_.stopped() ? "" : stops_.push(stream_.flush()) + stops_.flush(); }
  bool stopped() const { return stops_.stopped(); }

 private:
  TextStream stream_;
  StopFilter stops_;
};

}  // namespace

double Result::decode() const { return std::accumulate(tokens.begin(), tokens.end(), 0.0); }

Result generate(const Options& options, Interruption& interruption, const std::function<void(const std::string&)>& show) {
  Result result;
  result.ignored_keys = options.ignored_keys;
  Clock clock, whole;

  mobillama_model* opened = nullptr;
  mobillama_open_options open_options = {};
  open_options.threads = options.threads;
  std::vector<const char*> ignored;
  for (const std::string& key : options.ignored_keys) ignored.push_back(key.c_str());
  need(mobillama_open_ignoring(options.file.c_str(), &open_options, ignored.data(), static_cast<int32_t>(ignored.size()),
                               &opened));
  const Model model(opened);
  need(mobillama_describe(model.get(), &result.model));
  result.open = clock.lap();

  std::vector<int32_t> seen = options.ids;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<Answer> answer;
  mobillama_sampling sampling = options.sampling;
  std::vector<int32_t> ends;  // ids at which the text ends
  if (options.prompt) {
    tokenizer = read_tokenizer(options.file, result.model.vocab_size);
    seen = tokenizer->encode_prompt(*options.prompt);
    if (seen.empty()) fail(MOBILLAMA_INVALID, "the prompt is empty, and this model has no begin id; give some text with -p");
    answer.emplace(*tokenizer, seen, options.stops);
    sampling.num_ids = tokenizer->size();
    ends = tokenizer->ends();
  }
  result.prompt_tokens = static_cast<int32_t>(seen.size());

  mobillama_context_options context_options = {};
  context_options.threads = options.threads;
  context_options.max_tokens = options.context;
  context_options.kv_type = options.kv;
  const Context context(model.get(), context_options, interruption);
  const int32_t most = options.context > 0 ? options.context : result.model.context_length;
  if (result.prompt_tokens > most) {
    fail(MOBILLAMA_INVALID, "the prompt has %d ids, more than the %d of %s; give a shorter one, or a larger --context",
         result.prompt_tokens, most, options.context > 0 ? "--context" : "the model's context");
  }

  const auto emit = [&](const std::string& text) {
    result.text += text;
    if (!text.empty()) show(text);
  };
  clock.lap();
  mobillama_status status = mobillama_prefill(context.get(), 0, seen.data(), result.prompt_tokens);
  result.prefill = clock.lap();
  while (result.ending.empty()) {
    if (status == MOBILLAMA_CANCELLED || interruption.asked()) {
      result.ending = "cancelled";
      break;
    }
    need(status);
    int32_t id = 0;
    const auto length = static_cast<int32_t>(seen.size());
    const float* logits = mobillama_logits(context.get(), 0);
    need(mobillama_sample(logits, result.model.vocab_size, &sampling, length, seen.data(), length, &id));
    const double seconds = clock.lap();
    if (result.ids.empty()) result.first_token = whole.lap();
    else result.tokens.push_back(seconds);
    if (std::ranges::find(ends, id) != ends.end()) {
      result.ending = "eos";
      break;
    }
    seen.push_back(id);
    result.ids.push_back(id);
    if (answer) emit(answer->push(id));
    if (answer && answer->stopped()) result.ending = "stop";
    else if (static_cast<int32_t>(result.ids.size()) == options.max_new_tokens) result.ending = "length";
    else if (length + 1 >= most) result.ending = "context";
    else {
      const int32_t sequence = 0;
      status = mobillama_decode(context.get(), &sequence, &id, 1);
    }
  }
  if (answer) emit(answer->flush());
  return result;
}

}  // namespace mobillama
