// What the mutation driver (fuzz.cpp) and its entry share. The entry is chosen by linking one of fuzz_reader.cpp (the
// header's reader), fuzz_tokenizer.cpp (the vocabulary) and fuzz_door.cpp (the C door: open, prefill, decode, close).
#pragma once

#include <cstddef>

#include "mobillama.h"

// Give one file to the library. A status that no file may lead to, or one without words, ends in give_up.
mobillama_status enter(const char* path);

// Most bytes that the library may take from the system beside operator new for a file of so many.
constexpr size_t mapped_bound(size_t file_bytes) { return 4096 * file_bytes + (64 << 20); }

// Counts bytes that the library took from the system beside operator new, and gives up when they are too many.
void count_mapped(size_t bytes);

// Keeps the present input as a file, says why, and aborts.
[[noreturn]] void give_up(const char* reason);
