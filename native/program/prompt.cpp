#include "prompt.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "failure.h"
#include "file.h"
#include "utf8.h"

namespace mobillama {

namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

std::string read_all(int descriptor, const std::string& name) {
  std::string text;
  std::array<char, 1 << 16> part;
  while (true) {
    const ssize_t got = ::read(descriptor, part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(MOBILLAMA_IO, "%s: cannot be read: %s", name.c_str(), std::strerror(errno));
    if (got == 0) return text;
    text.append(part.data(), static_cast<size_t>(got));
  }
}

std::string read_file(const std::string& path) {
  const std::string name = shown_path(path);
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    fail(MOBILLAMA_IO, "%s: cannot be opened: %s; give a file of UTF-8 text, or - for stdin", name.c_str(), std::strerror(errno));
  }
  const struct Closer {
    int descriptor;
    ~Closer() { ::close(descriptor); }
  } closer{descriptor};
  return read_all(descriptor, name);
}

// The first byte that is part of no character; npos if there is none.
size_t find_invalid(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t size = utf8::character_size(text.substr(at));
    if (size == utf8::kInvalid || size == utf8::kIncomplete) return at;
    at += size;
  }
  return std::string_view::npos;
}

}  // namespace

std::string read_stdin() { return read_all(STDIN_FILENO, "stdin"); }

std::string read_prompt(const std::string& path) {
  std::string text = path == "-" ? read_stdin() : read_file(path);
  const std::string name = path == "-" ? "stdin" : shown_path(path);
  if (const size_t at = find_invalid(text); at != std::string_view::npos) {
    fail(MOBILLAMA_INVALID, "%s is not UTF-8 text (byte %zu); convert it first, for example with iconv -f latin1 -t utf-8",
         name.c_str(), at);
  }
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (text.ends_with('\n')) text.pop_back(), text.ends_with('\r') ? text.pop_back() : void();
  if (text.empty()) fail(MOBILLAMA_INVALID, "%s is empty; expected the text of a prompt", name.c_str());
  return text;
}

}  // namespace mobillama
