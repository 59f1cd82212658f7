#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "cgroup.h"
#include "failure.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mobillama {

#if !defined(__x86_64__)
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
#endif
#if !defined(__aarch64__)
const Kernels* neon_kernels() { return nullptr; }
const Kernels* neon_dot_kernels() { return nullptr; }
const Kernels* neon_i8mm_kernels() { return nullptr; }
#endif

namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool has_f16c() {  // no name that older Clangs know
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

bool has_dot() {
#if defined(__aarch64__) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

bool has_matrices() {
#if defined(__aarch64__) && defined(__linux__)
  return has_dot() && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  int found = 0;
  size_t length = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &length, nullptr, 0) == 0 && found != 0;
#else
  return false;
#endif
}

struct Choice {
  const char* name;
  const Kernels* (*table)();
  bool (*present)();
};
constexpr Choice kChoices[] = {
    // fastest first
    {"avx512", avx512_kernels, has_avx512},
    {"avx2", avx2_kernels, has_avx2},
    {"neon-i8mm", neon_i8mm_kernels, has_matrices},
    {"neon-dot", neon_dot_kernels, has_dot},
    {"neon", neon_kernels, always},
    {"scalar", scalar_kernels, always},
};

}  // namespace

const Kernels& choose_kernels() {
  const char* wanted = std::getenv("MOBILLAMA_ISA");
  const bool any = wanted == nullptr || *wanted == 0;
  for (const Choice& choice : kChoices) {
    if (!any && std::strcmp(wanted, choice.name) != 0) continue;
    const Kernels* table = choice.table();
    if (table != nullptr && choice.present()) return *table;
    if (!any)
      fail(MOBILLAMA_UNSUPPORTED, "MOBILLAMA_ISA=%s, but this processor or this build has not got it; unset it",
           wanted);
  }
  fail(MOBILLAMA_UNSUPPORTED,
       "MOBILLAMA_ISA=%s is not known; expected scalar, avx2, avx512, neon, neon-dot or neon-i8mm", wanted);
}

int cores() {
  int found = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) found = CPU_COUNT(&set);
#endif
  return std::max(1, static_cast<int>(std::ceil(std::min(cpu_quota(), static_cast<double>(found)))));
}

int64_t cache_bytes() {
#if defined(__APPLE__)
  int64_t size = 0;
  size_t length = sizeof size;
  return sysctlbyname("hw.l2cachesize", &size, &length, nullptr, 0) == 0 ? size : 0;
#else
  int64_t largest = 0;
  for (int index = 0; index < 8; index++) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    int64_t size = 0;
    char unit = 0;
    if (!(file >> size)) continue;
    file >> unit;
    size *= unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : 1;
    if (size > largest) largest = size;
  }
  return largest;
#endif
}

}  // namespace mobillama
