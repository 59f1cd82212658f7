// A model's weights: read from a GGUF file piece by piece, laid out for the kernels, each FFN block once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "mobillama.h"

namespace mobillama {

struct Shape {
  int vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0, num_attention_heads = 0,
      num_key_value_heads = 0, head_dim = 0, num_ffn_blocks = 0, context_length = 0;
  float rms_norm_eps = 0, rope_theta = 0;
};

struct Ffn {
  Panels gate, up, down;
};

struct Layer {
  Panels q, k, v, o;
  const float* attn_norm = nullptr;  // (D)
  const float* ffn_norm = nullptr;   // (D)
  int ffn = 0;                       // which of Weights::ffns this layer uses
};

struct Weights {
  Shape shape;
  std::vector<Layer> layers;
  std::vector<Ffn> ffns;
  Panels embedding, head;              // the same panels where the head is tied
  const float* output_norm = nullptr;  // (D)
  const Kernels* kernels = nullptr;
  mobillama_info info{};
  Buffer memory;
};

// Read and lay out all weights on `options.threads` threads; the file's pages are not kept.
// ignored_keys: as check_keys takes them.
// Failure: IO, FORMAT or UNSUPPORTED for a file that is damaged or not this engine's; INVALID; MEMORY.
Weights load_weights(const std::string& path, const mobillama_open_options& options,
                     const std::vector<std::string>& ignored_keys = {});

}  // namespace mobillama
