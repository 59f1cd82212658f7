#include "pool.h"

#include <chrono>
#include <system_error>

#include "failure.h"

namespace mobillama {
namespace {

constexpr int kSpins = 2000;  // tries before sleeping, some tens of microseconds: longer than a phase's usual unevenness

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
  } catch (const std::system_error& error) {
    closing_.store(true);
    advance(job_, job_.load() + 1);
    for (std::thread& helper : helpers_) helper.join();
    fail(MOBILLAMA_MEMORY, "the system gives no %d threads (%s); ask for fewer", threads, error.what());
  }
}

Pool::~Pool() {
  closing_.store(true);
  advance(job_, job_.load() + 1);
  for (std::thread& helper : helpers_) helper.join();
}

void Pool::run_job() {
  advance(job_, job_.load(std::memory_order_relaxed) + 1);
  call_(target_, 0);
  phase(0, 0, [](int) {}, [] {});  // all are through
}

void Pool::serve(int worker) {
  for (uint32_t seen = 0;; seen++) {
    await(job_, seen);
    if (closing_.load()) return;
    call_(target_, worker);
    phase(worker, 0, [](int) {}, [] {});
  }
}

// Whoever is about to sleep counts itself first and looks once more; whoever advances writes first and then counts the
// sleepers. Sequentially consistent on both sides, so that one of them sees the other.
void Pool::advance(std::atomic<uint32_t>& counter, uint32_t value) {
  counter.store(value);
  if (sleepers_.load() > 0) counter.notify_all();
}

void Pool::await(std::atomic<uint32_t>& counter, uint32_t old) {
  for (int spin = 0; spin < kSpins; spin++) {
    if (counter.load(std::memory_order_acquire) != old) return;
    pause();
  }
  sleepers_.fetch_add(1);
  while (counter.load() == old) counter.wait(old);
  sleepers_.fetch_sub(1);
}

}  // namespace mobillama
