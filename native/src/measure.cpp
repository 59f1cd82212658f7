#include "measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "memory.h"
#include "pool.h"

namespace mobillama {
namespace {

class Clock {
 public:
  double passed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

double bandwidth(size_t bytes, int threads, double seconds) {
  Pool pool(threads);
  const Buffer buffer(bytes);
  std::fill_n(buffer.data(), buffer.bytes(), uint8_t{1});
  constexpr size_t kPiece = 64 << 10;  // read by one thread at a time
  const int pieces = static_cast<int>(buffer.bytes() / kPiece);
  std::atomic<uint64_t> kept{0};  // so that the reading is not left out
  const Clock clock;
  int64_t rounds = 0;
  for (; rounds == 0 || clock.passed() < seconds; rounds++)
    pool.run([&](int worker) {
      pool.phase(
          worker, pieces,
          [&](int piece) {
            const auto* words = reinterpret_cast<const uint64_t*>(buffer.data() + static_cast<size_t>(piece) * kPiece);
            uint64_t sums[8] = {};
            for (size_t i = 0; i < kPiece / 8; i += 8)
              for (size_t lane = 0; lane < 8; lane++) sums[lane] ^= words[i + lane];
            uint64_t all = 0;
            for (const uint64_t sum : sums) all ^= sum;
            kept.fetch_xor(all, std::memory_order_relaxed);
          },
          [] {});
    });
  return static_cast<double>(rounds) * static_cast<double>(pieces) * kPiece / clock.passed();
}

double round_trip() {
  constexpr int kTries = 20, kExchanges = 500;  // a try that is interrupted does not count, being longer
  alignas(64) std::atomic<int> word{0};
  double least = 0;
  std::thread other([&] {
    for (int i = 0; i < kTries * kExchanges; i++) {
      while (word.load(std::memory_order_acquire) != 2 * i + 1) {
      }
      word.store(2 * i + 2, std::memory_order_release);
    }
  });
  for (int attempt = 0, i = 0; attempt < kTries; attempt++) {
    const Clock clock;
    for (int end = i + kExchanges; i < end; i++) {
      word.store(2 * i + 1, std::memory_order_release);
      while (word.load(std::memory_order_acquire) != 2 * i + 2) {
      }
    }
    const double seconds = clock.passed() / kExchanges;
    least = attempt == 0 ? seconds : std::min(least, seconds);
  }
  other.join();
  return least;
}

}  // namespace mobillama
