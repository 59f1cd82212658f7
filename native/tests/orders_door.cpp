// Random orders of open, use, look, cancel, stop, close, free and fork from several threads, under sanitizers: whoever
// frees waits for calls that are inside, weights live as long as one of their contexts, and no answer is another one.
//
//   orders_door FOLDER [--orders N] [--seed N]     FOLDER: where the models go
//
// A call must not begin after freeing has. So a thread frees where it knows of every call that it began before: the
// computing one's because a second call is refused as busy, the others' because they are counted here.
#include <sys/wait.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "callers.h"
#include "expect.h"
#include "seeds.h"

namespace {

constexpr int kTokens = 80, kSequences = 2;

void pause(Random& random) {
  if (random.one_in(2)) return;
  usleep(static_cast<useconds_t>(random.below(300)));
}

// Something of which a thread may call functions until another one frees it.
struct Shared {
  std::atomic<int> looking{0};
  std::atomic<bool> freeing{false};

  // body(), unless it is being freed.
  template <class Body>
  void look(Body&& body) {
    looking++;
    if (!freeing) body();
    looking--;
  }
  void let_go() {
    freeing = true;
    while (looking > 0) std::this_thread::yield();
  }
};

struct File {
  std::string path;
  int vocab = 0;
  std::vector<int32_t> ids, where, targets;
  std::map<int, std::vector<double>> expected;  // log-probabilities, by the type of keys and values
};

struct Computing : Shared {
  mobillama_context* context = nullptr;
  const File* file = nullptr;
  const std::vector<double>* expected = nullptr;
  Random random{};
  std::atomic<bool> cancelled{false}, last{false}, done{false};
};

std::atomic<long> freed_inside{0}, freed_idle{0}, computed{0}, ended{0}, children{0};

mobillama_context* new_context(mobillama_model* model, int threads, int kv_type) {
  mobillama_context_options options{};
  options.threads = threads, options.max_tokens = kTokens, options.max_sequences = kSequences;
  options.kv_type = kv_type;
  mobillama_context* context = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_context_new(model, &options, &context));
  return context;
}

mobillama_status log_probs(mobillama_context* context, const File& file, std::vector<double>& out) {
  out.resize(file.where.size());
  return mobillama_log_probs(context, 0, file.ids.data(), kTokens, file.where.data(), file.targets.data(),
                             static_cast<int32_t>(file.where.size()), out.data());
}

// Until no other thread's question whether it is busy is in the way.
template <class Compute>
mobillama_status alone(Compute&& compute) {
  for (;;)
    if (const mobillama_status status = compute(); status != MOBILLAMA_BUSY) return status;
}

void use(Computing& at) {
  Random& random = at.random;
  mobillama_context* context = at.context;
  const int32_t sequence = 1, id = at.file->ids[0];
  const auto expect_ended = [&](mobillama_status status, const char* call) {
    if (status == MOBILLAMA_OK) return;
    expect_status(MOBILLAMA_CANCELLED, status, call);
    EXPECT(at.cancelled);
  };
  for (uint64_t calls = random.below(4); calls > 0; calls--) {
    pause(random);
    EXPECT_STATUS(MOBILLAMA_OK, alone([&] { return mobillama_rewind(context, 1, 0); }));
    const auto n = static_cast<int32_t>(1 + random.below(20));
    switch (random.below(3)) {
      case 0:
        expect_ended(alone([&] { return mobillama_prefill(context, 1, at.file->ids.data(), n); }), "prefill");
        break;
      case 1:
        expect_ended(alone([&] { return mobillama_verify(context, 1, at.file->ids.data(), n); }), "verify");
        break;
      default:
        expect_ended(alone([&] { return mobillama_decode(context, &sequence, &id, 1); }), "decode");
    }
    EXPECT_STATUS(MOBILLAMA_OK, alone([&] { return mobillama_fork(context, 1, 0, 0); }));
  }
  std::vector<double> out;
  at.last = true;
  const mobillama_status status = alone([&] { return log_probs(context, *at.file, out); });
  at.done = true;  // the context may be gone
  expect_ended(status, "log_probs");
  if (status == MOBILLAMA_OK) EXPECT(out == *at.expected);
  (status == MOBILLAMA_OK ? computed : ended)++;
}

void look(Computing& at, Random& random) {
  at.look([&] {
    switch (random.below(5)) {
      case 0:
        at.cancelled = true;
        mobillama_cancel(at.context);
        break;
      case 1:
        mobillama_logits(at.context, 0);
        break;
      default: {
        const int length = mobillama_length(at.context, 0);
        EXPECT(length == 0 || length == kTokens);
      }
    }
  });
}

void free_context(Computing& at, Random random) {
  while (!at.last) usleep(20);
  const bool idle = random.one_in(4);
  while (idle && !at.done) usleep(20);
  pause(random);
  if (random.one_in(3)) {
    at.cancelled = true;
    mobillama_stop(at.context);
  }
  at.let_go();
  // A sequence that there is not: refused as such, or because the last call is inside.
  while (!at.done && mobillama_rewind(at.context, -1, 0) != MOBILLAMA_BUSY) std::this_thread::yield();
  (at.done ? freed_idle : freed_inside)++;
  mobillama_context_free(at.context);
}

void expect_of_parent(mobillama_status status) {
  EXPECT(status == MOBILLAMA_INVALID && std::strstr(mobillama_last_error(), "fork") != nullptr);
}

// In a child every call is an error, and freeing waits for nobody. (What a sanitizer does at a process's end is for
// processes with all their threads.)
[[noreturn]] void live_as_child(mobillama_model* model, const Computing* at) {
  limit_time(20);
  if (model != nullptr) {
    mobillama_info info;
    mobillama_context* context = nullptr;
    expect_of_parent(mobillama_describe(model, &info));
    expect_of_parent(mobillama_context_new(model, nullptr, &context));
    mobillama_close(model);
  }
  if (at != nullptr) {
    const int32_t sequence = 0, id = 0;
    std::vector<double> out;
    expect_of_parent(mobillama_prefill(at->context, 0, &id, 1));
    expect_of_parent(mobillama_decode(at->context, &sequence, &id, 1));
    expect_of_parent(mobillama_verify(at->context, 0, &id, 1));
    expect_of_parent(log_probs(at->context, *at->file, out));
    expect_of_parent(mobillama_fork(at->context, 0, 1, 0));
    expect_of_parent(mobillama_rewind(at->context, 0, 0));
    EXPECT(mobillama_length(at->context, 0) == -1);
    EXPECT(mobillama_logits(at->context, 0) == nullptr);
    mobillama_cancel(at->context);
    mobillama_stop(at->context);
    mobillama_context_free(at->context);
  }
  _exit(0);
}

void run_order(std::vector<File>& files, Random random) {
  File& file = files[random.below(files.size())];
  mobillama_open_options options{};
  options.threads = 1;
  mobillama_model* model = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_open(file.path.c_str(), &options, &model));

  const int kv_type = static_cast<int>(random.below(3)), count = 1 + static_cast<int>(random.below(2));
  std::vector<double>& expected = file.expected[kv_type];
  if (expected.empty()) {
    mobillama_context* context = new_context(model, 1, kv_type);
    EXPECT_STATUS(MOBILLAMA_OK, log_probs(context, file, expected));
    mobillama_context_free(context);
  }
  std::vector<std::unique_ptr<Computing>> all;
  for (int i = 0; i < count; i++) {
    all.push_back(std::make_unique<Computing>());
    all.back()->context = new_context(model, 1 + static_cast<int>(random.below(2)), kv_type);
    all.back()->file = &file, all.back()->expected = &expected;
    all.back()->random = Random{random.next()};
  }
  Shared opened;
  const uint64_t seed = random.next();
  at_once(2 * count + 2, [&](int i) {
    Random own{seed + static_cast<uint64_t>(i)};
    if (i < count) return use(*all[static_cast<size_t>(i)]);
    if (i < 2 * count) return free_context(*all[static_cast<size_t>(i - count)], own);
    if (i == 2 * count) {
      pause(own);
      opened.let_go();
      return mobillama_close(model);
    }
    for (uint64_t looks = own.below(20); looks > 0; looks--) {
      Computing& at = *all[own.below(all.size())];
      look(at, own);
      opened.look([&] {
        mobillama_info info;
        EXPECT_STATUS(MOBILLAMA_OK, mobillama_describe(model, &info));
      });
      if (!own.one_in(100)) continue;
      const auto fork_here = [&](mobillama_model* in, const Computing* context) {
        const pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) live_as_child(in, context);
        int status = 0;
        EXPECT(waitpid(child, &status, 0) == child && status == 0);
        children++;
      };
      own.one_in(2) ? opened.look([&] { fork_here(model, nullptr); }) : at.look([&] { fork_here(nullptr, &at); });
    }
  });
}

// The count of callers alone: it goes, with what they were inside, as soon as all have left that were in.
void last_ones_leave(Random random, long orders) {
  struct Object {
    mobillama::Callers callers;
    std::atomic<int> value{0};
  };
  for (long order = 0; order < orders; order++) {
    auto object = std::make_unique<Object>();
    std::atomic<int> inside{0};
    const int count = 1 + static_cast<int>(random.below(3));
    const uint64_t seed = random.next();
    at_once(count + 1, [&](int i) {
      Random own{seed + static_cast<uint64_t>(i)};
      if (i < count) {
        const mobillama::Call call(object->callers);
        inside++;
        pause(own);
        object->value++;
      } else {
        while (inside < count) std::this_thread::yield();
        EXPECT(object->callers.close());
        EXPECT(object->value == count);
        object.reset();
      }
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  EXPECT(argc > 1);
  long orders = 100;
  uint64_t seed = 1;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::string_view(argv[i]) == "--orders") orders = std::atol(argv[i + 1]);
    if (std::string_view(argv[i]) == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  Random random{seed};
  std::vector<File> files;
  for (const Draft& draft : seeds()) {
    File file{std::string(argv[1]) + "/seed-" + std::to_string(files.size()) + ".gguf", 0, {}, {}, {}, {}};
    const std::string bytes = draft.write();
    std::FILE* out = std::fopen(file.path.c_str(), "wb");
    EXPECT(out != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size() && std::fclose(out) == 0);
    mobillama_model* model = nullptr;
    mobillama_info info;
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_open(file.path.c_str(), nullptr, &model));
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_describe(model, &info));
    mobillama_close(model);
    const auto any_id = [&] { return static_cast<int32_t>(random.below(static_cast<uint64_t>(info.vocab_size))); };
    for (int i = 0; i < kTokens; i++) file.ids.push_back(any_id());
    for (int i = 0; i < kTokens; i += 7) file.where.push_back(i), file.targets.push_back(any_id());
    files.push_back(std::move(file));
  }
  limit_time(60);
  last_ones_leave(Random{seed}, std::min(orders, 2000L));
  for (long order = 0; order < orders; order++) {
    limit_time(60);
    run_order(files, Random{seed + 1 + static_cast<uint64_t>(order)});
  }
  std::printf("orders: %ld\nfreed inside: %ld\nfreed idle: %ld\ncomputed: %ld\nended: %ld\nchildren: %ld\n", orders,
              freed_inside.load(), freed_idle.load(), computed.load(), ended.load(), children.load());
}
