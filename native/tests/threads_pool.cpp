// The pool's laws, under a thread sanitizer: each chunk of a phase is done once, the tail follows all of them and comes
// before everything of the next phase, run() returns when nobody needs the body any more, and nobody waits for ever.
//
//   threads_pool [--seconds S] [--seed N]
//
// What a phase writes are plain numbers: whatever the pool does not order, the sanitizer sees. Delays of random length
// at random places make workers come late to a job, to a phase or to neither. Built with -fsanitize-coverage=trace-pc,
// which calls a function of ours at every branch, the pool's own code is held up between any two of its steps too.
#include "pool.h"

#include <sched.h>

#include <chrono>
#include <memory>
#include <string_view>

#include "expect.h"

using mobillama::Pool;

namespace {

// Nothing, a step aside, or up to a fifth of a millisecond: longer than a worker spins before it sleeps.
void delay(Random& random, uint64_t rarity) {
  if (!random.one_in(rarity)) return;
  switch (random.below(3)) {
    case 0:
      sched_yield();
      break;
    case 1:
      usleep(static_cast<useconds_t>(random.below(200)));
      break;
    default:
      for (uint64_t i = random.below(20000); i > 0; i--) asm volatile("");
  }
}

std::atomic<uint32_t> branches_per_delay{0};  // 0: none

struct Phase {
  int chunks = 0, tails = 0;
  std::vector<int> done;  // times that each chunk was done
};

struct Job {
  std::vector<Phase> phases;
  int stop_at = -1;  // the phase whose tail asks all to leave, as a cancelled pass does
  std::atomic<bool> stopped{false};
  uint64_t seed = 0, rarity = 1;
};

int any_chunks(Random& random, int threads) {
  switch (random.below(4)) {
    case 0:
      return static_cast<int>(random.below(3));
    case 1:
      return threads - 1 + static_cast<int>(random.below(3));
    default:
      return static_cast<int>(random.below(60));
  }
}

void compute(Pool& pool, Job& job, int worker) {
  Random random{job.seed + static_cast<uint64_t>(worker) * 0x9e3779b97f4a7c15u};
  delay(random, job.rarity);
  for (size_t i = 0; i < job.phases.size(); i++) {
    Phase& phase = job.phases[i];
    pool.phase(
        worker, phase.chunks,
        [&](int chunk) {
          if (i > 0) EXPECT(job.phases[i - 1].tails == 1);
          EXPECT(phase.tails == 0);
          phase.done[static_cast<size_t>(chunk)]++;
          delay(random, job.rarity * 4);
        },
        [&] {
          for (const int times : phase.done) EXPECT(times == 1);
          delay(random, job.rarity);
          phase.tails++;
          if (job.stop_at == static_cast<int>(i)) job.stopped = true;
        });
    if (job.stopped) return;
    delay(random, job.rarity);
  }
}

void run_job(Pool& pool, Random& random, uint64_t& chunks) {
  // On the heap and gone right after run(): a worker that still looked at it would be seen.
  const auto job = std::make_unique<Job>();
  job->seed = random.next();
  job->rarity = random.one_in(4) ? 2 : 1 + random.below(1000);
  job->phases.resize(1 + random.below(6));
  for (Phase& phase : job->phases) {
    phase.chunks = any_chunks(random, pool.threads());
    phase.done.resize(static_cast<size_t>(phase.chunks));
  }
  if (random.one_in(4)) job->stop_at = static_cast<int>(random.below(job->phases.size()));
  pool.run([&pool, job = job.get()](int worker) { compute(pool, *job, worker); });
  for (size_t i = 0; i < job->phases.size(); i++) {
    const Phase& phase = job->phases[i];
    // Behind the stop a phase is whole or was not begun.
    if (job->stop_at >= 0 && static_cast<int>(i) > job->stop_at && phase.tails == 0) {
      for (const int times : phase.done) EXPECT(times == 0);
      continue;
    }
    EXPECT(phase.tails == 1);
    for (const int times : phase.done) EXPECT(times == 1);
    chunks += static_cast<uint64_t>(phase.chunks);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" __attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc() {
  thread_local Random random{reinterpret_cast<uintptr_t>(&random)};
  const uint32_t rarity = branches_per_delay.load(std::memory_order_relaxed);
  if (rarity > 0 && random.next() % rarity == 0) usleep(static_cast<useconds_t>(random.next() % 300));
}
#pragma GCC visibility pop

int main(int argc, char** argv) {
  double seconds = 5;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::string_view(argv[i]) == "--seconds") seconds = std::atof(argv[i + 1]);
    if (std::string_view(argv[i]) == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  limit_time(static_cast<unsigned>(seconds) + 60);
  Random random{seed};
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  uint64_t pools = 0, jobs = 0, chunks = 0;
  for (; passed() < seconds; pools++) {
    branches_per_delay = random.one_in(2) ? 0 : 4 << random.below(10);
    Pool pool(1 + static_cast<int>(random.below(8)));
    // Many pools live for one job or none: their end meets helpers that have hardly begun.
    const uint64_t count = random.one_in(8) ? random.below(200) : random.below(3);
    for (uint64_t i = 0; i < count && passed() < seconds; i++, jobs++) {
      run_job(pool, random, chunks);
      delay(random, 20);
    }
    delay(random, 4);
  }
  const auto show = [](const char* what, uint64_t n) {
    std::printf("%s: %llu\n", what, static_cast<unsigned long long>(n));
  };
  show("pools", pools), show("jobs", jobs), show("chunks", chunks);
}
