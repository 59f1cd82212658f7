#include "pool.h"

#include <exception>

#include "failure.h"

namespace mobillama {
namespace {

// Tries before sleeping: in a phase some tens of microseconds, longer than its usual unevenness; between jobs about as
// long as a caller takes from one token to the next, for waking a thread costs as much again.
constexpr int kSpins = 2000, kSpinsBetweenJobs = 8000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

}  // namespace

Pool::Pool(int threads) : slots_(static_cast<size_t>(threads)) {
  try {
    for (int worker = 1; worker < threads; worker++) helpers_.emplace_back([this, worker] { serve(worker); });
  } catch (const std::exception& error) {  // no thread, or no memory for one
    closing_.store(true);
    advance(job_, 2);
    for (std::thread& helper : helpers_) helper.join();
    fail(MOBILLAMA_MEMORY, "the system gives no %d threads (%s); ask for fewer", threads, error.what());
  }
}

Pool::~Pool() {
  closing_.store(true);
  advance(job_, job_.load() + 2);
  for (std::thread& helper : helpers_) helper.join();
}

void Pool::run_job() {
  first_turn_ = turn_.load(std::memory_order_relaxed);
  slots_[0].turn = first_turn_;
  const uint32_t open = job_.load(std::memory_order_relaxed) + 1;
  advance(job_, open);
  call_(target_, 0);
  job_.store(open + 1);  // whoever has not come by now need not
  for (uint32_t inside; (inside = inside_.load()) > 0;) await(inside_, inside, kSpins);
}

void Pool::serve(int worker) {
  for (uint32_t seen = 0;;) {
    await(job_, seen, kSpinsBetweenJobs);
    seen = job_.load();
    if (closing_.load()) return;  // looked at second: the end counts job_ up for the last time, and closes before that
    if (seen % 2 == 0) continue;
    // Announced first, then looked at again: run_job closes first and then counts, so that one of them sees the other.
    inside_.fetch_add(1);
    if (job_.load() == seen) {
      slots_[static_cast<size_t>(worker)].turn = first_turn_;
      call_(target_, worker);
    }
    if (inside_.fetch_sub(1) == 1 && sleepers_.load() > 0) inside_.notify_all();
  }
}

// Whoever is about to sleep counts itself first and looks once more; whoever advances writes first and then counts the
// sleepers. Sequentially consistent on both sides, so that one of them sees the other.
void Pool::advance(std::atomic<uint32_t>& counter, uint32_t value) {
  counter.store(value);
  if (sleepers_.load() > 0) counter.notify_all();
}

void Pool::wait_phase(uint32_t turn) { await(turn_, turn, kSpins); }

void Pool::await(std::atomic<uint32_t>& counter, uint32_t old, int spins) {
  for (int spin = 0; spin < spins; spin++) {
    if (counter.load(std::memory_order_acquire) != old) return;
    pause();
  }
  sleepers_.fetch_add(1);
  while (counter.load() == old) counter.wait(old);
  sleepers_.fetch_sub(1);
}

}  // namespace mobillama
