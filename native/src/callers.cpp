#include "callers.h"

#include <pthread.h>

#include "failure.h"

namespace mobillama {
namespace {

std::atomic<uint32_t> forks{0};  // between the first process and this one
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });

// Counts last callers that left while somebody waited for them. It outlives every object: a caller that has counted
// itself out may touch this, and nothing of what it was inside, which may be gone by then.
std::atomic<uint32_t> departures{0};

}  // namespace

Callers::Callers() : process_(forks.load()) {}

void Callers::enter() {
  if (forks.load(std::memory_order_relaxed) != process_)
    fail(MOBILLAMA_INVALID,
         "this was opened before fork(), and the threads that compute are in the parent only; open the file in the "
         "child");
  if ((inside_.fetch_add(1) & kClosing) == 0) return;
  leave();
  fail(MOBILLAMA_INVALID, "this is being freed; no call may begin once freeing has");
}

void Callers::leave() noexcept {
  if (inside_.fetch_sub(1) != (kClosing | 1)) return;
  departures.fetch_add(1);
  departures.notify_all();
}

bool Callers::close() noexcept {
  if (forks.load() != process_) return false;
  inside_.fetch_or(kClosing);
  for (;;) {
    const uint32_t seen = departures.load();  // before the count is looked at, so that no departure is slept through
    if (inside_.load() == kClosing) return true;
    departures.wait(seen);
  }
}

}  // namespace mobillama
