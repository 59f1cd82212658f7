// The one exception inside the library: a status and the words for it. The C door (api.cpp) turns it into both.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "mobillama.h"
#include "printable.h"

namespace mobillama {

struct Failure : std::runtime_error {
  mobillama_status status;
  Failure(mobillama_status status, const std::string& text) : std::runtime_error(printable(text)), status(status) {}
};

// printf-style: found, expected, what to do.
[[noreturn]] inline void fail(mobillama_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] inline void fail(mobillama_status status, const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Failure(status, text);
}

}  // namespace mobillama
