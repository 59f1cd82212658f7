#include "text_stream.h"

#include <algorithm>

#include "utf8.h"

namespace mobillama {

std::string TextStream::push(int32_t id) {
  std::string_view bytes = tokenizer_.bytes(id);
  if (tokenizer_.is_control(id)) return flush();  // it ends a character that was begun
  if (!begun_) {
    begun_ = true;
    if (tokenizer_.strips(id)) bytes.remove_prefix(1);
  }
  waiting_ += bytes;
  return take(false);
}

std::string TextStream::flush() { return take(true); }

std::string TextStream::take(bool all) {
  std::string out;
  size_t at = 0;
  while (at < waiting_.size()) {
    const size_t size = utf8::character_size(std::string_view(waiting_).substr(at));
    if (size == utf8::kIncomplete && !all) break;
    if (size == utf8::kIncomplete || size == utf8::kInvalid) {
      out += utf8::kReplacement;
      at++;
    } else {
      out.append(waiting_, at, size);
      at += size;
    }
  }
  waiting_.erase(0, at);
  return out;
}

std::string StopFilter::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t end = std::string::npos, start = 0;
  for (const std::string& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found == std::string::npos) continue;
    if (std::pair(found + stop.size(), found) < std::pair(end, start)) end = found + stop.size(), start = found;
  }
  stopped_ = end != std::string::npos;
  const size_t shown = stopped_ ? start : held_.size() - open_length();
  std::string out = held_.substr(0, shown);
  held_.erase(0, stopped_ ? held_.size() : shown);
  return out;
}

// Bytes of the longest end of the held text that begins a stop string.
size_t StopFilter::open_length() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) longest = std::max(longest, stop.size());
  for (size_t length = std::min(longest, held_.size()); length > 0; length--) {
    const std::string_view end = std::string_view(held_).substr(held_.size() - length);
    if (std::any_of(stops_.begin(), stops_.end(), [&](const std::string& stop) { return stop.starts_with(end); })) {
      return length;
    }
  }
  return 0;
}

}  // namespace mobillama
