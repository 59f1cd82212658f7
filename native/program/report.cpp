#include "report.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "printable.h"

namespace mobillama {

namespace {

// Tokens per second; NaN where nothing was timed.
double rate(size_t tokens, double seconds) { return tokens > 0 && seconds > 0 ? double(tokens) / seconds : NAN; }
double prefill_rate(const Result& result) { return rate(size_t(result.prompt_tokens), result.prefill); }
double decode_rate(const Result& result) { return rate(result.tokens.size(), result.decode()); }

std::string format(const char* pattern, double value) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (static_cast<unsigned char>(c) < 0x20) out += "\\u00" + std::string(1, "01"[c >> 4]) + "0123456789abcdef"[c & 15];
    else out += c;
  }
  return out + '"';
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

template <typename Values, typename Show>
std::string list(const Values& values, Show show) {
  std::string out;
  for (const auto& value : values) out += (out.empty() ? "" : ", ") + std::string(show(value));
  return "[" + out + "]";
}

}  // namespace

std::optional<int64_t> peak_memory() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;  // the kernel writes kB
  }
  return std::nullopt;
}

std::string summary(const Result& result, std::optional<int64_t> peak) {
  std::string out = std::to_string(result.prompt_tokens) + " prompt tokens, " + std::to_string(result.ids.size()) + " new (" +
                    result.ending + "); open " + format("%.3f s", result.open);
  if (result.first_token > 0) out += ", first token " + format("%.3f s", result.first_token);
  if (result.ending != "cancelled") out += ", prefill " + format("%.1f tokens/s", prefill_rate(result));
  if (!result.tokens.empty()) out += ", decode " + format("%.1f tokens/s", decode_rate(result));
  if (peak) out += ", peak memory " + format("%.1f MB", double(*peak) / 1e6);
  out += std::string("; ") + result.model.isa;
  for (const std::string& key : result.ignored_keys) out += "; ignored key " + printable(key);
  return out;
}

std::string to_json(const Result& result, std::optional<int64_t> peak) {
  const auto integer = [](int64_t value) { return std::to_string(value); };
  std::string out = "{\"text\": " + quoted(result.text);
  out += ", \"ids\": " + list(result.ids, integer);
  out += ", \"ending\": " + quoted(result.ending);
  out += ", \"prompt_tokens\": " + integer(result.prompt_tokens);
  out += ", \"open_s\": " + number(result.open);
  out += ", \"first_token_s\": " + (result.first_token > 0 ? number(result.first_token) : "null");
  out += ", \"prefill_s\": " + number(result.prefill);
  out += ", \"prefill_tokens_per_s\": " + number(prefill_rate(result));
  out += ", \"decode_tokens_per_s\": " + number(decode_rate(result));
  out += ", \"token_s\": " + list(result.tokens, number);
  out += ", \"peak_memory_bytes\": " + (peak ? integer(*peak) : "null");
  out += ", \"file_bytes\": " + integer(result.model.file_bytes);
  out += ", \"weight_bytes\": " + integer(result.model.weight_bytes);
  out += ", \"ignored_keys\": " + list(result.ignored_keys, quoted);
  return out + ", \"isa\": " + quoted(result.model.isa) + "}";
}

}  // namespace mobillama
