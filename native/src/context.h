// Sequences and the forward pass: ids in, logits out, keys and values kept.
//
// Legend: n rows (one new token each) of one pass, D hidden_size, F intermediate_size, H query heads, K key/value
// heads, Dh head_dim, V vocab_size, S positions.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "mobillama.h"
#include "pool.h"
#include "weights.h"

namespace mobillama {

constexpr int kRows = 64;     // new tokens of one pass at most; a longer prompt takes several passes
constexpr int kHeadRows = 8;  // rows of logits that exist at once while log-probabilities are computed

// Keys and values. Those of a sequence are one piece of memory: for 512 tokens when its first one comes, and for twice as
// many whenever it is full, up to max_tokens.
class KvCache {
 public:
  KvCache(const Shape& shape, mobillama_kv_type type, int max_tokens, int max_sequences);
  mobillama_kv_type type() const { return type_; }

  // Room for so many tokens of a sequence, of which the first `kept` stay. Heads lie elsewhere afterwards. Failure
  // (MEMORY); then nothing has changed.
  void reserve(int sequence, int kept, int tokens);

  // Layouts as in kernels.h. A head of one sequence and layer is known by where its keys end and its values begin.
  uint8_t* head(int sequence, int layer, int head) const {
    const Sequence& in = sequences_[static_cast<size_t>(sequence)];
    return head_of(in, static_cast<size_t>(layer) * static_cast<size_t>(heads_) + static_cast<size_t>(head));
  }
  size_t head_bytes(int sequence) const { return 2 * plane(sequences_[static_cast<size_t>(sequence)]); }  // to the next
  size_t block_bytes() const { return scale_bytes_ + kKvBlock * row_bytes(); }
  size_t row_bytes() const { return item_ * static_cast<size_t>(head_dim_); }  // of a position's value
  uint8_t* key_block(uint8_t* head, int position) const { return head - (block_of(position) + 1) * block_bytes(); }
  uint8_t* value_block(uint8_t* head, int position) const { return head + block_of(position) * block_bytes(); }
  uint8_t* value(uint8_t* head, int position) const {
    return value_block(head, position) + scale_bytes_ + static_cast<size_t>(position % kKvBlock) * row_bytes();
  }
  // Where a position's key and value will be stored.
  void fetch_to_write(uint8_t* head, int position) const;
  void store(const Kernels& kernels, uint8_t* head, int position, const float* key, const float* value) const;
  void copy(int from, int to, int tokens) const;

 private:
  struct Sequence {
    Buffer memory;
    size_t blocks = 0;  // room for so many of each head
  };
  static size_t block_of(int position) { return static_cast<size_t>(position / kKvBlock); }
  size_t plane(const Sequence& in) const { return in.blocks * block_bytes(); }  // room for one head's keys, or values
  size_t all_heads() const { return static_cast<size_t>(layers_) * static_cast<size_t>(heads_); }
  uint8_t* head_of(const Sequence& in, size_t index) const { return in.memory.data() + (2 * index + 1) * plane(in); }
  void copy_head(uint8_t* from, uint8_t* to, int tokens) const;
  int layers_, heads_, head_dim_;
  mobillama_kv_type type_;
  size_t item_;         // bytes of a key's or value's component
  size_t scale_bytes_;  // of a block's
  size_t most_blocks_;  // that max_tokens need
  std::vector<Sequence> sequences_;
};

class Context {
 public:
  Context(const Weights& weights, const mobillama_context_options& options);

  // All of these give a Failure for bad arguments (then nothing has changed) and for a cancelled call (likewise).
  void prefill(int sequence, const int32_t* ids, int n);
  void decode(const int32_t* sequences, const int32_t* ids, int n);
  void verify(int sequence, const int32_t* ids, int n);
  void log_probs(int sequence, const int32_t* ids, int n, const int32_t* where, const int32_t* targets, int m,
                 double* out);
  void fork(int from, int to, int n);
  void rewind(int sequence, int n);

  // These from any thread, while one of those above runs too.
  const float* logits(int row) const;
  int length(int sequence) const;  // -1 if there is none
  void cancel() { cancelled_.store(true); }
  void stop() {
    ended_.store(true);
    cancelled_.store(true);
  }

  // Held while a function above runs.
  std::atomic<bool> busy{false};

 private:
  struct Row {
    int sequence, position;
    int32_t id;
  };
  enum class Want { none, last, all };

  void check_ids(const int32_t* ids, int n) const;
  void check_sequence(int sequence) const;
  void check_room(int sequence, int n) const;
  void begin();
  void append(int sequence, const int32_t* ids, int n, Want want);
  void pass(int n, bool same_sequence, Want want);  // of rows_[0 .. n)
  void turn_up_to(int end);
  void compute(int worker, int n, bool same_sequence, Want want);
  void layer_pass(int worker, int n, int index, bool same_sequence);
  void attend(int worker, int row, int layer, int head, Soon& soon);
  void store(int row, int layer, int head);
  Soon after_layer(int worker, int index) const;
  Soon cached(int row, int layer, int head, int heads) const;
  void head_pass(int worker, int first, int n);
  void look_for_overflow(int exponent, const float* x, size_t count);
  void expect_no_overflow() const;
  double log_prob(const float* logits, int32_t target) const;

  // Multiply by several matrices that take the same activations, in one phase; each(row) follows when all are done.
  struct Product {
    const Panels* panels;
    float* y;
    size_t stride;
  };
  template <size_t kCount, class After, class Each>
  void multiply(int worker, int n, const Product (&products)[kCount], const Activations& x, After&& after, Each&& each);
  template <class Work, class Each>
  void phase_then_rows(int worker, int chunks, int n, Work&& work, Each&& each);
  size_t chunk_bytes(size_t all) const;  // of weights that a worker takes at a time, of so many
  void multiply_panels(const Panels& w, int begin, int end, const Activations& x, int n, float* y, size_t stride) const;
  void round_row(const Activations& x, int row, bool wanted) const;
  void round_part(const Activations& x, int row, int begin, int count, bool wanted) const;  // whole groups
  static Activations row_of(const Activations& x, int row);

  const Weights& weights_;
  const Kernels& kernels_;
  const bool float_activations_;
  const int max_tokens_, max_sequences_;
  std::vector<std::atomic<int>> lengths_;  // atomic as what else is asked for while a call runs
  KvCache cache_;
  Pool pool_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> ended_{false};       // nothing is computed any more
  std::atomic<bool> overflowed_{false};  // a number of this pass is not finite
  std::atomic<bool> stopped_{false};  // written between phases; a worker that comes late may see it early, and goes

  Buffer scratch_;
  Activations input_, mixed_, inner_, final_;           // (n, D), (n, H Dh), (n, F), (n, D): of the next products
  float *x_, *q_, *k_, *v_, *gate_, *up_, *out_;        // (n, D), (n, H Dh), (n, K Dh) twice, (n, F) twice, (n, D)
  float *logits_, *cos_, *sin_;                         // (kRows, V padded), (max_tokens, Dh / 2) twice
  float* scores_;                                       // (threads, max_tokens padded + 16)
  size_t d_, qkv_, kv_, f_, v_stride_, scores_stride_;  // row strides, padded to whole panels
  int turned_ = 0;                                      // positions whose sines are there
  std::vector<Row> rows_;
  std::atomic<int> logit_rows_{0};
};

}  // namespace mobillama
