// The most 8-bit multiply-adds a second that this machine's vector units do, with AVX-512 VNNI or with AVX2, as compiled:
// no memory, and sums that do not wait for each other. Usage: dot_peak THREADS SECONDS; prints multiply-adds per second of all threads together.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kSums = 12;  // registers: more than the latency of an instruction times those begun in a cycle
constexpr int kRepeats = 4096;

// Written in assembler, because a compiler moves the sums between registers. What they hold does not matter.
#if defined(__AVX512VNNI__)
constexpr int kBytes = 64;  // multiply-adds of one instruction
#define DOT(sum) "vpdpbusd %%zmm1, %%zmm0, %%zmm" #sum "\n\t"
#else
constexpr int kBytes = 32;  // of a product of neighbours and its addition, both in 16 bits
#define DOT(sum) "vpmaddubsw %%ymm1, %%ymm0, %%ymm14\n\tvpaddw %%ymm14, %%ymm" #sum ", %%ymm" #sum "\n\t"
#endif
void dots() {
  asm volatile(DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12) DOT(13)
               :
               :
               : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                 "xmm14");
}

double multiply_adds(double seconds) {
  double done = 0, passed = 0;
  const auto start = std::chrono::steady_clock::now();
  while (passed < seconds) {
    for (int repeat = 0; repeat < kRepeats; repeat++) dots();
    done += double(kRepeats) * kSums * kBytes;
    passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return done / passed;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::vector<double> found(static_cast<size_t>(std::atoi(argv[1])));
  std::vector<std::thread> threads;
  for (auto& each : found) threads.emplace_back([&each, seconds = std::atof(argv[2])] { each = multiply_adds(seconds); });
  for (auto& thread : threads) thread.join();
  double sum = 0;
  for (const double each : found) sum += each;
  std::printf("%.6e\n", sum);
}
