// Threads that compute together: they run one body at the same time, a sequence of phases.
//
// A phase is over when its work is done, not when every thread has been there: a thread that another program keeps from
// running holds up nothing but the chunk it is in the middle of. A thread that waits spins for a moment, then sleeps in
// the kernel: an idle pool takes no processor time, and a waiting thread leaves its core to one that is wanted. Nothing
// is allocated and no lock is taken while a body runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
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

  // body(worker) on this thread (worker 0) and on every other that wakes in time; returns when all its phases are done
  // and no thread is inside. All workers must go through the same phases; a body must not throw.
  template <class Body>
  void run(Body&& body) {
    call_ = [](void* to, int worker) { (*static_cast<std::remove_reference_t<Body>*>(to))(worker); };
    target_ = &body;
    run_job();
  }

  // Inside a body: work(chunk) for each chunk in [0, chunks), each by one worker. Whoever does the last one does tail()
  // too, and the phase is over. A worker takes chunks of its own share in order (neighbours in memory), then from the
  // others' shares. One that comes when the phase is over goes straight on.
  template <class Work, class Tail>
  void phase(int worker, int chunks, Work&& work, Tail&& tail) {
    const int count = threads();
    const uint32_t turn = slots_[static_cast<size_t>(worker)].turn++;
    const int all = chunks > 0 ? chunks : 1;  // without work there is still a tail
    int done = 0;
    for (int i = 0; i < count; i++) {
      const int share = (worker + i) % count;
      const int begin = static_cast<int>(int64_t{all} * share / count),
                end = static_cast<int>(int64_t{all} * (share + 1) / count);
      for (int at; (at = claim(share, turn, end - begin)) >= 0; done++)
        if (begin + at < chunks) work(begin + at);
    }
    if (done > 0 && done_.fetch_add(done, std::memory_order_acq_rel) + done == all) {
      tail();
      done_.store(0, std::memory_order_relaxed);
      for (Slot& slot : slots_) slot.next.store(ticket(turn + 1), std::memory_order_release);
      advance(turn_, turn + 1);
    } else {
      wait_phase(turn);
    }
  }

 private:
  // Why a chunk is done once, in its phase: a ticket names its phase, and a claim succeeds for that phase only. Nobody
  // is ahead of turn_, and the next phase's tickets are written before turn_ is, so that a late worker finds either its
  // phase or nothing. done_ counts chunks that are finished, so that a phase does not end under one that is not.
  // Why the body may go when run returns: a helper counts itself in, then looks whether the job is still open; run
  // closes the job, then waits until nobody is counted.
  struct alignas(64) Slot {
    std::atomic<uint64_t> next{0};  // the phase in the upper half, the share's next chunk in the lower
    uint32_t turn = 0;              // this worker's phase
  };

  static uint64_t ticket(uint32_t turn) { return uint64_t{turn} << 32; }

  // The next chunk of a share in phase `turn`; -1 if there is none left, or the phase is over.
  int claim(int share, uint32_t turn, int size) {
    std::atomic<uint64_t>& next = slots_[static_cast<size_t>(share)].next;
    uint64_t seen = next.load(std::memory_order_acquire);
    while (seen >> 32 == turn && static_cast<int>(seen & UINT32_MAX) < size)
      if (next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        return static_cast<int>(seen & UINT32_MAX);
    return -1;
  }

  void run_job();
  void serve(int worker);
  void advance(std::atomic<uint32_t>& counter, uint32_t value);
  void wait_phase(uint32_t turn);  // until the phase `turn` is over
  void await(std::atomic<uint32_t>& counter, uint32_t old, int spins);

  std::vector<Slot> slots_;
  std::vector<std::thread> helpers_;
  alignas(64) std::atomic<uint32_t> turn_{0};  // the phase that is under way
  alignas(64) std::atomic<int> done_{0};       // its chunks that are done
  alignas(64) std::atomic<uint32_t> job_{0};   // counts jobs twice: odd while one is open
  std::atomic<uint32_t> inside_{0};            // helpers in a job
  std::atomic<int> sleepers_{0};
  std::atomic<bool> closing_{false};
  uint32_t first_turn_ = 0;  // of the job
  void (*call_)(void*, int) = nullptr;
  void* target_ = nullptr;
};

}  // namespace mobillama
