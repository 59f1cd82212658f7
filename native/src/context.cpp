#include "context.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu.h"
#include "failure.h"
#include "layout.h"

namespace mobillama {
namespace {

// Of weights taken by a worker at a time: some microseconds of work, and small enough that all have their share.
constexpr size_t kChunkBytes = 144 << 10, kChunksEach = 8;

// Bytes between the fetch of keys and values and their use. Those of a long text are in no cache and are needed once.
constexpr int kAheadKv = 16 << 10, kAheadLongKv = 12 << 10;
constexpr size_t kLongKv = 160 << 10;  // of a head's keys and values

size_t padded(int rows) { return (static_cast<size_t>(rows) + kPanelRows - 1) / kPanelRows * kPanelRows; }

bool wants_codes(std::initializer_list<const Panels*> all) {
  return std::any_of(all.begin(), all.end(), [](const Panels* panels) { return !is_float(panels->layout); });
}

// Whether every |x| is below 2^exponent; 128: whether it is finite. What is no number is not. A float's upper bits are
// its exponent: what is missing to the limit is added, and carried into the sign where nothing was missing.
bool all_below(int exponent, const float* x, size_t count) {
  const uint32_t missing = static_cast<uint32_t>(128 - exponent + 1) << 23;
  uint32_t carried = 0;
  for (size_t i = 0; i < count; i++) carried |= (std::bit_cast<uint32_t>(x[i]) & 0x7fffffff) + missing;
  return carried >> 31 == 0;
}

// Of queries, keys and values: no product of two of kMaxHeadDim components overflows.
constexpr int kLargestExponent = 59, kFinite = 128;

// Hands out pieces of one buffer, each aligned to a cache line; counts only where there is no buffer yet.
struct Pieces {
  uint8_t* base;
  size_t used = 0;
  template <class T>
  T* take(size_t count) {
    const size_t at = used;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return base == nullptr ? nullptr : reinterpret_cast<T*>(base + at);
  }
  Activations activations(size_t rows, int cols) {
    const size_t size = rows * static_cast<size_t>(cols), groups = rows * (static_cast<size_t>(cols) / kGroup);
    Activations made;
    made.cols = cols;
    made.x = take<float>(size);
    made.q = take<int8_t>(size);
    made.scale = take<float>(groups);
    made.sum = take<int32_t>(groups);
    made.half_sum = take<int32_t>(2 * groups);
    return made;
  }
};

int checked(int32_t given, int standard, int largest, const char* name) {
  if (given < 0 || given > largest)
    fail(MOBILLAMA_INVALID, "%s=%d; expected 0 (the default) to %d", name, given, largest);
  return given == 0 ? standard : given;
}

mobillama_kv_type checked_type(int32_t type) {
  if (type < 0 || type >= kKvTypes) fail(MOBILLAMA_INVALID, "kv_type=%d; expected 0 (f16), 1 (int8) or 2 (f32)", type);
  return static_cast<mobillama_kv_type>(type);
}

}  // namespace

Context::Context(const Weights& weights, const mobillama_context_options& options)
    : weights_(weights),
      kernels_(*weights.kernels),
      float_activations_(options.float_activations != 0),
      max_tokens_(checked(options.max_tokens, weights.shape.context_length, 1 << 24, "max_tokens")),
      max_sequences_(checked(options.max_sequences, 1, 1 << 16, "max_sequences")),
      lengths_(static_cast<size_t>(max_sequences_)),
      cache_(weights.shape, checked_type(options.kv_type), max_tokens_, max_sequences_),
      pool_(options.threads == 0 ? cores() : checked(options.threads, 1, 256, "threads")),
      rows_(kRows) {
  const Shape& shape = weights.shape;
  const int query = shape.num_attention_heads * shape.head_dim, kv = shape.num_key_value_heads * shape.head_dim;
  d_ = padded(shape.hidden_size), qkv_ = padded(query), kv_ = padded(kv), f_ = padded(shape.intermediate_size);
  v_stride_ = padded(shape.vocab_size);
  scores_stride_ = padded(max_tokens_) + 16;
  const size_t angles = static_cast<size_t>(max_tokens_) * static_cast<size_t>(shape.head_dim / 2);
  Pieces pieces{nullptr};
  for (int counted = 0; counted < 2; counted++) {
    if (counted) {
      scratch_ = Buffer(pieces.used, false);
      pieces = Pieces{scratch_.data()};
    }
    input_ = pieces.activations(kRows, shape.hidden_size);
    mixed_ = pieces.activations(kRows, query);
    inner_ = pieces.activations(kRows, shape.intermediate_size);
    final_ = pieces.activations(kHeadRows, shape.hidden_size);
    x_ = pieces.take<float>(kRows * static_cast<size_t>(shape.hidden_size));
    q_ = pieces.take<float>(kRows * qkv_);
    k_ = pieces.take<float>(kRows * kv_);
    v_ = pieces.take<float>(kRows * kv_);
    gate_ = pieces.take<float>(kRows * f_);
    up_ = pieces.take<float>(kRows * f_);
    out_ = pieces.take<float>(kRows * d_);
    scores_ = pieces.take<float>(static_cast<size_t>(pool_.threads()) * scores_stride_);
    cos_ = pieces.take<float>(angles);
    sin_ = pieces.take<float>(angles);
    logits_ = pieces.take<float>(kRows * v_stride_);
  }
}

// Sines and cosines of positions up to `end`, those that are not there yet. Angles in float32, as the model was
// trained; their sines in double and rounded once.
void Context::turn_up_to(int end) {
  const Shape& shape = weights_.shape;
  const int half = shape.head_dim / 2;
  for (; turned_ < end; turned_++)
    for (int i = 0; i < half; i++) {
      const float exponent = static_cast<float>(2 * i) / static_cast<float>(shape.head_dim);
      const double power = std::pow(static_cast<double>(shape.rope_theta), static_cast<double>(exponent));
      const float angle = static_cast<float>(turned_) * (1.0f / static_cast<float>(power));
      const size_t at = static_cast<size_t>(turned_) * static_cast<size_t>(half) + static_cast<size_t>(i);
      cos_[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sin_[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
}

// ---- what callers ask for ----

void Context::check_sequence(int sequence) const {
  if (sequence < 0 || sequence >= max_sequences_)
    fail(MOBILLAMA_INVALID, "sequence %d; this context has 0 to %d", sequence, max_sequences_ - 1);
}

void Context::check_ids(const int32_t* ids, int n) const {
  if (ids == nullptr || n < 1) fail(MOBILLAMA_INVALID, "%d ids; expected 1 or more", n);
  for (int i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= weights_.shape.vocab_size)
      fail(MOBILLAMA_INVALID, "id %d at place %d is outside the vocabulary; expected 0 to %d", ids[i], i,
           weights_.shape.vocab_size - 1);
}

void Context::check_room(int sequence, int n) const {
  const int length = lengths_[static_cast<size_t>(sequence)];
  if (n > max_tokens_ - length)
    fail(MOBILLAMA_FULL,
         "%d more tokens do not fit behind the %d of sequence %d; it holds %d: rewind it, or make a context with more "
         "max_tokens",
         n, length, sequence, max_tokens_);
}

// In this order, for `stop` writes in the other one: it is seen here, or its cancelling is.
void Context::begin() {
  cancelled_.store(false);
  if (ended_) fail(MOBILLAMA_CANCELLED, "stopped: this context computes no more; make another one");
}

void Context::prefill(int sequence, const int32_t* ids, int n) { append(sequence, ids, n, Want::last); }

void Context::verify(int sequence, const int32_t* ids, int n) {
  if (n > kRows) fail(MOBILLAMA_INVALID, "%d ids to verify; expected at most %d", n, kRows);
  append(sequence, ids, n, Want::all);
}

void Context::append(int sequence, const int32_t* ids, int n, Want want) {
  check_sequence(sequence);
  check_ids(ids, n);
  check_room(sequence, n);
  begin();
  const int length = lengths_[static_cast<size_t>(sequence)];
  cache_.reserve(sequence, length, length + n);
  for (int begin = 0; begin < n; begin += kRows) {
    const int count = std::min(kRows, n - begin);
    for (int i = 0; i < count; i++) rows_[static_cast<size_t>(i)] = {sequence, length + begin + i, ids[begin + i]};
    pass(count, true, begin + count < n ? Want::none : want);
  }
  lengths_[static_cast<size_t>(sequence)] = length + n;
}

void Context::decode(const int32_t* sequences, const int32_t* ids, int n) {
  check_ids(ids, n);
  if (n > kRows) fail(MOBILLAMA_INVALID, "%d sequences at once; expected at most %d", n, kRows);
  for (int i = 0; i < n; i++) {
    check_sequence(sequences[i]);
    check_room(sequences[i], 1);
    for (int j = 0; j < i; j++)
      if (sequences[i] == sequences[j])
        fail(MOBILLAMA_INVALID, "sequence %d is named twice; decode appends one id to each", sequences[i]);
    rows_[static_cast<size_t>(i)] = {sequences[i], lengths_[static_cast<size_t>(sequences[i])], ids[i]};
  }
  begin();
  for (int i = 0; i < n; i++) {
    const Row& row = rows_[static_cast<size_t>(i)];
    cache_.reserve(row.sequence, row.position, row.position + 1);
  }
  pass(n, false, Want::all);
  for (int i = 0; i < n; i++) lengths_[static_cast<size_t>(sequences[i])]++;
}

void Context::log_probs(int sequence, const int32_t* ids, int n, const int32_t* where, const int32_t* targets, int m,
                        double* out) {
  check_sequence(sequence);
  check_ids(ids, n);
  check_room(sequence, n);
  if (m < 1 || where == nullptr || out == nullptr)
    fail(MOBILLAMA_INVALID, "%d targets; expected 1 or more, with their places", m);
  check_ids(targets, m);
  for (int j = 0; j < m; j++)
    if (where[j] < (j > 0 ? where[j - 1] : 0) || where[j] >= n)
      fail(MOBILLAMA_INVALID, "where[%d]=%d; expected rising places below the %d ids", j, where[j], n);
  begin();
  const int length = lengths_[static_cast<size_t>(sequence)];
  const int hidden = weights_.shape.hidden_size;
  cache_.reserve(sequence, length, length + n);
  int next = 0;  // target
  for (int begin = 0; begin < n; begin += kRows) {
    const int count = std::min(kRows, n - begin);
    for (int i = 0; i < count; i++) rows_[static_cast<size_t>(i)] = {sequence, length + begin + i, ids[begin + i]};
    pass(count, true, Want::none);
    while (next < m && where[next] < begin + count) {
      int place[kHeadRows], found = 0, last = next;
      for (; last < m && where[last] < begin + count; last++) {
        if (found > 0 && place[found - 1] == where[last]) continue;
        if (found == kHeadRows) break;
        place[found] = where[last];
        std::memcpy(final_.x + static_cast<size_t>(found) * static_cast<size_t>(hidden),
                    input_.x + static_cast<size_t>(where[last] - begin) * static_cast<size_t>(hidden),
                    static_cast<size_t>(hidden) * sizeof(float));
        found++;
      }
      pool_.run([&](int worker) { head_pass(worker, -1, found); });
      look_for_overflow(kFinite, final_.x, static_cast<size_t>(found) * static_cast<size_t>(hidden));
      expect_no_overflow();
      for (int row = 0; next < last; next++) {
        while (place[row] != where[next]) row++;
        out[next] = log_prob(logits_ + static_cast<size_t>(row) * v_stride_, targets[next]);
      }
    }
  }
  logit_rows_ = 0;
  lengths_[static_cast<size_t>(sequence)] = length + n;
}

double Context::log_prob(const float* logits, int32_t target) const {
  float largest = logits[0];
  for (int i = 1; i < weights_.shape.vocab_size; i++) largest = std::max(largest, logits[i]);
  double sum = 0;
  for (int i = 0; i < weights_.shape.vocab_size; i++) sum += std::exp(static_cast<double>(logits[i] - largest));
  return static_cast<double>(logits[target] - largest) - std::log(sum);
}

void Context::fork(int from, int to, int n) {
  check_sequence(from);
  check_sequence(to);
  if (n < 0 || n > lengths_[static_cast<size_t>(from)])
    fail(MOBILLAMA_INVALID, "the first %d tokens of sequence %d; it has %d", n, from, length(from));
  if (from != to) {
    cache_.reserve(to, 0, n);
    cache_.copy(from, to, n);
  }
  lengths_[static_cast<size_t>(to)] = n;
}

void Context::rewind(int sequence, int n) {
  check_sequence(sequence);
  fork(sequence, sequence, n);
}

const float* Context::logits(int row) const {
  return row < 0 || row >= logit_rows_ ? nullptr : logits_ + static_cast<size_t>(row) * v_stride_;
}

int Context::length(int sequence) const {
  return sequence < 0 || sequence >= max_sequences_ ? -1 : lengths_[static_cast<size_t>(sequence)].load();
}

// ---- the forward pass, run by all workers at once ----

void Context::pass(int n, bool same_sequence, Want want) {
  logit_rows_ = 0;
  stopped_ = overflowed_ = false;
  for (int i = 0; i < n; i++) turn_up_to(rows_[static_cast<size_t>(i)].position + 1);
  pool_.run([&](int worker) { compute(worker, n, same_sequence, want); });
  if (stopped_) fail(MOBILLAMA_CANCELLED, "cancelled; the sequences are as they were before this call");
  const int wanted = want == Want::all ? n : want == Want::last ? 1 : 0;
  const size_t hidden = static_cast<size_t>(weights_.shape.hidden_size);
  look_for_overflow(kFinite, input_.x + static_cast<size_t>(n - wanted) * hidden, static_cast<size_t>(wanted) * hidden);
  expect_no_overflow();
  logit_rows_ = wanted;
}

// What is not finite in a row of activations stays so in every later sum, but rounding to integers and the exponential
// hide it. So it is looked for where it would be hidden: in queries, keys and values, and before and after the head.
void Context::look_for_overflow(int exponent, const float* x, size_t count) {
  if (!all_below(exponent, x, count)) overflowed_ = true;
}

void Context::expect_no_overflow() const {
  if (overflowed_)
    fail(MOBILLAMA_FORMAT,
         "the model's numbers overflow, and its logits would be no numbers: the file's weights are damaged or much too "
         "large; make the file again from a sound model");
}

Activations Context::row_of(const Activations& x, int row) {
  const size_t r = static_cast<size_t>(row), cols = static_cast<size_t>(x.cols), groups = cols / kGroup;
  Activations one = x;
  one.x += r * cols, one.q += r * cols, one.scale += r * groups, one.sum += r * groups, one.half_sum += 2 * r * groups;
  return one;
}

void Context::round_row(const Activations& x, int row, bool wanted) const {
  round_part(x, row, 0, x.cols, wanted);
}

void Context::round_part(const Activations& x, int row, int begin, int count, bool wanted) const {
  if (!wanted || float_activations_) return;
  const Activations one = row_of(x, row);
  const int group = begin / kGroup;
  kernels_.quantize(one.x + begin, count, kGroup, one.q + begin, one.scale + group, one.sum + group,
                    one.half_sum + 2 * group);
}

void Context::multiply_panels(const Panels& w, int begin, int end, const Activations& x, int n, float* y,
                              size_t stride) const {
  if (!float_activations_ || is_float(w.layout))
    return kernels_.multiply[static_cast<int>(w.layout)](w, begin, end, x, n, y, stride);
  std::vector<float> weights(static_cast<size_t>(w.cols));  // for checking only: slow and plain
  for (int row = begin * kPanelRows; row < std::min(end * kPanelRows, w.rows); row++) {
    read_row(w, row, weights.data());
    for (int t = 0; t < n; t++) {
      const float* in = x.x + static_cast<size_t>(t) * static_cast<size_t>(w.cols);
      double sum = 0;
      for (int c = 0; c < w.cols; c++)
        sum += static_cast<double>(weights[static_cast<size_t>(c)]) * static_cast<double>(in[c]);
      y[static_cast<size_t>(t) * stride + static_cast<size_t>(row)] = static_cast<float>(sum);
    }
  }
}

// work(chunk) for all chunks, then each(row) for all rows: by the last worker to arrive where there are one or two
// rows, in a phase of their own where there are more.
template <class Work, class Each>
void Context::phase_then_rows(int worker, int chunks, int n, Work&& work, Each&& each) {
  if (n <= 2) {
    pool_.phase(worker, chunks, work, [&] {
      for (int row = 0; row < n; row++) each(row);
    });
  } else {
    pool_.phase(worker, chunks, work, [] {});
    pool_.phase(worker, n, each, [] {});
  }
}

size_t Context::chunk_bytes(size_t all) const {
  return std::min(kChunkBytes, all / (kChunksEach * static_cast<size_t>(pool_.threads())));
}

template <size_t kCount, class After, class Each>
void Context::multiply(int worker, int n, const Product (&products)[kCount], const Activations& x, After&& after,
                       Each&& each) {
  size_t bytes = 0;
  for (const Product& product : products) bytes += product.panels->bytes();
  const size_t wanted = chunk_bytes(bytes);
  int chunks[kCount], sizes[kCount], total = 0;
  for (size_t i = 0; i < kCount; i++) {
    const Panels& w = *products[i].panels;
    sizes[i] = n > 4 ? 2 : static_cast<int>(std::max<size_t>(2, wanted / w.panel_bytes));  // kernels like pairs
    chunks[i] = (w.panels + sizes[i] - 1) / sizes[i];
    total += chunks[i];
  }
  phase_then_rows(
      worker, total, n,
      [&](int chunk) {
        size_t i = 0;
        while (chunk >= chunks[i]) chunk -= chunks[i++];
        const Product& product = products[i];
        const int begin = chunk * sizes[i], end = std::min(begin + sizes[i], product.panels->panels);
        multiply_panels(*product.panels, begin, end, x, n, product.y, product.stride);
        after(begin * kPanelRows, std::min(end * kPanelRows, product.panels->rows));
      },
      each);
}

void Context::compute(int worker, int n, bool same_sequence, Want want) {
  const Shape& shape = weights_.shape;
  const size_t hidden = static_cast<size_t>(shape.hidden_size);
  const Layer& first = weights_.layers[0];
  phase_then_rows(
      worker, n, n,
      [&](int row) {
        read_row(weights_.embedding, rows_[static_cast<size_t>(row)].id, x_ + static_cast<size_t>(row) * hidden);
      },
      [&](int row) {
        const size_t at = static_cast<size_t>(row) * hidden;
        kernels_.rms_norm(x_ + at, first.attn_norm, shape.hidden_size, shape.rms_norm_eps, input_.x + at);
        round_row(input_, row, wants_codes({&first.q, &first.k, &first.v}));
      });
  for (int index = 0; index < shape.num_hidden_layers; index++) {
    layer_pass(worker, n, index, same_sequence);
    if (stopped_) return;
  }
  if (want == Want::all) head_pass(worker, 0, n);
  if (want == Want::last) head_pass(worker, n - 1, 1);
}

void Context::layer_pass(int worker, int n, int index, bool same_sequence) {
  const Shape& shape = weights_.shape;
  const Layer& layer = weights_.layers[static_cast<size_t>(index)];
  const Ffn& ffn = weights_.ffns[static_cast<size_t>(layer.ffn)];
  const size_t hidden = static_cast<size_t>(shape.hidden_size), inner = static_cast<size_t>(shape.intermediate_size);
  const int heads = shape.num_key_value_heads;
  const auto add_to_x = [&](int begin, int end) {
    for (int row = 0; row < n; row++) {
      float* x = x_ + static_cast<size_t>(row) * hidden;
      const float* y = out_ + static_cast<size_t>(row) * d_;
      for (int i = begin; i < end; i++) x[i] += y[i];
    }
  };
  const auto nothing = [](int, int) {};

  const Product qkv[] = {{&layer.q, q_, qkv_}, {&layer.k, k_, kv_}, {&layer.v, v_, kv_}};
  multiply(worker, n, qkv, input_, nothing, [](int) {});

  // Rows of one sequence look at each other, so all keys are stored before any row looks.
  if (same_sequence && n > 1)
    pool_.phase(worker, n * heads, [&](int unit) { store(unit / heads, index, unit % heads); }, [] {});
  // Keys and values are fetched a constant distance ahead, on from head to head; many at once only where a worker begins,
  // for they wait for each other, and loads for them.
  const int width = shape.num_attention_heads / heads * shape.head_dim, units = n * heads;
  const int share_end = static_cast<int>(int64_t{units} * (worker + 1) / pool_.threads());
  const bool apart = width % kGroup == 0, mixed_codes = wants_codes({&layer.o});
  Soon soon_kv;
  int expected = -1;
  const auto attend_unit = [&](int unit) {
    const int row = unit / heads, head = unit % heads;
    if (unit != expected || head == 0) {
      const int heads_left = unit < share_end ? std::min(heads - head, share_end - unit) : 1;
      soon_kv = cached(row, index, head, heads_left);
      for (int byte = 0; byte < (soon_kv.read_once ? kAheadLongKv : kAheadKv); byte += 64) soon_kv.fetch();
    }
    expected = unit + 1;
    if (!same_sequence || n == 1) {
      store(row, index, head);
      const Row& at = rows_[static_cast<size_t>(row)];
      if (head + 1 < heads) cache_.fetch_to_write(cache_.head(at.sequence, index, head + 1), at.position);
    }
    attend(worker, row, index, head, soon_kv);
    if (apart) round_part(mixed_, row, head * width, width, mixed_codes);
  };
  if (apart)
    pool_.phase(worker, units, attend_unit, [] {});
  else
    phase_then_rows(worker, units, n, attend_unit, [&](int row) { round_row(mixed_, row, mixed_codes); });

  const Product output[] = {{&layer.o, out_, d_}};
  multiply(worker, n, output, mixed_, add_to_x, [&](int row) {
    const size_t at = static_cast<size_t>(row) * hidden;
    kernels_.rms_norm(x_ + at, layer.ffn_norm, shape.hidden_size, shape.rms_norm_eps, input_.x + at);
    round_row(input_, row, wants_codes({&ffn.gate, &ffn.up}));
  });

  // Gate and up of the same rows by the same worker, so that their product follows at once.
  const bool codes = wants_codes({&ffn.down}) && !float_activations_;
  const size_t pairs = chunk_bytes(2 * ffn.gate.bytes()) / (4 * ffn.gate.panel_bytes);
  const int per_chunk = 2 * (n > 4 ? 1 : static_cast<int>(std::max<size_t>(1, pairs)));
  const int chunks = (ffn.gate.panels + per_chunk - 1) / per_chunk;
  pool_.phase(
      worker, chunks,
      [&](int chunk) {
        const int begin = chunk * per_chunk, end = std::min(begin + per_chunk, ffn.gate.panels);
        multiply_panels(ffn.gate, begin, end, input_, n, gate_, f_);
        multiply_panels(ffn.up, begin, end, input_, n, up_, f_);
        const int from = begin * kPanelRows, to = std::min(end * kPanelRows, shape.intermediate_size);
        for (int row = 0; row < n; row++) {
          float* gate = gate_ + static_cast<size_t>(row) * f_ + from;
          kernels_.swiglu(gate, up_ + static_cast<size_t>(row) * f_ + from, to - from);
          const size_t at = static_cast<size_t>(row) * inner + static_cast<size_t>(from), group = at / kGroup;
          if (codes)
            kernels_.quantize(gate, to - from, kGroup, inner_.q + at, inner_.scale + group, inner_.sum + group,
                              inner_.half_sum + 2 * group);
          if (!codes || is_float(ffn.down.layout))
            std::memcpy(inner_.x + at, gate, static_cast<size_t>(to - from) * sizeof(float));
        }
      },
      [&] { stopped_ = cancelled_.load(); });

  const bool last = index + 1 == shape.num_hidden_layers;
  const float* norm = last ? weights_.output_norm : weights_.layers[static_cast<size_t>(index) + 1].attn_norm;
  const bool next_codes = last ? wants_codes({&weights_.head})
                               : wants_codes({&weights_.layers[static_cast<size_t>(index) + 1].q,
                                              &weights_.layers[static_cast<size_t>(index) + 1].k,
                                              &weights_.layers[static_cast<size_t>(index) + 1].v});
  const Product down[] = {{&ffn.down, out_, d_}};
  Soon soon = after_layer(worker, index);
  Activations activations = inner_;
  activations.soon = &soon;
  multiply(worker, n, down, activations, add_to_x, [&](int row) {
    const size_t at = static_cast<size_t>(row) * hidden;
    kernels_.rms_norm(x_ + at, norm, shape.hidden_size, shape.rms_norm_eps, input_.x + at);
    round_row(input_, row, next_codes);
  });
}

// A worker's share of the weights that follow a layer: while the FFN comes from cache, memory has nothing to do.
Soon Context::after_layer(int worker, int index) const {
  const bool last = index + 1 == weights_.shape.num_hidden_layers;
  const Layer& next = weights_.layers[static_cast<size_t>(last ? index : index + 1)];
  const uint8_t* begin = last ? weights_.head.data : next.q.data;
  const uint8_t* end = last ? begin + weights_.head.bytes() : next.v.data + next.v.bytes();  // k lies between q and v
  const auto share = [&](int i) { return begin + (end - begin) / pool_.threads() * i; };
  Soon soon;
  soon.at = share(worker), soon.end = share(worker + 1);
  return soon;
}

void Context::store(int row, int layer, int head) {
  const Row& at = rows_[static_cast<size_t>(row)];
  const int dim = weights_.shape.head_dim, half = dim / 2;
  const size_t offset = static_cast<size_t>(row) * kv_ + static_cast<size_t>(head) * static_cast<size_t>(dim);
  const size_t angle = static_cast<size_t>(at.position) * static_cast<size_t>(half);
  kernels_.rotate(k_ + offset, cos_ + angle, sin_ + angle, half);
  look_for_overflow(kLargestExponent, k_ + offset, static_cast<size_t>(dim));
  look_for_overflow(kLargestExponent, v_ + offset, static_cast<size_t>(dim));
  cache_.store(kernels_, cache_.head(at.sequence, layer, head), at.position, k_ + offset, v_ + offset);
}

// The keys and values that `heads` heads from this one on read.
Soon Context::cached(int row, int layer, int head, int heads) const {
  const Row& at = rows_[static_cast<size_t>(row)];
  uint8_t* kv = cache_.head(at.sequence, layer, head);
  Soon soon;
  soon.at = cache_.key_block(kv, at.position), soon.end = cache_.value(kv, at.position) + cache_.row_bytes();
  soon.length = static_cast<size_t>(soon.end - soon.at), soon.stride = cache_.head_bytes(at.sequence);
  soon.more = heads - 1;
  soon.read_once = soon.length >= kLongKv;
  return soon;
}

void Context::attend(int worker, int row, int layer, int head, Soon& soon) {
  const Row& at = rows_[static_cast<size_t>(row)];
  const Shape& shape = weights_.shape;
  const int dim = shape.head_dim, half = dim / 2, per_kv = shape.num_attention_heads / shape.num_key_value_heads;
  const size_t angle = static_cast<size_t>(at.position) * static_cast<size_t>(half);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const uint8_t* kv = cache_.head(at.sequence, layer, head);
  float* scores = scores_ + static_cast<size_t>(worker) * scores_stride_;
  for (int h = head * per_kv; h < (head + 1) * per_kv; h++) {
    const size_t offset = static_cast<size_t>(h) * static_cast<size_t>(dim);
    float* q = q_ + static_cast<size_t>(row) * qkv_ + offset;
    kernels_.rotate(q, cos_ + angle, sin_ + angle, half);
    for (int i = 0; i < dim; i++) q[i] *= scale;
    look_for_overflow(kLargestExponent, q, static_cast<size_t>(dim));
    int8_t codes[kMaxHeadDim];
    Query query{q, codes, 0, 0};
    if (cache_.type() == MOBILLAMA_KV_INT8) kernels_.quantize(q, dim, dim, codes, &query.scale, &query.sum, nullptr);
    const int length = at.position + 1;
    Soon nothing;  // a key/value head's other queries find it in the cache
    Soon& wanted = h == head * per_kv ? soon : nothing;
    kernels_.scores[cache_.type()](query, kv, dim, length, scores, wanted);
    const float sum = kernels_.softmax(scores, length);
    kernels_.mix[cache_.type()](scores, kv, dim, length, 1.0f / sum,
                                mixed_.x + static_cast<size_t>(row) * static_cast<size_t>(mixed_.cols) + offset,
                                wanted);
  }
}

// Logits of n rows from `first` on of the last pass; first = -1: of the n rows put into final_, whose codes are made
// here.
void Context::head_pass(int worker, int first, int n) {
  const bool own = first < 0;
  if (own) pool_.phase(worker, n, [&](int row) { round_row(final_, row, wants_codes({&weights_.head})); }, [] {});
  const Product head[] = {{&weights_.head, logits_, v_stride_}};
  const auto look = [&](int begin, int end) {
    for (int row = 0; row < n; row++)
      look_for_overflow(kFinite, logits_ + static_cast<size_t>(row) * v_stride_ + begin,
                        static_cast<size_t>(end - begin));
  };
  multiply(worker, n, head, own ? final_ : row_of(input_, first), look, [](int) {});
}

}  // namespace mobillama
