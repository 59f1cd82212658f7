// Threads that compute together: they run one body at the same time and meet at phases.
//
// A thread that waits spins for a moment, then sleeps in the kernel: an idle pool takes no processor time, and where
// another program holds a core, its sleeping thread frees the other one. Nothing is allocated and no lock is taken
// while a body runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace mobillama {

class Pool {
 public:
  // Failure (MEMORY) if the system gives no threads. The caller of run is one of them.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(slots_.size()); }

  // body(worker) on every thread, worker = 0 to threads - 1, this one included; returns when all are through.
  // A body must not throw.
  template <class Body>
  void run(Body&& body) {
    call_ = [](void* to, int worker) { (*static_cast<std::remove_reference_t<Body>*>(to))(worker); };
    target_ = &body;
    run_job();
  }

  // Inside a body, reached by all workers: work(chunk) for each chunk in [0, chunks), each by one worker; when all are
  // done, the last worker to arrive does tail(), and then all go on. A worker takes chunks of its own share in order
  // (neighbours in memory) and, when that is empty, from the others'.
  template <class Work, class Tail>
  void phase(int worker, int chunks, Work&& work, Tail&& tail) {
    const int count = threads();
    const uint32_t turn = generation_.load(std::memory_order_relaxed);
    for (int i = 0; i < count; i++) {
      const int share = (worker + i) % count;
      const int begin = static_cast<int>(int64_t{chunks} * share / count), end = static_cast<int>(int64_t{chunks} * (share + 1) / count);
      std::atomic<int>& next = slots_[static_cast<size_t>(share)].next;
      if (i > 0 && next.load(std::memory_order_relaxed) >= end - begin) continue;
      for (int at; (at = next.fetch_add(1, std::memory_order_relaxed)) < end - begin;) work(begin + at);
    }
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      for (Slot& slot : slots_) slot.next.store(0, std::memory_order_relaxed);
      tail();
      advance(generation_, turn + 1);
    } else {
      await(generation_, turn);
    }
  }

 private:
  struct alignas(64) Slot {
    std::atomic<int> next{0};
  };
  void run_job();
  void serve(int worker);
  void advance(std::atomic<uint32_t>& counter, uint32_t value);
  void await(std::atomic<uint32_t>& counter, uint32_t old);

  std::vector<Slot> slots_;
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> job_{0};
  std::atomic<bool> closing_{false};
  void (*call_)(void*, int) = nullptr;
  void* target_ = nullptr;
};

}  // namespace mobillama
