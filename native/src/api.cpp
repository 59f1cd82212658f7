// The C door: arguments checked, exceptions turned into statuses and words.
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "callers.h"
#include "context.h"
#include "cpu.h"
#include "failure.h"
#include "measure.h"
#include "sampler.h"
#include "tensor_type.h"
#include "weights.h"

using namespace mobillama;

struct mobillama_model {
  std::shared_ptr<const Weights> weights;
  mutable Callers callers;
};
struct mobillama_context {
  std::shared_ptr<const Weights> weights;  // that live until the last of their contexts is freed
  Context context;
  mutable Callers callers;
};

namespace {

thread_local std::string last_error;

mobillama_status remember(mobillama_status status, const char* text) noexcept {
  try {
    last_error = text;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

template <class Body>
mobillama_status guarded(Body&& body) noexcept {
  try {
    body();
    return MOBILLAMA_OK;
  } catch (const Failure& failure) {
    return remember(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return remember(MOBILLAMA_MEMORY,
                    "the system gives no more memory; close programs, or use a smaller model or context");
  } catch (const std::exception& error) {
    return remember(MOBILLAMA_MEMORY, error.what());
  }
}

// Of any thread, whatever the others do but free it.
template <class Body>
mobillama_status visit(const mobillama_context* context, Body&& body) noexcept {
  if (context == nullptr)
    return remember(MOBILLAMA_INVALID, "the context is NULL; make one with mobillama_context_new");
  return guarded([&] {
    const Call call(context->callers);
    body();
  });
}

// The one thread that computes in a context.
class Alone {
 public:
  explicit Alone(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true))
      fail(MOBILLAMA_BUSY, "another thread is inside this context; give each thread a context of its own");
  }
  ~Alone() { busy_.store(false); }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  std::atomic<bool>& busy_;
};

template <class Body>
mobillama_status inside(mobillama_context* context, Body&& body) noexcept {
  return visit(context, [&] {
    const Alone alone(context->context.busy);
    body(context->context);
  });
}

void need(const void* pointer, const char* name) {
  if (pointer == nullptr) fail(MOBILLAMA_INVALID, "%s is NULL", name);
}

// Failure (INVALID) for a type without a rounding; else the bytes of a row.
int64_t checked_row(int32_t type, int64_t cols) {
  const int64_t bytes = row_bytes(type, cols);
  if (bytes < 0)
    fail(MOBILLAMA_INVALID,
         "rows of %lld weights cannot be of tensor type %d: unknown type, or its block does not divide the row",
         static_cast<long long>(cols), type);
  return bytes;
}

template <class Row>
void for_rows(int64_t rows, int32_t threads, Row&& row) {
  constexpr int64_t kAtOnce = 16;
  if (rows < 0 || rows > (int64_t{1} << 34))
    fail(MOBILLAMA_INVALID, "%lld rows; expected 0 or more", static_cast<long long>(rows));
  if (threads < 0 || threads > 256) fail(MOBILLAMA_INVALID, "threads=%d; expected 0 (one per core) to 256", threads);
  Pool pool(threads == 0 ? cores() : threads);
  std::atomic<bool> failed{false};
  std::atomic_flag first = ATOMIC_FLAG_INIT;
  Failure failure(MOBILLAMA_OK, "");
  pool.run([&](int worker) {
    pool.phase(
        worker, static_cast<int>((rows + kAtOnce - 1) / kAtOnce),
        [&](int chunk) {
          for (int64_t r = chunk * kAtOnce; r < std::min(rows, (chunk + 1) * kAtOnce) && !failed; r++) try {
              row(r);
            } catch (const Failure& found) {
              if (!first.test_and_set()) failure = found;
              failed = true;
            }
        },
        [] {});
  });
  if (failed) throw failure;
}

}  // namespace

extern "C" {

int32_t mobillama_version(void) { return MOBILLAMA_VERSION; }

const char* mobillama_last_error(void) { return last_error.c_str(); }

mobillama_status mobillama_open(const char* path, const mobillama_open_options* options, mobillama_model** out) {
  return mobillama_open_ignoring(path, options, nullptr, 0, out);
}

mobillama_status mobillama_open_ignoring(const char* path, const mobillama_open_options* options,
                                         const char* const* keys, int32_t num_keys, mobillama_model** out) {
  return guarded([&] {
    need(path, "path");
    need(out, "out");
    *out = nullptr;
    if (num_keys < 0) fail(MOBILLAMA_INVALID, "%d keys to ignore; expected 0 or more", num_keys);
    if (num_keys > 0) need(keys, "keys");
    std::vector<std::string> ignored;
    for (int32_t i = 0; i < num_keys; i++) {
      need(keys[i], "a key to ignore");
      ignored.emplace_back(keys[i]);
    }
    const mobillama_open_options chosen = options == nullptr ? mobillama_open_options{} : *options;
    if (chosen.threads < 0 || chosen.threads > 256)
      fail(MOBILLAMA_INVALID, "threads=%d; expected 0 (one per core) to 256", chosen.threads);
    if (chosen.share_ffn < -1 || chosen.share_ffn > 1)
      fail(MOBILLAMA_INVALID, "share_ffn=%d; expected 1 (once in memory) or -1 (a copy per layer)", chosen.share_ffn);
    *out = new mobillama_model{std::make_shared<const Weights>(load_weights(path, chosen, ignored)), {}};
  });
}

void mobillama_close(mobillama_model* model) {
  if (model != nullptr && model->callers.close()) delete model;
}

mobillama_status mobillama_describe(const mobillama_model* model, mobillama_info* out) {
  return guarded([&] {
    need(model, "model");
    need(out, "out");
    const Call call(model->callers);
    *out = model->weights->info;
  });
}

mobillama_status mobillama_context_new(mobillama_model* model, const mobillama_context_options* options,
                                       mobillama_context** out) {
  return guarded([&] {
    need(model, "model");
    need(out, "out");
    *out = nullptr;
    const Call call(model->callers);
    const mobillama_context_options chosen = options == nullptr ? mobillama_context_options{} : *options;
    *out = new mobillama_context{model->weights, {*model->weights, chosen}, {}};
  });
}

void mobillama_context_free(mobillama_context* context) {
  if (context != nullptr && context->callers.close()) delete context;
}

mobillama_status mobillama_prefill(mobillama_context* context, int32_t sequence, const int32_t* ids, int32_t n) {
  return inside(context, [&](Context& in) { in.prefill(sequence, ids, n); });
}

mobillama_status mobillama_decode(mobillama_context* context, const int32_t* sequences, const int32_t* ids, int32_t n) {
  return inside(context, [&](Context& in) {
    need(sequences, "sequences");
    in.decode(sequences, ids, n);
  });
}

mobillama_status mobillama_verify(mobillama_context* context, int32_t sequence, const int32_t* ids, int32_t n) {
  return inside(context, [&](Context& in) { in.verify(sequence, ids, n); });
}

const float* mobillama_logits(const mobillama_context* context, int32_t row) {
  const float* found = nullptr;
  visit(context, [&] { found = context->context.logits(row); });
  return found;
}

mobillama_status mobillama_log_probs(mobillama_context* context, int32_t sequence, const int32_t* ids, int32_t n,
                                     const int32_t* where, const int32_t* targets, int32_t m, double* out) {
  return inside(context, [&](Context& in) { in.log_probs(sequence, ids, n, where, targets, m, out); });
}

int32_t mobillama_length(const mobillama_context* context, int32_t sequence) {
  int32_t found = -1;
  visit(context, [&] { found = context->context.length(sequence); });
  return found;
}

mobillama_status mobillama_fork(mobillama_context* context, int32_t from, int32_t to, int32_t n) {
  return inside(context, [&](Context& in) { in.fork(from, to, n); });
}

mobillama_status mobillama_rewind(mobillama_context* context, int32_t sequence, int32_t n) {
  return inside(context, [&](Context& in) { in.rewind(sequence, n); });
}

void mobillama_cancel(mobillama_context* context) {
  visit(context, [&] { context->context.cancel(); });
}

void mobillama_stop(mobillama_context* context) {
  visit(context, [&] { context->context.stop(); });
}

mobillama_status mobillama_sample(const float* logits, int32_t n, const mobillama_sampling* sampling, int64_t position,
                                  const int32_t* seen, int32_t num_seen, int32_t* out) {
  return guarded([&] {
    need(logits, "logits");
    need(sampling, "sampling");
    need(out, "out");
    *out = choose(logits, n, *sampling, position, seen, num_seen);
  });
}

int64_t mobillama_row_bytes(int32_t type, int64_t cols) { return row_bytes(type, cols); }

mobillama_status mobillama_quantize(int32_t type, const float* rows, int64_t num_rows, int64_t cols,
                                    const float* importance, int32_t threads, void* out) {
  return guarded([&] {
    need(rows, "rows");
    need(out, "out");
    const int64_t bytes = checked_row(type, cols);
    for_rows(num_rows, threads, [&](int64_t r) {
      quantize_row(static_cast<TensorType>(type), rows + r * cols, cols, importance,
                   static_cast<uint8_t*>(out) + r * bytes);
    });
  });
}

mobillama_status mobillama_dequantize(int32_t type, const void* rows, int64_t num_rows, int64_t cols, float* out) {
  return guarded([&] {
    need(rows, "rows");
    need(out, "out");
    const int64_t bytes = checked_row(type, cols);
    for_rows(num_rows, 1, [&](int64_t r) {
      dequantize_row(static_cast<TensorType>(type), static_cast<const uint8_t*>(rows) + r * bytes, cols,
                     out + r * cols);
    });
  });
}

double mobillama_bandwidth(int64_t bytes, int32_t threads, double seconds) {
  double speed = 0;
  guarded([&] {
    if (bytes < 4096 || threads < 0 || threads > 256)
      fail(MOBILLAMA_INVALID, "bytes=%lld threads=%d; expected 4096 or more, and 0 to 256",
           static_cast<long long>(bytes), threads);
    speed = bandwidth(static_cast<size_t>(bytes), threads == 0 ? cores() : threads, seconds);
  });
  return speed;
}

double mobillama_round_trip(void) {
  double seconds = 0;
  guarded([&] { seconds = cores() > 1 ? round_trip() : 0.0; });
  return seconds;
}

}  // extern "C"
