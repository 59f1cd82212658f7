// What the drivers of laws share: a check that ends the program with words, a limit of time, and threads at once.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "mobillama.h"
#include "mutate.h"  // Random

[[noreturn]] inline void give_up(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] inline void give_up(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  std::abort();
}

#define EXPECT(condition) \
  if (!(condition)) give_up("%s:%d: expected %s", __FILE__, __LINE__, #condition)

// The status, or the end with the library's words. A failure must have words.
inline void expect_status(mobillama_status wanted, mobillama_status got, const char* call) {
  const char* words = got == MOBILLAMA_OK ? "" : mobillama_last_error();
  if (got != wanted) give_up("%s: status %d, expected %d: %s", call, got, wanted, words);
  if (got != MOBILLAMA_OK && std::strlen(words) < 10) give_up("%s: status %d without words", call, got);
}
#define EXPECT_STATUS(wanted, call) expect_status(wanted, call, #call)

// A thread that waits for ever is a failure too: the program ends itself after that many seconds.
inline void limit_time(unsigned seconds) {
  std::signal(SIGALRM, [](int) {
    static constexpr char words[] = "out of time: some thread waits for ever\n";
    if (write(2, words, sizeof words - 1) < 0) std::_Exit(3);
    std::abort();
  });
  alarm(seconds);
}

// body(0) to body(count - 1), each on a thread of its own, at the same time.
inline void at_once(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; i++) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}
