// Gives mutated GGUF files to the library, one after the other in this process: build it with
// -fsanitize=address,undefined.
//   fuzz [--runs N] [--seed S] [--first I] [--seconds T] [--cases FOLDER]
//   fuzz --replay FILE...
//   fuzz --write-seeds FOLDER
// Input I of seed S is always the same. What the library must not do (a sanitizer's finding, memory beyond a bound set
// by the file's size, ten processor seconds for one file, a status that no file may lead to) ends the run; the input is
// then in FOLDER/case-S-I.bin. Linux only: the file lies in memory (memfd_create).
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz.h"
#include "mutate.h"
#include "seeds.h"

// A sanitizer's finding ends in SIGABRT, whose handler keeps the input. The sanitizers' libraries must see these.
#pragma GCC visibility push(default)
extern "C" const char* __asan_default_options() { return "abort_on_error=1"; }
extern "C" const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }
#pragma GCC visibility pop

namespace {

// Of memory at one time per byte of file. The reader's tables take about ten times their records; a model's weights
// take what the file has, but a context keeps 64 rows of floats for each row of a matrix, and pages are taken whole.
constexpr size_t heap_times = 64, heap_free = 1 << 20;
constexpr int processor_seconds = 10;  // for one input; a busy machine does not count
constexpr unsigned seconds = 300;      // for one input that waits for something

struct Options {
  uint64_t runs = 1000, seed = 1, first = 0;
  double seconds = 1e9;
  std::string cases = ".";
};

std::string input;          // the present one
char case_path[4096] = "";  // where it goes if the library fails on it
bool counting = false;
size_t live = 0, heap_limit = 0, mapped = 0, mapped_limit = 0;
size_t most_live = 0, most_mapped = 0;  // over all inputs

void keep() {
  if (case_path[0] == '\0') return;
  if (std::FILE* file = std::fopen(case_path, "wb")) {
    std::fwrite(input.data(), 1, input.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "the input is in %s\n", case_path);
  }
  case_path[0] = '\0';
}

void aborted(int) { keep(); }

void too_slow(int) { give_up("one input takes too long"); }

void watch(bool on) {
  itimerval limit{};
  limit.it_value.tv_sec = on ? processor_seconds : 0;
  setitimer(ITIMER_PROF, &limit, nullptr);
  alarm(on ? seconds : 0);
}

void note(size_t bytes) {
  live += bytes;
  if (!counting) return;
  most_live = std::max(most_live, live);
  if (live > heap_limit) {
    counting = false;
    give_up("more heap memory than the file's size allows");
  }
}

mobillama_status give(int descriptor, const char* path) {
  if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, input.data(), input.size(), 0) != ssize_t(input.size())) {
    give_up("the input cannot be written");
  }
  heap_limit = live + heap_times * input.size() + heap_free;
  mapped_limit = mapped_bound(input.size());
  mapped = 0;
  watch(true);
  counting = true;
  const mobillama_status status = enter(path);
  counting = false;
  watch(false);
  return status;
}

std::string make_input(const std::vector<Draft>& drafts, uint64_t seed, uint64_t index) {
  Random random{seed * 0x9e3779b97f4a7c15u ^ index * 0xd1b54a32d192ed03u};
  random.next();
  Draft draft = drafts[random.below(drafts.size())];
  const uint64_t kind = random.below(8);  // structure alone, bytes alone, or both
  if (kind < 6) mutate(draft, random);
  std::string bytes = draft.write();
  if (kind > 4) mutate(bytes, random);
  return bytes;
}

int fuzz(const Options& options, int descriptor, const char* path) {
  const std::vector<Draft> drafts = seeds();
  for (const Draft& draft : drafts) {
    input = draft.write();
    if (give(descriptor, path) != MOBILLAMA_OK) give_up("a seed is refused");
  }
  uint64_t by_status[MOBILLAMA_CANCELLED + 1] = {}, done = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (uint64_t i = options.first; done < options.runs && passed() < options.seconds; ++i, ++done) {
    std::snprintf(case_path, sizeof case_path, "%s/case-%llu-%llu.bin", options.cases.c_str(),
                  (unsigned long long)options.seed, (unsigned long long)i);
    input = make_input(drafts, options.seed, i);
    ++by_status[give(descriptor, path)];
  }
  std::printf(
      "seed %llu, inputs %llu in %.1f s: %llu accepted, %llu damaged, %llu unsupported; most memory %zu KB heap, %zu "
      "KB mapped\n",
      (unsigned long long)options.seed, (unsigned long long)done, passed(), (unsigned long long)by_status[MOBILLAMA_OK],
      (unsigned long long)by_status[MOBILLAMA_FORMAT], (unsigned long long)by_status[MOBILLAMA_UNSUPPORTED],
      most_live >> 10, most_mapped >> 10);
  return 0;
}

int replay(int count, char** files, int descriptor, const char* path) {
  for (int i = 0; i < count; ++i) {
    std::ifstream file(files[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s cannot be opened\n", files[i]);
      return 2;
    }
    input.assign(std::istreambuf_iterator<char>(file), {});
    std::printf("%s: status %d\n", files[i], int(give(descriptor, path)));
  }
  return 0;
}

int write_seeds(const std::string& folder) {
  int index = 0;
  for (const Draft& draft : seeds()) {
    std::ofstream file(folder + "/seed-" + std::to_string(index++) + ".gguf", std::ios::binary);
    file << draft.write();
    if (!file.flush()) return 2;
  }
  return 0;
}

}  // namespace

void give_up(const char* reason) {
  std::fprintf(stderr, "fuzz: %s\n", reason);
  std::abort();
}

void count_mapped(size_t bytes) {
  mapped += bytes;
  if (!counting) return;
  most_mapped = std::max(most_mapped, mapped);
  if (mapped > mapped_limit) give_up("more mapped memory than the file's size allows");
}

// Every allocation of the library's own goes through these.
void* operator new(size_t bytes) {
  if (counting && bytes > heap_limit) note(bytes);
  void* at = std::malloc(bytes > 0 ? bytes : 1);
  if (at == nullptr) throw std::bad_alloc();
  note(malloc_usable_size(at));
  return at;
}
void operator delete(void* at) noexcept {
  if (at != nullptr) live -= malloc_usable_size(at);
  std::free(at);
}
void operator delete(void* at, size_t) noexcept { operator delete(at); }

int main(int argc, char** argv) {
  const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  signal(SIGABRT, aborted);
  signal(SIGALRM, too_slow);
  signal(SIGPROF, too_slow);
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", argv[i]);
      return 2;
    }
    if (name == "--replay") return replay(argc - i - 1, argv + i + 1, descriptor, path.c_str());
    if (name == "--write-seeds") return write_seeds(argv[i + 1]);
    if (name == "--runs")
      options.runs = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--seed")
      options.seed = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--first")
      options.first = std::strtoull(argv[i + 1], nullptr, 10);
    else if (name == "--seconds")
      options.seconds = std::strtod(argv[i + 1], nullptr);
    else if (name == "--cases")
      options.cases = argv[i + 1];
    else {
      std::fprintf(stderr, "there is no option %s\n", argv[i]);
      return 2;
    }
  }
  return fuzz(options, descriptor, path.c_str());
}
