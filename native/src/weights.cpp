#include "weights.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <set>

#include "cpu.h"
#include "failure.h"
#include "file.h"
#include "gguf_parts.h"
#include "layout.h"
#include "model_keys.h"
#include "pool.h"

namespace mobillama {
namespace {

constexpr int kRowsAtOnce = 128;     // of a matrix, read and laid out by one thread at a time
constexpr size_t kAlignment = 4096;  // of a matrix in memory
constexpr int kLargest = 1 << 24;    // of any dimension: no model is near it, and products stay in 64 bits
// An FFN that several layers use is treated as resident up to so many times the last-level cache: what does not fit is
// read from memory as fast as if it were streamed past it, and cores that do not share a cache have more than one says.
constexpr double kResidentCaches = 2.0;

struct Job {  // one matrix to read
  const TensorEntry* entry;
  Panels* panels;
  int head_dim;  // of rows in llama's interleaved rotary order, to be put in halves; 0 = rows stay as they are
};

class Loader {
 public:
  Loader(const std::string& path, const mobillama_open_options& options, const std::vector<std::string>& ignored_keys)
      : options_(options), path_(path), ignored_keys_(ignored_keys), parts_(path), gguf_(parts_.keys()) {}

  Weights load() {
    read_shape();
    list_tensors();
    check_all_used();
    set_aside();
    const int threads = options_.threads > 0 ? options_.threads : cores();
    read_matrices(threads);
    read_norms();
    parts_.check_unchanged();
    describe();
    return std::move(weights_);
  }

 private:
  int dimension(const std::string& key) const {
    const int64_t value = gguf_.integer(key);
    if (value < 1 || value > kLargest)
      fail(MOBILLAMA_FORMAT, "%s: %s is %lld; expected 1 to %d", path_.c_str(), key.c_str(),
           static_cast<long long>(value), kLargest);
    return static_cast<int>(value);
  }

  void read_shape() {
    const std::string architecture = gguf_.text("general.architecture");
    interleaved_ = architecture == "llama";
    if (!interleaved_ && architecture != "mobillama")
      fail(MOBILLAMA_UNSUPPORTED, "%s holds a model of architecture %.60s; this engine runs mobillama and llama",
           path_.c_str(), architecture.c_str());
    const std::string prefix = architecture + ".";
    Shape& shape = weights_.shape;
    shape.hidden_size = dimension(prefix + "embedding_length");
    shape.intermediate_size = dimension(prefix + "feed_forward_length");
    shape.num_hidden_layers = dimension(prefix + "block_count");
    shape.num_attention_heads = dimension(prefix + "attention.head_count");
    shape.num_key_value_heads = gguf_.has(prefix + "attention.head_count_kv")
                                    ? dimension(prefix + "attention.head_count_kv")
                                    : shape.num_attention_heads;
    shape.context_length = dimension(prefix + "context_length");
    shape.num_ffn_blocks =
        gguf_.has(prefix + "ffn_block_count") ? dimension(prefix + "ffn_block_count") : shape.num_hidden_layers;
    shape.rms_norm_eps = static_cast<float>(gguf_.number(prefix + "attention.layer_norm_rms_epsilon"));
    shape.rope_theta = static_cast<float>(gguf_.number(prefix + "rope.freq_base", 10000.0));
    check(shape.hidden_size % shape.num_attention_heads == 0,
          "embedding_length is not a multiple of attention.head_count");
    shape.head_dim = shape.hidden_size / shape.num_attention_heads;
    check(shape.head_dim % 4 == 0 && shape.head_dim <= kMaxHeadDim,
          "the head size (embedding_length / attention.head_count) must be a multiple of 4 and at most 256");
    check(shape.num_attention_heads % shape.num_key_value_heads == 0,
          "attention.head_count is not a multiple of attention.head_count_kv");
    check(shape.num_ffn_blocks <= shape.num_hidden_layers, "ffn_block_count is larger than block_count");
    check(shape.rms_norm_eps >= 0 && shape.rms_norm_eps < 1, "attention.layer_norm_rms_epsilon is not in [0, 1)");
    check(shape.rope_theta > 0, "rope.freq_base is not above 0");
    check(gguf_.integer(prefix + "rope.dimension_count", shape.head_dim) == shape.head_dim,
          "rope.dimension_count is not the head size");
    for (const char* key : {"attention.key_length", "attention.value_length"})
      check(gguf_.integer(prefix + key, shape.head_dim) == shape.head_dim,
            "attention.key_length or value_length is not the head size");
    check_keys(gguf_, path_, architecture, shape, ignored_keys_);
  }

  void check(bool good, const char* what) const {
    if (!good) fail(MOBILLAMA_UNSUPPORTED, "%s cannot be run: %s", path_.c_str(), what);
  }

  const TensorEntry& need(const std::string& name, int64_t rows, int64_t cols) {
    const TensorEntry* entry = parts_.find(name);
    if (entry == nullptr)
      fail(MOBILLAMA_FORMAT, "%s has no tensor %s; it is no whole model", path_.c_str(), name.c_str());
    if (entry->rows != rows || entry->cols != cols)
      fail(MOBILLAMA_FORMAT, "%s: %s has %lld rows of %lld; expected %lld of %lld from the metadata",
           path_.c_str(), name.c_str(), static_cast<long long>(entry->rows), static_cast<long long>(entry->cols),
           static_cast<long long>(rows), static_cast<long long>(cols));
    used_.insert(name);
    return *entry;
  }

  void matrix(const std::string& name, int rows, int cols, Panels& panels, int head_dim = 0) {
    const TensorEntry& entry = need(name, rows, cols);
    panels.layout = layout_of(entry.type);
    panels.rows = rows;
    panels.cols = cols;
    panels.panels = (rows + kPanelRows - 1) / kPanelRows;
    panels.panel_bytes = panel_bytes(panels.layout, cols);
    jobs_.push_back({&entry, &panels, interleaved_ ? head_dim : 0});
  }

  void norm(const std::string& name, const float*& to) {
    const TensorEntry& entry = need(name, 1, weights_.shape.hidden_size);
    if (entry.type != TensorType::F32)
      fail(MOBILLAMA_UNSUPPORTED, "%s: %s is of type %s; expected F32", path_.c_str(), name.c_str(),
           type_info(static_cast<int32_t>(entry.type))->name);
    norms_.push_back({&entry, &to});
  }

  void list_tensors() {
    const Shape& shape = weights_.shape;
    const int hidden = shape.hidden_size, inner = shape.intermediate_size,
              kv = shape.num_key_value_heads * shape.head_dim;
    // The table of tensors bounds the layers before memory is taken for them.
    check(static_cast<size_t>(shape.num_hidden_layers) <= parts_.tensors().size(),
          "block_count is larger than the number of tensors");
    const bool copies = options_.share_ffn < 0;
    weights_.layers.resize(static_cast<size_t>(shape.num_hidden_layers));
    weights_.ffns.resize(static_cast<size_t>(copies ? shape.num_hidden_layers : shape.num_ffn_blocks));
    weights_.shape.vocab_size = vocabulary();
    matrix("token_embd.weight", shape.vocab_size, hidden, weights_.embedding);
    int last = -1;
    for (int i = 0; i < shape.num_hidden_layers; i++) {
      const std::string prefix = "blk." + std::to_string(i) + ".";
      Layer& layer = weights_.layers[static_cast<size_t>(i)];
      norm(prefix + "attn_norm.weight", layer.attn_norm);
      matrix(prefix + "attn_q.weight", hidden, hidden, layer.q, shape.head_dim);
      matrix(prefix + "attn_k.weight", kv, hidden, layer.k, shape.head_dim);
      matrix(prefix + "attn_v.weight", kv, hidden, layer.v);
      matrix(prefix + "attn_output.weight", hidden, hidden, layer.o);
      norm(prefix + "ffn_norm.weight", layer.ffn_norm);
      const int block = static_cast<int>(int64_t{i} * shape.num_ffn_blocks / shape.num_hidden_layers);
      if (block != last) first_ = prefix;
      layer.ffn = copies ? i : block;
      if (copies || block != last) {
        Ffn& ffn = weights_.ffns[static_cast<size_t>(layer.ffn)];
        matrix(first_ + "ffn_gate.weight", inner, hidden, ffn.gate);
        matrix(first_ + "ffn_up.weight", inner, hidden, ffn.up);
        matrix(first_ + "ffn_down.weight", hidden, inner, ffn.down);
      }
      last = block;
    }
    norm("output_norm.weight", weights_.output_norm);
    tied_ = parts_.find("output.weight") == nullptr;
    if (!tied_) matrix("output.weight", shape.vocab_size, hidden, weights_.head);
  }

  int vocabulary() const {
    const TensorEntry* entry = parts_.find("token_embd.weight");
    if (entry == nullptr)
      fail(MOBILLAMA_FORMAT, "%s has no tensor token_embd.weight; it is no whole model", path_.c_str());
    if (entry->rows < 1 || entry->rows > kLargest)
      fail(MOBILLAMA_FORMAT, "%s: token_embd.weight has %lld rows; expected 1 to %d", path_.c_str(),
           static_cast<long long>(entry->rows), kLargest);
    return static_cast<int>(entry->rows);
  }

  void check_all_used() const {
    for (const TensorEntry* entry : parts_.tensors())
      if (!used_.contains(entry->name))
        fail(MOBILLAMA_UNSUPPORTED,
             "%s: tensor %.80s has no place in this architecture; the answers would be wrong without it",
             path_.c_str(), entry->name.c_str());
  }

  void set_aside() {
    size_t bytes = 0;
    const auto place = [&bytes](size_t size) {
      const size_t at = bytes;
      bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    std::vector<size_t> matrices, norms;
    for (const Job& job : jobs_)
      matrices.push_back(place(static_cast<size_t>(job.panels->panels) * job.panels->panel_bytes));
    const size_t norm_bytes = static_cast<size_t>(weights_.shape.hidden_size) * sizeof(float);
    for (size_t i = 0; i < norms_.size(); i++) norms.push_back(place(norm_bytes));
    weights_.memory = Buffer(bytes);
    for (size_t i = 0; i < jobs_.size(); i++) jobs_[i].panels->data = weights_.memory.data() + matrices[i];
    for (size_t i = 0; i < norms_.size(); i++)
      *norms_[i].to = reinterpret_cast<const float*>(weights_.memory.data() + norms[i]);
    if (tied_) weights_.head = weights_.embedding;
  }

  struct Piece {
    const Job* job;
    int row, rows;
  };

  void read_matrices(int threads) {
    std::vector<Piece> pieces;
    size_t largest = 0;
    int64_t total = 0;
    for (const Job& job : jobs_) {
      const int unit = job.head_dim > 0 ? std::lcm(kPanelRows, job.head_dim) : kRowsAtOnce;
      for (int row = 0; row < job.panels->rows; row += unit)
        pieces.push_back({&job, row, std::min(unit, job.panels->rows - row)});
      const int64_t row_size = row_bytes(static_cast<int32_t>(job.entry->type), job.panels->cols);
      largest =
          std::max(largest, static_cast<size_t>(std::min(unit, job.panels->rows)) * static_cast<size_t>(row_size));
      total += job.entry->bytes;
    }
    Pool pool(threads);
    std::vector<std::vector<uint8_t>> scratch(static_cast<size_t>(threads), std::vector<uint8_t>(largest));
    std::atomic<int64_t> done{0};
    std::atomic<bool> failed{false};
    std::mutex first_failure;
    Failure failure(MOBILLAMA_OK, "");
    pool.run([&](int worker) {
      pool.phase(
          worker, static_cast<int>(pieces.size()),
          [&](int index) {
            if (failed.load(std::memory_order_relaxed)) return;
            try {
              const int64_t bytes =
                  read_piece(pieces[static_cast<size_t>(index)], scratch[static_cast<size_t>(worker)]);
              const int64_t so_far = done.fetch_add(bytes) + bytes;
              if (worker == 0 && options_.progress != nullptr)
                options_.progress(static_cast<double>(so_far) / static_cast<double>(total), options_.user);
            } catch (const Failure& found) {
              const std::lock_guard lock(first_failure);
              if (!failed.exchange(true)) failure = found;
            }
          },
          [] {});
    });
    if (failed) throw failure;
    if (options_.progress != nullptr) options_.progress(1.0, options_.user);
  }

  int64_t read_piece(const Piece& piece, std::vector<uint8_t>& scratch) const {
    const Job& job = *piece.job;
    Panels& panels = *job.panels;
    const int64_t row_size = row_bytes(static_cast<int32_t>(job.entry->type), panels.cols);
    const int64_t bytes = piece.rows * row_size;
    job.entry->file->read(job.entry->offset + piece.row * row_size, scratch.data(), bytes);
    for (int row = 0; row < piece.rows; row += kPanelRows) {
      const uint8_t* rows[kPanelRows];
      for (int i = 0; i < kPanelRows; i++)
        rows[i] = row + i < piece.rows ? scratch.data() + source(row + i, job.head_dim) * row_size : nullptr;
      uint8_t* panel =
          const_cast<uint8_t*>(panels.data) + static_cast<size_t>((piece.row + row) / kPanelRows) * panels.panel_bytes;
      if (!lay_out(job.entry->type, rows, panels.cols, panel))
        fail(MOBILLAMA_FORMAT, "%s: %s has a weight or scale that is not a finite number, in rows %d to %d",
             path_.c_str(), job.entry->name.c_str(), piece.row + row,
             piece.row + std::min(row + kPanelRows, piece.rows) - 1);
    }
    return bytes;
  }

  // Where in the file row `row` lies: interleaved order has pairs (2i, 2i + 1) where ours has (i, i + head_dim / 2).
  static int64_t source(int row, int head_dim) {
    if (head_dim == 0) return row;
    const int inside = row % head_dim, half = head_dim / 2;
    return row - inside + 2 * (inside % half) + inside / half;
  }

  void read_norms() {
    for (const Norm& norm : norms_) {
      auto* values = const_cast<float*>(*norm.to);
      norm.entry->file->read(norm.entry->offset, values, norm.entry->bytes);
      for (int i = 0; i < weights_.shape.hidden_size; i++)
        if (!std::isfinite(values[i]))
          fail(MOBILLAMA_FORMAT, "%s: %s has a value that is not a finite number", path_.c_str(),
               norm.entry->name.c_str());
    }
  }

  static int64_t bytes_of(const Panels& panels) { return static_cast<int64_t>(panels.bytes()); }
  static int64_t bytes_of(const Ffn& ffn) { return bytes_of(ffn.gate) + bytes_of(ffn.up) + bytes_of(ffn.down); }

  // Which part of each FFN is meant to stay in cache: the same share of each matrix. An FFN that one layer alone uses is
  // streamed like everything else.
  void choose_residents(int64_t cache) {
    const int64_t room = options_.resident_bytes != 0
                             ? std::max<int64_t>(options_.resident_bytes, 0)
                             : static_cast<int64_t>(kResidentCaches * static_cast<double>(cache));
    for (size_t i = 0; i < weights_.ffns.size(); i++) {
      int uses = 0;
      for (const Layer& layer : weights_.layers) uses += static_cast<size_t>(layer.ffn) == i;
      Ffn& ffn = weights_.ffns[i];
      const int64_t bytes = bytes_of(ffn);
      const int share = uses > 1 ? static_cast<int>(std::min(room, bytes) * kWhole / bytes) : 0;
      for (Panels* panels : {&ffn.gate, &ffn.up, &ffn.down}) panels->resident = share;
      const int64_t resident = bytes * share / kWhole;
      weights_.info.resident_bytes = std::max(weights_.info.resident_bytes, resident);
    }
  }

  void describe() {
    const Shape& shape = weights_.shape;
    mobillama_info& info = weights_.info;
    weights_.kernels = &choose_kernels();
    info.vocab_size = shape.vocab_size;
    info.hidden_size = shape.hidden_size;
    info.intermediate_size = shape.intermediate_size;
    info.num_hidden_layers = shape.num_hidden_layers;
    info.num_attention_heads = shape.num_attention_heads;
    info.num_key_value_heads = shape.num_key_value_heads;
    info.head_dim = shape.head_dim;
    info.num_ffn_blocks = shape.num_ffn_blocks;
    info.context_length = shape.context_length;
    info.file_bytes = parts_.size();
    info.isa = weights_.kernels->name;
    info.cache_bytes = cache_bytes();
    choose_residents(info.cache_bytes);
    for (const Job& job : jobs_) info.weight_bytes += bytes_of(*job.panels);
    info.weight_bytes += static_cast<int64_t>(norms_.size()) * shape.hidden_size * static_cast<int64_t>(sizeof(float));
    int64_t attention = 0, ffn_uses = 0, ffn_once = 0;
    for (const Layer& layer : weights_.layers) {
      attention += bytes_of(layer.q) + bytes_of(layer.k) + bytes_of(layer.v) + bytes_of(layer.o);
      ffn_uses += bytes_of(weights_.ffns[static_cast<size_t>(layer.ffn)]);
    }
    for (const Ffn& ffn : weights_.ffns) ffn_once += bytes_of(ffn);
    info.bytes_per_token = attention + ffn_uses + bytes_of(weights_.head);
    info.unique_bytes_per_token = attention + ffn_once + bytes_of(weights_.head);
  }

  struct Norm {
    const TensorEntry* entry;
    const float** to;
  };

  const mobillama_open_options options_;
  const std::string path_;
  const std::vector<std::string>& ignored_keys_;
  const GgufParts parts_;
  const Gguf& gguf_;  // the keys, all in the first part
  Weights weights_;
  bool interleaved_ = false, tied_ = false;
  std::string first_;  // prefix of the first layer that uses the current FFN block
  std::vector<Job> jobs_;
  std::vector<Norm> norms_;
  std::set<std::string, std::less<>> used_;
};

}  // namespace

Weights load_weights(const std::string& path, const mobillama_open_options& options,
                     const std::vector<std::string>& ignored_keys) {
  return Loader(path, options, ignored_keys).load();
}

}  // namespace mobillama
