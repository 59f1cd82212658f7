// What a run is told about: its times and memory, as a line to read or as JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "generate.h"

namespace mobillama {

// VmHWM: the most memory this process ever had resident, in bytes; nothing where the system does not say.
std::optional<int64_t> peak_memory();

std::string summary(const Result& result, std::optional<int64_t> peak);

// One line; null where there is no value. Rates are tokens per second, times seconds, sizes bytes.
std::string to_json(const Result& result, std::optional<int64_t> peak);

}  // namespace mobillama
