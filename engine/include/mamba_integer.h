/* Mamba-Integer engine: the one public C interface.
 *
 * Integer-only inference of the models that spec/FORMAT.md describes, bit for bit as spec/ARITHMETIC.md says. No
 * function of this header throws, aborts or exits; each returns a status, and mi_last_error() tells in words what went
 * wrong in the calling thread. A mi_model is immutable after loading and may be shared by threads; a mi_session belongs
 * to one thread at a time.
 */
#ifndef MAMBA_INTEGER_H
#define MAMBA_INTEGER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mi_status {
    MI_OK = 0,
    MI_ERR_IO = 1,       /* a file could not be opened or read */
    MI_ERR_FORMAT = 2,   /* the model file breaks spec/FORMAT.md; nothing of it was used */
    MI_ERR_ARGUMENT = 3, /* a null pointer, a token outside the vocabulary, a parameter outside its range */
    MI_ERR_MEMORY = 4,   /* memory could not be had */
    MI_ERR_DEVICE = 5    /* a device other than the CPU is not there, or failed */
} mi_status;

typedef struct mi_model mi_model;
typedef struct mi_session mi_session;

typedef struct mi_config {
    uint32_t d_model, n_layers, n_heads, head_dim, d_state, vocab_size, context_length;
    uint32_t scan;       /* 0 convex, 1 literal */
    uint32_t activation; /* 0 silu, 1 squareplus */
    uint32_t gate;       /* 0 silu, 1 squareplus */
    uint32_t norm_mantissa, rotation, ternary, embed_mul, logit_shift;
} mi_config;

/* Sampling integers, ARITHMETIC section 11. */
typedef struct mi_sampling {
    uint32_t temperature; /* Q16; 0 is greedy; at most 2^22 */
    uint32_t top_k;       /* 0 is off */
    uint32_t top_p;       /* Q16; 65536 is off */
    uint64_t seed;
} mi_sampling;

/* Message of the last failed call in this thread; never NULL; valid until this thread's next call. */
const char *mi_last_error(void);
/* Version of the engine, "MAJOR.MINOR.PATCH". */
const char *mi_version(void);
/* Instruction set of this process's kernels, the fastest that the processor has: "avx512" (with VNNI, VBMI and GFNI),
 * "avx2", "neon-dotprod", "neon" or "scalar". The environment variable MAMBA_INTEGER_ISA, read once, forces one of them;
 * the bits are the same. If it names one that cannot be used here, this is "none" and mi_session_new fails. */
const char *mi_isa(void);

/* Reads a model file and checks it whole. Where the system can, the file is mapped, not copied: replace it by renaming
 * another over it, and do not write into it while a model of it is there. */
mi_status mi_model_load(const char *path, mi_model **out);
/* The bytes are copied; they may be freed after the call. */
mi_status mi_model_load_memory(const void *data, size_t size, mi_model **out);
void mi_model_free(mi_model *model);
void mi_model_get_config(const mi_model *model, mi_config *out);
const char *mi_model_name(const mi_model *model);
/* 64 lowercase hexadecimal digits. */
const char *mi_model_digest(const mi_model *model);
/* The embedded tokenizer file, not zero-terminated. */
const char *mi_model_tokenizer(const mi_model *model, size_t *size);

/* A new sequence: zero state, position 0. What it takes in memory does not grow with its length. */
mi_status mi_session_new(const mi_model *model, mi_session **out);
/* The same on a device: "cpu", or "cuda" for a GPU, with the same bits. There the weights are uploaded with the model's first
 * session and stay until the model is freed, and the sequence's state stays on the device. The library libmamba_integer_cuda.so
 * (engine/cuda/) is needed, which the environment variable MAMBA_INTEGER_CUDA may name; MI_ERR_DEVICE says what is missing. A
 * GPU works on while mi_session_feed has returned, so what fails there may be told by a later call; the state is lost then.
 * Threads have no meaning there, and there is no trace. */
mi_status mi_session_new_on(const mi_model *model, const char *device, mi_session **out);
void mi_session_free(mi_session *session);
void mi_session_reset(mi_session *session);
uint64_t mi_session_position(const mi_session *session);

/* How many threads compute what is fed to this session, the caller's among them; 1 at first. The bits are the same. They
 * sleep between feeds, but for some microseconds. */
mi_status mi_session_set_threads(mi_session *session, uint32_t threads);

/* Feeds `n` tokens in order. If `all_logits` is not NULL it receives n rows of vocab_size int32; otherwise only the
 * last token's logits are computed. On an error nothing was fed. */
mi_status mi_session_feed(mi_session *session, const uint32_t *tokens, size_t n, int32_t *all_logits);
/* Feeds many sequences of one model at once, each its own tokens, so that the weights are read once for all: the same bits
 * as one mi_session_feed after another. `all_logits` as there. The first session's threads compute; a session may be there
 * only once. On an error nothing was fed. */
typedef struct mi_feed {
    mi_session *session;
    const uint32_t *tokens;
    size_t n;
    int32_t *all_logits;
} mi_feed;
mi_status mi_feed_many(const mi_feed *feeds, size_t count);

/* Logits after the last token fed (vocab_size int32, owned by the session); NULL before the first, or when a device fails. */
const int32_t *mi_session_logits(const mi_session *session);
/* Chooses a token from the last logits (ARITHMETIC section 11); `step` is 0 for the first generated token. */
mi_status mi_session_sample(mi_session *session, const mi_sampling *sampling, uint64_t step, uint32_t *token);

/* The state of a sequence as bytes (spec/FORMAT.md, "State"): all that the tokens fed so far have left behind, the last
 * logits included. A session of the same model that it is restored to continues with the same bits, on any machine. Bytes
 * of another model, damaged ones, and values that no sequence can have are refused (MI_ERR_FORMAT) and change nothing. */
size_t mi_session_state_size(const mi_session *session);
mi_status mi_session_save(const mi_session *session, void *out, size_t size);
mi_status mi_session_restore(mi_session *session, const void *data, size_t size);

/* Trace: called for every intermediate the spec names, with `site` such as "blk.0.in_proj" and `count` values widened
 * to int32. Sites, in order: "embed"; per layer I "blk.I.norm1.j", ".norm1.mu", ".norm1", ".in_proj", ".conv", ".x",
 * ".B", ".C", ".m", ".state", ".y", ".gate", ".gated", ".norm2.j", ".norm2.mu", ".norm2", ".out_proj", ".resid"; then
 * "norm_f.j", "norm_f.mu", "norm_f", "logits". */
typedef void (*mi_trace_fn)(void *user, uint64_t position, const char *site, const int32_t *values, size_t count);
mi_status mi_session_set_trace(mi_session *session, mi_trace_fn fn, void *user);

/* SHA-256 as used by the digests: `out` receives 32 bytes. */
void mi_sha256(const void *data, size_t size, uint8_t out[32]);

#ifdef __cplusplus
}
#endif
#endif
