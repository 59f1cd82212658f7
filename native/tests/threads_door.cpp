// What the C door allows several threads, under a thread sanitizer: contexts of one model side by side, cancelling, the
// refusal of a second thread, opening, rounding and choosing at the same time. Every answer is compared, bit for bit,
// with the one that a thread alone got.
//
//   threads_door FOLDER [--seconds S] [--seed N]     FOLDER: where the models go
#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include "expect.h"
#include "seeds.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Task {
  std::vector<std::string> paths;
  Random random;
  double seconds;
  int rounds = 0;
  Clock::time_point start = Clock::now();
  // At least four rounds, however busy the machine is.
  bool goes_on() { return rounds++ < 4 || std::chrono::duration<double>(Clock::now() - start).count() < seconds; }
};

mobillama_model* open_model(const std::string& path, int threads) {
  mobillama_open_options options{};
  options.threads = threads;
  mobillama_model* model = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_open(path.c_str(), &options, &model));
  return model;
}

mobillama_context* new_context(mobillama_model* model, int threads, int max_tokens, int sequences, int kv_type) {
  mobillama_context_options options{};
  options.threads = threads, options.max_tokens = max_tokens, options.max_sequences = sequences;
  options.kv_type = kv_type;
  mobillama_context* context = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_context_new(model, &options, &context));
  return context;
}

int vocabulary(mobillama_model* model) {
  mobillama_info info;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_describe(model, &info));
  return info.vocab_size;
}

std::vector<int32_t> any_ids(Random& random, size_t count, int vocab) {
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab)));
  return ids;
}

std::vector<float> logits(const mobillama_context* context, int vocab) {
  const float* row = mobillama_logits(context, 0);
  EXPECT(row != nullptr);
  return {row, row + vocab};
}

// Logits after each id: half of them as a prompt, the others one by one.
std::vector<std::vector<float>> answer(mobillama_context* context, const std::vector<int32_t>& ids, int vocab) {
  const int32_t sequence = 0, half = static_cast<int32_t>(ids.size() / 2);
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, 0, 0));
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_prefill(context, 0, ids.data(), half));
  std::vector<std::vector<float>> rows{logits(context, vocab)};
  for (size_t i = static_cast<size_t>(half); i < ids.size(); i++) {
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_decode(context, &sequence, &ids[i], 1));
    rows.push_back(logits(context, vocab));
  }
  return rows;
}

// Contexts of one model, each in a thread of its own, with helpers of their own.
void contexts_side_by_side(Task task) {
  while (task.goes_on()) {
    mobillama_model* model = open_model(task.paths[task.random.below(task.paths.size())], 2);
    const int vocab = vocabulary(model), kv_type = static_cast<int>(task.random.below(3));
    const std::vector<int32_t> ids = any_ids(task.random, 24, vocab);
    mobillama_context* alone = new_context(model, 1, 32, 1, kv_type);
    const auto expected = answer(alone, ids, vocab);
    mobillama_context_free(alone);
    at_once(3, [&](int i) {
      mobillama_context* context = new_context(model, 1 + i, 32, 1, kv_type);
      for (int again = 0; again < 3; again++) EXPECT(answer(context, ids, vocab) == expected);
      mobillama_context_free(context);
    });
    mobillama_close(model);
  }
  std::printf("side by side: %d\n", task.rounds - 1);
}

// Another thread cancels at a random moment: the call ends as CANCELLED or OK, a cancelled one has changed no length,
// and what comes next is as if it had never been.
void cancelled(Task task) {
  int by_status[2] = {};
  for (const int threads : {1, 3}) {
    Task part = task;
    part.seconds = task.seconds / 2, part.start = Clock::now();
    mobillama_model* model = open_model(task.paths[0], 1);
    const int vocab = vocabulary(model), kept = 5;
    const std::vector<int32_t> ids = any_ids(part.random, 200, vocab);
    const int32_t count = static_cast<int32_t>(ids.size()) - kept - 1, sequence = 0;
    mobillama_context* context = new_context(model, threads, 200, 1, MOBILLAMA_KV_F16);
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_prefill(context, 0, ids.data(), kept + 1));
    const std::vector<float> expected = logits(context, vocab);
    mobillama_cancel(context);  // while nothing runs: no effect
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, 0, kept));
    const auto before = Clock::now();
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_prefill(context, 0, ids.data() + kept, count));
    const std::chrono::duration<double, std::micro> whole = Clock::now() - before;
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, 0, kept));
    while (part.goes_on()) {
      const auto wait = static_cast<useconds_t>(part.random.below(static_cast<uint64_t>(whole.count() * 1.5)));
      const uint64_t kind = part.random.below(2);
      const std::vector<int32_t> where{0, count - 1}, targets{0, vocab - 1};
      double out[2];
      std::thread other([&] {
        usleep(wait);
        mobillama_cancel(context);
      });
      const mobillama_status status =
          kind == 0 ? mobillama_prefill(context, 0, ids.data() + kept, count)
                    : mobillama_log_probs(context, 0, ids.data() + kept, count, where.data(), targets.data(), 2, out);
      other.join();
      if (status != MOBILLAMA_OK) expect_status(MOBILLAMA_CANCELLED, status, "a cancelled call");
      by_status[status == MOBILLAMA_OK]++;
      EXPECT(mobillama_length(context, 0) == (status == MOBILLAMA_OK ? kept + count : kept));
      EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, 0, kept));
      EXPECT_STATUS(MOBILLAMA_OK, mobillama_decode(context, &sequence, &ids[static_cast<size_t>(kept)], 1));
      EXPECT(logits(context, vocab) == expected);
      EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, 0, kept));
    }
    mobillama_context_free(context);
    mobillama_close(model);
  }
  std::printf("cancelled: %d\ntoo late: %d\n", by_status[0], by_status[1]);
}

// Threads in one context: one computes, the others are told so; what was accepted was done, once.
void one_at_a_time(Task task) {
  constexpr int threads = 4, tokens = 64;
  mobillama_model* model = open_model(task.paths[0], 1);
  long accepted = 0, refused = 0;
  while (task.goes_on()) {
    mobillama_context* context = new_context(model, 2, tokens, threads, MOBILLAMA_KV_INT8);
    long by_thread[threads][2] = {};
    std::atomic<int> ready{0};
    at_once(threads, [&](int i) {
      ready++;
      while (ready < threads) std::this_thread::yield();
      const int32_t sequence = i, id = 1;
      for (int tries = 0; tries < tokens; tries++) {
        const mobillama_status status = mobillama_decode(context, &sequence, &id, 1);
        if (status != MOBILLAMA_OK) {
          expect_status(MOBILLAMA_BUSY, status, "a second thread's decode");
          EXPECT(std::strstr(mobillama_last_error(), "another thread") != nullptr);
        }
        by_thread[i][status == MOBILLAMA_OK]++;
      }
    });
    for (int i = 0; i < threads; i++) {
      EXPECT(mobillama_length(context, i) == by_thread[i][1]);
      refused += by_thread[i][0], accepted += by_thread[i][1];
    }
    mobillama_context_free(context);
  }
  mobillama_close(model);
  std::printf("accepted: %ld\nrefused: %ld\n", accepted, refused);
}

// Files opened at the same time, one of them missing: each thread has its own words.
void opened_at_once(Task task) {
  while (task.goes_on())
    at_once(4, [&](int i) {
      if (i == 3) {
        mobillama_model* none = nullptr;
        EXPECT_STATUS(MOBILLAMA_IO, mobillama_open("/nowhere/at-all.gguf", nullptr, &none));
        EXPECT(std::strstr(mobillama_last_error(), "at-all") != nullptr);
        return;
      }
      mobillama_model* model = open_model(task.paths[static_cast<size_t>(i) % 2], 1 + i);
      EXPECT(vocabulary(model) > 0);
      mobillama_close(model);
    });
  std::printf("opened: %d\n", task.rounds - 1);
}

// Choosing and rounding, which need no context, from several threads.
void chosen_and_rounded(Task task) {
  constexpr int vocab = 1000, cols = 256, rows = 100, q4_0 = 2;
  std::vector<float> values(cols * rows);
  for (float& value : values) value = static_cast<float>(task.random.below(20001)) * 1e-3f - 10;
  const mobillama_sampling sampling{0.9, 50, 0.9, 1.1, task.random.next(), 0};
  const std::vector<int32_t> seen = any_ids(task.random, 40, vocab);
  const auto choose = [&](int64_t position) {
    int32_t id = -1;
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_sample(values.data(), vocab, &sampling, position, seen.data(), 40, &id));
    return id;
  };
  const auto round = [&](int threads) {
    std::vector<uint8_t> out(static_cast<size_t>(mobillama_row_bytes(q4_0, cols)) * rows);
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_quantize(q4_0, values.data(), rows, cols, nullptr, threads, out.data()));
    return out;
  };
  std::vector<int32_t> ids;
  for (int position = 0; position < 50; position++) ids.push_back(choose(position));
  const std::vector<uint8_t> rounded = round(1);
  std::vector<float> spoilt = values;
  for (int row = 0; row < rows; row++) spoilt[static_cast<size_t>(row * cols)] = 1e38f * 1e38f;
  while (task.goes_on())
    at_once(3, [&](int i) {
      for (int position = 0; position < 50; position++) EXPECT(choose(position) == ids[static_cast<size_t>(position)]);
      EXPECT(round(1 + i) == rounded);
      std::vector<uint8_t> out(rounded.size());
      EXPECT_STATUS(MOBILLAMA_INVALID,
                    mobillama_quantize(q4_0, spoilt.data(), rows, cols, nullptr, 1 + i, out.data()));
    });
  std::printf("rounded: %d\n", task.rounds - 1);
}

std::string write(const Draft& draft, const std::string& path) {
  const std::string bytes = draft.write();
  std::FILE* file = std::fopen(path.c_str(), "wb");
  EXPECT(file != nullptr && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
  EXPECT(std::fclose(file) == 0);
  return path;
}

}  // namespace

int main(int argc, char** argv) {
  EXPECT(argc > 1);
  double seconds = 5;
  uint64_t seed = 1;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (std::string_view(argv[i]) == "--seconds") seconds = std::atof(argv[i + 1]);
    if (std::string_view(argv[i]) == "--seed") seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  limit_time(static_cast<unsigned>(seconds) + 120);
  std::vector<std::string> paths;
  for (const Draft& draft : seeds())
    paths.push_back(write(draft, std::string(argv[1]) + "/seed-" + std::to_string(paths.size()) + ".gguf"));
  uint64_t number = 0;
  for (void (*law)(Task) : {contexts_side_by_side, cancelled, one_at_a_time, opened_at_once, chosen_and_rounded})
    law({paths, Random{seed + 1000 * number++}, seconds / 5});
}
