// Where UTF-8 characters end. Well-formed is what the Unicode Standard's table 3-7 lists: no overlong forms, no
// surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace mobillama::utf8 {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr size_t kInvalid = 0, kIncomplete = size_t(-1);

// Bytes of the character that begins `text`; kInvalid if none does; kIncomplete if more bytes could make it one.
inline size_t character_size(std::string_view text) {
  const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
  if (text.empty()) return kIncomplete;
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return kInvalid;
  const size_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (size_t at = 1; at < size; at++) {
    if (at == text.size()) return kIncomplete;
    const int low = at == 1 && first == 0xE0 ? 0xA0 : at == 1 && first == 0xF0 ? 0x90 : 0x80;
    const int high = at == 1 && first == 0xED ? 0x9F : at == 1 && first == 0xF4 ? 0x8F : 0xBF;
    if (byte(at) < low || byte(at) > high) return kInvalid;
  }
  return size;
}

}  // namespace mobillama::utf8
