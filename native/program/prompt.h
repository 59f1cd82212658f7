// The prompt of a file or of stdin.
#pragma once

#include <string>

namespace mobillama {

// All bytes of stdin. Failure: what the system says.
std::string read_stdin();

// The text of a file ("-": stdin), whole, but for a byte order mark and one newline (LF or CR LF) at its end.
// Failure: a file that cannot be read, is not UTF-8 or has no text.
std::string read_prompt(const std::string& path);

}  // namespace mobillama
