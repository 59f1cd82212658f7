// Text out of a file or from a command line, for a message that a terminal shows.
#pragma once

#include <string>
#include <string_view>

#include "utf8.h"

namespace mobillama {

// The text with every byte that would steer a terminal, or that belongs to no character, as \xNN: control characters
// (U+0000 to U+001F, U+007F to U+009F) and those that turn or break a line (U+2028 to U+202E, U+2066 to U+2069).
inline std::string printable(std::string_view text) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    size_t size = utf8::character_size(text.substr(at));
    const bool whole = size != utf8::kInvalid && size != utf8::kIncomplete;
    if (!whole) size = 1;
    const std::string_view character = text.substr(at, size);
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(character[i]); };
    const bool steers = size == 1   ? byte(0) < 0x20 || byte(0) == 0x7F
                        : size == 2 ? byte(0) == 0xC2 && byte(1) < 0xA0
                                    : size == 3 && byte(0) == 0xE2 &&
                                          ((byte(1) == 0x80 && byte(2) >= 0xA8 && byte(2) <= 0xAE) ||
                                           (byte(1) == 0x81 && byte(2) >= 0xA6 && byte(2) <= 0xA9));
    if (whole && !steers) {
      out += character;
    } else {
      for (const char one : character) {
        const auto value = static_cast<unsigned char>(one);
        out += {'\\', 'x', kDigits[value >> 4], kDigits[value & 15]};
      }
    }
    at += size;
  }
  return out;
}

}  // namespace mobillama
