/* The one door to mobillama's on-device engine: plain C, no dependencies.
 *
 * A model is a GGUF file that was opened: its weights, laid out for this machine, are read-only and serve any number of
 * contexts. A context holds sequences (their keys and values) and the threads that compute; one thread at a time may
 * be inside it, except for mobillama_cancel, mobillama_logits and mobillama_length. Every function that can fail gives
 * a status; mobillama_last_error gives the words for the calling thread's last failure: found, expected, what to do.
 *
 * Any thread may free anything at any time: mobillama_close and mobillama_context_free wait for the calls that are
 * inside (mobillama_stop shortens the wait), and the weights live until the model is closed and its last context is
 * freed. A call that begins after one of these two has been called with the same pointer is undefined, and so is a
 * second one of them. After fork() models and contexts belong to the parent: in the child every call with one of them
 * gives MOBILLAMA_INVALID, close and free do nothing, and what the child opens itself is its own.
 *
 * Same file, same ids, same settings: same bits, for any number of threads, any batch and any instruction set.
 */
#ifndef MOBILLAMA_H
#define MOBILLAMA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MOBILLAMA_API __declspec(dllexport)
#else
#define MOBILLAMA_API __attribute__((visibility("default")))
#endif

#define MOBILLAMA_VERSION 1 /* of this header; mobillama_version() says that of the library */

typedef enum {
  MOBILLAMA_OK = 0,
  MOBILLAMA_INVALID = 1,     /* an argument cannot be used: id outside the vocabulary, unknown sequence, ... */
  MOBILLAMA_IO = 2,          /* the file cannot be read, or changed while it was read */
  MOBILLAMA_FORMAT = 3,      /* the file is damaged, or is no GGUF of a model this engine knows; of a call that computes:
                                the weights are such that its logits would be no finite numbers */
  MOBILLAMA_UNSUPPORTED = 4, /* a newer GGUF version, another architecture, a tensor type or size without a kernel */
  MOBILLAMA_MEMORY = 5,      /* the system gives no more memory */
  MOBILLAMA_FULL = 6,        /* the tokens do not fit into the sequence */
  MOBILLAMA_BUSY = 7,        /* another thread is inside this context */
  MOBILLAMA_CANCELLED = 8    /* mobillama_cancel or _stop was called; the sequences are as before the call */
} mobillama_status;

typedef struct mobillama_model mobillama_model;
typedef struct mobillama_context mobillama_context;

typedef struct {
  int32_t threads;   /* that lay out weights; 0 = one per core */
  int32_t share_ffn; /* 1 = one FFN in memory per block (default 0 counts as 1); -1 = a copy per layer: measuring */
  int64_t resident_bytes; /* of the FFN to keep in cache; 0 = from the cache size the system reports, -1 = none */
  void (*progress)(double share, void* user); /* 0 to 1, from the calling thread; may be NULL */
  void* user;
} mobillama_open_options;

typedef struct {
  int32_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads;
  int32_t head_dim, num_ffn_blocks, context_length;
  int64_t file_bytes, weight_bytes; /* of the file; of the weights in memory */
  int64_t bytes_per_token;          /* weights read for one token, every use counted */
  int64_t unique_bytes_per_token;   /* weights read for one token, each once */
  int64_t resident_bytes;           /* of FFN weights meant to stay in cache */
  int64_t cache_bytes;              /* last-level cache the system reports; 0 = it does not say */
  const char* isa;                  /* scalar, avx2, avx512 (VNNI), neon, neon-dot, neon-i8mm; the library's own */
} mobillama_info;

typedef enum { MOBILLAMA_KV_F16 = 0, MOBILLAMA_KV_INT8 = 1, MOBILLAMA_KV_F32 = 2 } mobillama_kv_type;

typedef struct {
  int32_t threads;           /* 0 = one per core */
  int32_t max_tokens;        /* per sequence; 0 = the model's context length */
  int32_t max_sequences;     /* 0 = 1; a sequence takes memory for 512 tokens, and for twice as many when full */
  int32_t kv_type;           /* mobillama_kv_type */
  int32_t float_activations; /* 1 = weights times unrounded activations: slow, for checking */
} mobillama_context_options;

typedef struct {
  double temperature;        /* 0 = the likeliest token */
  int32_t top_k;             /* 0 = all */
  double top_p;              /* 1 = all */
  double repetition_penalty; /* 1 = none */
  uint64_t seed;
  int32_t num_ids; /* choose among the first this many ids; 0 = all */
} mobillama_sampling;

/* Version of the library. */
MOBILLAMA_API int32_t mobillama_version(void);

/* The words for the calling thread's last failure; "" before the first. Valid until its next call. */
MOBILLAMA_API const char* mobillama_last_error(void);

/* Read a GGUF file (architecture mobillama, or llama) and lay out its weights. options may be NULL. UNSUPPORTED for a
 * key that would change the arithmetic: docs/formats.md lists them. */
MOBILLAMA_API mobillama_status mobillama_open(const char* path, const mobillama_open_options* options,
                                              mobillama_model** out);

/* As mobillama_open, for a file with keys `{architecture}.*` that are unknown or change the arithmetic, which is an
 * error: those of the num_keys named in `keys` (whole names) are ignored. The answers are then not those that the
 * file's maker meant: say so wherever they are shown. INVALID for a name that stands in nobody's way. */
MOBILLAMA_API mobillama_status mobillama_open_ignoring(const char* path, const mobillama_open_options* options,
                                                       const char* const* keys, int32_t num_keys,
                                                       mobillama_model** out);

/* Let go of a model: its weights are freed with the last of its contexts, now if there is none. Waits for calls with it
 * that are inside. NULL is allowed. */
MOBILLAMA_API void mobillama_close(mobillama_model* model);

MOBILLAMA_API mobillama_status mobillama_describe(const mobillama_model* model, mobillama_info* out);

/* Sequences and threads to compute with. options may be NULL. */
MOBILLAMA_API mobillama_status mobillama_context_new(mobillama_model* model, const mobillama_context_options* options,
                                                     mobillama_context** out);

/* Free a context, and the rows of logits that it owns. Waits for calls that are inside. NULL is allowed. */
MOBILLAMA_API void mobillama_context_free(mobillama_context* context);

/* Append n ids to a sequence; the logits of the last one are row 0 afterwards. */
MOBILLAMA_API mobillama_status mobillama_prefill(mobillama_context* context, int32_t sequence, const int32_t* ids,
                                                 int32_t n);

/* Append one id to each of n different sequences; logits of ids[i] are row i afterwards. */
MOBILLAMA_API mobillama_status mobillama_decode(mobillama_context* context, const int32_t* sequences,
                                                const int32_t* ids, int32_t n);

/* Append n ids to a sequence and give logits of every one of them as rows 0 to n - 1 (n up to 64): for checking a
 * guess. */
MOBILLAMA_API mobillama_status mobillama_verify(mobillama_context* context, int32_t sequence, const int32_t* ids,
                                                int32_t n);

/* The vocab_size logits of row `row` of the last call, owned by the context and good until its next call; NULL if there
 * is no such row. */
MOBILLAMA_API const float* mobillama_logits(const mobillama_context* context, int32_t row);

/* Append n ids and give out[j] = log p(targets[j] | sequence up to and including ids[where[j]]), j < m, where rising.
 * Logits exist for a few positions at a time only. */
MOBILLAMA_API mobillama_status mobillama_log_probs(mobillama_context* context, int32_t sequence, const int32_t* ids,
                                                   int32_t n, const int32_t* where, const int32_t* targets, int32_t m,
                                                   double* out);

/* Tokens in a sequence, those of a call that runs not counted; -1 if there is no such sequence. */
MOBILLAMA_API int32_t mobillama_length(const mobillama_context* context, int32_t sequence);

/* Make `to` equal the first n tokens of `from`, without computing them again. */
MOBILLAMA_API mobillama_status mobillama_fork(mobillama_context* context, int32_t from, int32_t to, int32_t n);

/* Forget all but the first n tokens of a sequence. */
MOBILLAMA_API mobillama_status mobillama_rewind(mobillama_context* context, int32_t sequence, int32_t n);

/* Ask the call that is running in another thread to end; it does within one layer. Nothing happens if none runs. */
MOBILLAMA_API void mobillama_cancel(mobillama_context* context);

/* The same for the call that runs and every later one that computes: before a context is freed that is in use. */
MOBILLAMA_API void mobillama_stop(mobillama_context* context);

/* Choose the next id from n logits. position: tokens before the new one; the random number is a function of (seed,
 * position). seen: the num_seen ids already in the text (read only if there is a penalty). */
MOBILLAMA_API mobillama_status mobillama_sample(const float* logits, int32_t n, const mobillama_sampling* sampling,
                                                int64_t position, const int32_t* seen, int32_t num_seen, int32_t* out);

/* Round rows to a GGUF tensor type (its number in GGUF) by least error, and back. importance: cols weights of the
 * squared error, or NULL. out must hold rows * mobillama_row_bytes(type, cols) bytes. */
MOBILLAMA_API int64_t mobillama_row_bytes(int32_t type, int64_t cols); /* -1: unknown type, or cols does not fit it */
MOBILLAMA_API mobillama_status mobillama_quantize(int32_t type, const float* rows, int64_t num_rows, int64_t cols,
                                                  const float* importance, int32_t threads, void* out);
MOBILLAMA_API mobillama_status mobillama_dequantize(int32_t type, const void* rows, int64_t num_rows, int64_t cols,
                                                    float* out);

/* For mobillama bench. Bytes per second: reading `bytes` of memory over and over on `threads` threads for about
 * `seconds`. Seconds for a word written by one core to reach another and be answered (0 with a single core): some 50 ns
 * where they share a cache, several times that where they do not; the cores of a virtual machine may change places. */
MOBILLAMA_API double mobillama_bandwidth(int64_t bytes, int32_t threads, double seconds);
MOBILLAMA_API double mobillama_round_trip(void);

#ifdef __cplusplus
}
#endif
#endif
