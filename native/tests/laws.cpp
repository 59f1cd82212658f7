// The C door's laws at the edges of its arguments, for each file: every way to the same tokens gives the same bits, and
// what is refused has a status, words and no effect. Build it with -fsanitize=address,undefined.
//
//   laws FILE...
#include <algorithm>
#include <climits>
#include <cmath>
#include <string>

#include "expect.h"

namespace {

constexpr int kTokens = 70;  // of the full sequence: more than one pass of 64, no multiple of 16
constexpr int kSequences = 65;

using Rows = std::vector<std::vector<float>>;

struct Door {  // one context with all that its calls need
  mobillama_context* context = nullptr;
  int vocab = 0;
  std::vector<int32_t> ids;  // (kTokens) of the reference text
  Rows rows;                 // (kTokens, vocab) logits after each of them, computed one by one by one thread

  std::vector<float> logits(int row) const {
    const float* found = mobillama_logits(context, row);
    EXPECT(found != nullptr);
    for (int i = 0; i < vocab; i++) EXPECT(std::isfinite(found[i]));
    return {found, found + vocab};
  }
  void has_no_row(int row) const { EXPECT(mobillama_logits(context, row) == nullptr); }
  void prefill(int sequence, int from, int n) const {
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_prefill(context, sequence, ids.data() + from, n));
  }
  void rewind(int sequence, int n) const {
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_rewind(context, sequence, n));
    EXPECT(mobillama_length(context, sequence) == n);
  }
  // The next id of the reference text gives the reference's logits: the n tokens before it are whole.
  void goes_on(int sequence) const {
    const int n = mobillama_length(context, sequence);
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_decode(context, &sequence, &ids[static_cast<size_t>(n)], 1));
    EXPECT(logits(0) == rows[static_cast<size_t>(n)]);
    has_no_row(1);
  }
};

mobillama_context* new_context(mobillama_model* model, int threads, int max_tokens, int sequences, int kv_type) {
  mobillama_context_options options{};
  options.threads = threads, options.max_tokens = max_tokens, options.max_sequences = sequences;
  options.kv_type = kv_type;
  mobillama_context* context = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_context_new(model, &options, &context));
  return context;
}

void prompts_of_any_length(const Door& door) {
  for (const int n : {1, 2, 3, 15, 16, 17, 63, 64, 65, kTokens}) {
    door.rewind(0, 0);
    door.prefill(0, 0, n);
    EXPECT(door.logits(0) == door.rows[static_cast<size_t>(n) - 1]);
    door.has_no_row(1), door.has_no_row(-1);
    if (n < kTokens) door.goes_on(0);
  }
  door.rewind(0, 0);
  door.prefill(0, 0, 33);
  door.prefill(0, 33, kTokens - 33);
  EXPECT(door.logits(0) == door.rows.back());
}

void guesses(const Door& door) {
  for (const int before : {0, 1, 6})
    for (const int n : {1, 2, 5, 63, 64}) {
      door.rewind(0, 0);
      if (before > 0) door.prefill(0, 0, before);
      EXPECT_STATUS(MOBILLAMA_OK, mobillama_verify(door.context, 0, door.ids.data() + before, n));
      for (int i = 0; i < n; i++) EXPECT(door.logits(i) == door.rows[static_cast<size_t>(before + i)]);
      door.has_no_row(n);
      door.rewind(0, before + n / 2);  // a guess that was half right
      door.goes_on(0);
    }
  door.rewind(0, 0);
  EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_verify(door.context, 0, door.ids.data(), 65));
  EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_verify(door.context, 0, door.ids.data(), 0));
  EXPECT(mobillama_length(door.context, 0) == 0);
}

void forks_and_rewinds(const Door& door) {
  door.rewind(0, 0);
  door.prefill(0, 0, kTokens);
  for (const int n : {kTokens, 1, 15, 16, 17, 64, kTokens - 1, 0}) {
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_fork(door.context, 0, kSequences - 1, n));
    EXPECT(mobillama_length(door.context, kSequences - 1) == n && mobillama_length(door.context, 0) == kTokens);
    if (n < kTokens) door.goes_on(kSequences - 1);
  }
  for (const int n : {kTokens, kTokens - 1, 17, 16, 15, 1, 0}) {
    door.rewind(0, n);
    if (n == kTokens) continue;
    door.goes_on(0);
    door.rewind(0, n);
  }
  for (const int n : {-1, 1, INT_MIN, INT_MAX}) {  // it has none now
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_fork(door.context, 0, 1, n));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_rewind(door.context, 0, n));
  }
  for (const int none : {-1, kSequences, INT_MIN, INT_MAX}) {
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_fork(door.context, none, 0, 0));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_fork(door.context, 0, none, 0));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_rewind(door.context, none, 0));
    EXPECT(mobillama_length(door.context, none) == -1);
  }
}

void several_sequences(const Door& door) {
  std::vector<int32_t> sequences(kSequences), ids(kSequences);
  for (int s = 0; s < kSequences; s++) {
    door.rewind(s, 0);
    if (s % 7 > 0) door.prefill(s, 0, s % 7);
    sequences[static_cast<size_t>(s)] = s;
  }
  for (const int n : {1, 2, 3, 5, 64}) {
    std::reverse(sequences.begin(), sequences.end());
    std::vector<int> lengths;
    for (int i = 0; i < n; i++) {
      lengths.push_back(mobillama_length(door.context, sequences[static_cast<size_t>(i)]));
      ids[static_cast<size_t>(i)] = door.ids[static_cast<size_t>(lengths.back())];
    }
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_decode(door.context, sequences.data(), ids.data(), n));
    for (int i = 0; i < n; i++) {
      EXPECT(door.logits(i) == door.rows[static_cast<size_t>(lengths[static_cast<size_t>(i)])]);
      EXPECT(mobillama_length(door.context, sequences[static_cast<size_t>(i)]) == lengths[static_cast<size_t>(i)] + 1);
    }
    door.has_no_row(n);
  }
  const auto refused = [&](mobillama_status status, const int32_t* which, int n) {
    std::vector<int> before, after;
    for (int s = 0; s < kSequences; s++) before.push_back(mobillama_length(door.context, s));
    EXPECT_STATUS(status, mobillama_decode(door.context, which, ids.data(), n));
    for (int s = 0; s < kSequences; s++) after.push_back(mobillama_length(door.context, s));
    EXPECT(before == after);
  };
  const int32_t twice[] = {3, 4, 3}, unknown[] = {0, kSequences}, negative[] = {0, -1};
  refused(MOBILLAMA_INVALID, twice, 3);
  refused(MOBILLAMA_INVALID, unknown, 2);
  refused(MOBILLAMA_INVALID, negative, 2);
  refused(MOBILLAMA_INVALID, nullptr, 1);
  refused(MOBILLAMA_INVALID, sequences.data(), 0);
  refused(MOBILLAMA_INVALID, sequences.data(), -1);
  refused(MOBILLAMA_INVALID, sequences.data(), 65);
}

double log_prob(const std::vector<float>& logits, int32_t target) {
  double largest = logits[0], sum = 0;
  for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
  for (const float logit : logits) sum += std::exp(logit - largest);
  return logits[static_cast<size_t>(target)] - largest - std::log(sum);
}

void log_probs(const Door& door, Random& random) {
  const auto call = [&](int from, int n, const std::vector<int32_t>& where, const std::vector<int32_t>& targets,
                        double* out) {
    return mobillama_log_probs(door.context, 0, door.ids.data() + from, n, where.data(), targets.data(),
                               static_cast<int32_t>(where.size()), out);
  };
  std::vector<double> out(400);
  for (const int from : {0, 5})
    for (int round = 0; round < 8; round++) {
      // All places once, every place many times, only the last one, and some.
      const int n = kTokens - from;
      std::vector<int32_t> where, targets;
      for (int place = 0; place < n; place++) {
        const uint64_t times = round == 0 ? 1 : round == 1 ? 5 : round == 2 ? place == n - 1 : random.below(3) / 2;
        where.insert(where.end(), times, place);
      }
      if (where.empty()) where.push_back(0);
      for (size_t j = 0; j < where.size(); j++)
        targets.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(door.vocab))));
      door.rewind(0, 0);
      if (from > 0) door.prefill(0, 0, from);
      EXPECT_STATUS(MOBILLAMA_OK, call(from, n, where, targets, out.data()));
      door.has_no_row(0);
      for (size_t j = 0; j < where.size(); j++) {
        const double expected = log_prob(door.rows[static_cast<size_t>(from + where[j])], targets[j]);
        EXPECT(std::fabs(out[j] - expected) < 1e-5);  // the difference from the largest logit is taken in float there
      }
      EXPECT(mobillama_length(door.context, 0) == kTokens);
      door.rewind(0, kTokens - 1);
      door.goes_on(0);
    }
  door.rewind(0, 2);
  for (const auto& [where, target] : std::vector<std::pair<std::vector<int32_t>, int32_t>>{
           {{}, 0}, {{-1}, 0}, {{5}, 0}, {{2, 1}, 0}, {{INT_MAX}, 0}, {{0}, -1}, {{0}, door.vocab}, {{0, 4, 3}, 0}})
    EXPECT_STATUS(MOBILLAMA_INVALID, call(2, 5, where, std::vector<int32_t>(where.size(), target), out.data()));
  EXPECT_STATUS(MOBILLAMA_INVALID, call(2, 5, {0}, {0}, nullptr));
  EXPECT(mobillama_length(door.context, 0) == 2);
  door.goes_on(0);
}

// Ids outside, and a sequence that is full: nothing is computed.
void refusals(const Door& door) {
  const int32_t sequence = 0, target = 0;
  double out;
  door.rewind(0, 0);
  door.prefill(0, 0, 4);
  for (const int32_t outside : {-1, door.vocab, INT_MIN, INT_MAX}) {
    const int32_t ids[] = {0, outside};
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_prefill(door.context, 0, ids, 2));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_verify(door.context, 0, ids, 2));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_decode(door.context, &sequence, ids + 1, 1));
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_log_probs(door.context, 0, ids, 2, &target, &target, 1, &out));
  }
  for (const int none : {-1, kSequences, INT_MIN, INT_MAX})
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_prefill(door.context, none, door.ids.data(), 1));
  EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_prefill(door.context, 0, nullptr, 1));
  for (const int n : {0, -1, INT_MIN})
    EXPECT_STATUS(MOBILLAMA_INVALID, mobillama_prefill(door.context, 0, door.ids.data(), n));
  EXPECT(mobillama_length(door.context, 0) == 4);
  door.goes_on(0);
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_prefill(door.context, 0, door.ids.data(), kTokens - 4));
  EXPECT(mobillama_length(door.context, 0) == 5);
  door.goes_on(0);
  door.prefill(0, 6, kTokens - 6);
  EXPECT(door.logits(0) == door.rows.back());
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_prefill(door.context, 0, door.ids.data(), 1));
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_verify(door.context, 0, door.ids.data(), 1));
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_decode(door.context, &sequence, door.ids.data(), 1));
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_log_probs(door.context, 0, door.ids.data(), 1, &target, &target, 1, &out));
  EXPECT(mobillama_length(door.context, 0) == kTokens);
  door.rewind(0, kTokens - 1);
  door.goes_on(0);
}

void contexts_of_one_token(mobillama_model* model, const Door& door, int threads, int kv_type) {
  const int32_t sequence = 0, where = 0;
  Door small = door;
  small.context = new_context(model, threads, 1, 1, kv_type);
  small.prefill(0, 0, 1);
  EXPECT(small.logits(0) == door.rows[0]);
  EXPECT_STATUS(MOBILLAMA_FULL, mobillama_decode(small.context, &sequence, door.ids.data(), 1));
  small.rewind(0, 0);
  small.goes_on(0);
  small.rewind(0, 0);
  double out;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_log_probs(small.context, 0, door.ids.data(), 1, &where, &where, 1, &out));
  EXPECT(std::fabs(out - log_prob(door.rows[0], 0)) < 1e-5);
  mobillama_context_free(small.context);
}

void contexts_that_cannot_be(mobillama_model* model, const mobillama_info& info) {
  const auto refused = [model](mobillama_status status, mobillama_context_options options) {
    mobillama_context* context = nullptr;
    EXPECT_STATUS(status, mobillama_context_new(model, &options, &context));
    EXPECT(context == nullptr);
  };
  for (const int32_t threads : {-1, 257, INT_MAX}) refused(MOBILLAMA_INVALID, {threads, 4, 1, 0, 0});
  for (const int32_t tokens : {-1, (1 << 24) + 1, INT_MIN}) refused(MOBILLAMA_INVALID, {1, tokens, 1, 0, 0});
  for (const int32_t sequences : {-1, (1 << 16) + 1, INT_MAX}) refused(MOBILLAMA_INVALID, {1, 4, sequences, 0, 0});
  for (const int32_t type : {-1, 3, INT_MAX}) refused(MOBILLAMA_INVALID, {1, 4, 1, type, 0});
  // 2^24 tokens of 2^16 sequences: for all but the smallest models above the 2^47 bytes that a process can address.
  const int64_t floats = int64_t{2} * info.num_hidden_layers * info.num_key_value_heads * info.head_dim;
  if (floats * 4 >= 1 << 7) refused(MOBILLAMA_MEMORY, {1, 1 << 24, 1 << 16, MOBILLAMA_KV_F32, 0});
}

// Weights times unrounded activations: near the answer of rounded ones, for any number of threads the same.
void unrounded_activations(mobillama_model* model, const Door& door) {
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    const mobillama_context_options options{threads, kTokens, 1, MOBILLAMA_KV_F32, 1};
    Door exact = door;
    EXPECT_STATUS(MOBILLAMA_OK, mobillama_context_new(model, &options, &exact.context));
    exact.prefill(0, 0, 5);
    const std::vector<float> found = exact.logits(0);
    double error = 0, size = 0;
    for (size_t i = 0; i < found.size(); i++) {
      error += std::pow(found[i] - door.rows[4][i], 2);
      size += std::pow(found[i], 2);
    }
    EXPECT(error < 0.04 * size);
    EXPECT(first.empty() || first == found);
    first = found;
    mobillama_context_free(exact.context);
  }
}

void obeys(const char* path) {
  mobillama_model* model = nullptr;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_open(path, nullptr, &model));
  mobillama_info info;
  EXPECT_STATUS(MOBILLAMA_OK, mobillama_describe(model, &info));
  contexts_that_cannot_be(model, info);
  for (const int kv_type : {MOBILLAMA_KV_F16, MOBILLAMA_KV_INT8, MOBILLAMA_KV_F32}) {
    Random random{1};
    Door door;
    door.vocab = info.vocab_size;
    for (int i = 0; i < kTokens; i++)
      door.ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(door.vocab))));
    door.context = new_context(model, 1, kTokens, 1, kv_type);
    for (int i = 0; i < kTokens; i++) {
      const int32_t sequence = 0;
      EXPECT_STATUS(MOBILLAMA_OK, mobillama_decode(door.context, &sequence, &door.ids[static_cast<size_t>(i)], 1));
      door.rows.push_back(door.logits(0));
    }
    mobillama_context_free(door.context);
    for (const int threads : {1, 3}) {
      door.context = new_context(model, threads, kTokens, kSequences, kv_type);
      prompts_of_any_length(door);
      guesses(door);
      forks_and_rewinds(door);
      several_sequences(door);
      log_probs(door, random);
      refusals(door);
      mobillama_context_free(door.context);
      contexts_of_one_token(model, door, threads, kv_type);
    }
    unrounded_activations(model, door);
  }
  mobillama_close(model);
  std::printf("%s: head_dim %d, %d of %d heads, vocabulary %d, %s\n", path, info.head_dim, info.num_key_value_heads,
              info.num_attention_heads, info.vocab_size, info.isa);
}

}  // namespace

int main(int argc, char** argv) {
  EXPECT(argc > 1);
  for (int i = 1; i < argc; i++) {
    limit_time(300);
    obeys(argv[i]);
  }
}
