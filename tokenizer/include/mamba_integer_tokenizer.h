/* Mamba-Integer tokenizer: byte-level BPE. The C interface of the tokenizer, for C and C++.
 *
 * Ids: 0 to 255 are the bytes, 256 + i is merge i, and the special token <|endoftext|> is the last one. Tokenizers of
 * other makers number as they do.
 *
 * No function throws or exits; each that can fail returns a status, and mi_tokenizer_last_error() tells in words what
 * went wrong in the calling thread. (Running out of memory ends the process.) A mi_tokenizer does not change once it is
 * made and may be shared by threads.
 *
 * Results of varying length go into the caller's buffer: `capacity` says how many values it has room for, and *needed
 * receives how many the result has. If the result does not fit, nothing else is written and the status is
 * MI_TOKENIZER_ERR_CAPACITY; so a call with the buffer NULL and capacity 0 asks for the length. Of an empty array the
 * pointer may be NULL.
 */
#ifndef MAMBA_INTEGER_TOKENIZER_H
#define MAMBA_INTEGER_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mi_tokenizer_status {
    MI_TOKENIZER_OK = 0,
    MI_TOKENIZER_ERR_IO = 1,       /* a file could not be read or written */
    MI_TOKENIZER_ERR_FORMAT = 2,   /* not a tokenizer file, or not one that is possible here */
    MI_TOKENIZER_ERR_ARGUMENT = 3, /* a null pointer, an unknown token, a size out of range, text that is not UTF-8 */
    MI_TOKENIZER_ERR_SPECIAL = 4,  /* the text contains a special token, which was to be refused */
    MI_TOKENIZER_ERR_CAPACITY = 5, /* the buffer is too small */
    MI_TOKENIZER_ERR_INTERNAL = 6  /* a bug of the tokenizer */
} mi_tokenizer_status;

/* What is done with the names of special tokens, such as <|endoftext|>, in a text. */
typedef enum mi_tokenizer_special {
    MI_TOKENIZER_SPECIAL_REFUSE = 0, /* it is an error */
    MI_TOKENIZER_SPECIAL_ALL = 1,    /* it becomes the special token */
    MI_TOKENIZER_SPECIAL_AS_TEXT = 2 /* it is text like any other */
} mi_tokenizer_special;

typedef struct mi_tokenizer mi_tokenizer;
/* Decodes token by token. It may be used by one thread at a time, and is to be freed before its tokenizer. */
typedef struct mi_tokenizer_stream mi_tokenizer_stream;

/* Message of the last failed call in this thread; never NULL; valid until this thread's next call. */
const char *mi_tokenizer_last_error(void);

/* Reads a tokenizer file. *out is NULL after a failure; otherwise it is to be given to mi_tokenizer_free. */
mi_tokenizer_status mi_tokenizer_load(const char *path, mi_tokenizer **out);
/* From the contents of a tokenizer file, such as the one in a model file; they may be freed after the call. */
mi_tokenizer_status mi_tokenizer_from_bytes(const void *data, size_t size, mi_tokenizer **out);
/* From the contents of a .tiktoken file: lines of a token in base 64 and its rank. The `count` special tokens, of which
 * it says nothing, have these names (zero-terminated) and ids. Text is split by the pattern of cl100k_base. */
mi_tokenizer_status mi_tokenizer_from_tiktoken(const void *data, size_t size, const char *const *names,
                                               const uint32_t *ids, size_t count, mi_tokenizer **out);
/* From the contents of a tokenizer.json (Hugging Face) of a byte-level BPE that splits text by the pattern of GPT-4. */
mi_tokenizer_status mi_tokenizer_from_huggingface(const void *data, size_t size, mi_tokenizer **out);
/* NULL is allowed. */
void mi_tokenizer_free(mi_tokenizer *tokenizer);

/* Number of tokens, the special one included; 0 for NULL. */
size_t mi_tokenizer_vocab_size(const mi_tokenizer *tokenizer);
/* Id of <|endoftext|>; UINT32_MAX for NULL. */
uint32_t mi_tokenizer_eot_id(const mi_tokenizer *tokenizer);
/* Id of the special token of this name (zero-terminated); UINT32_MAX if there is none. */
uint32_t mi_tokenizer_special_id(const mi_tokenizer *tokenizer, const char *name);

/* The tokens of `size` bytes of text, which need not be valid UTF-8. There are never more tokens than bytes. */
mi_tokenizer_status mi_tokenizer_encode(const mi_tokenizer *tokenizer, const void *text, size_t size,
                                        mi_tokenizer_special special, uint32_t *tokens, size_t capacity,
                                        size_t *needed);
/* The tokens of `count` texts, one text after the other; ends[i] receives how many there are up to the end of text i.
 * `threads` share the work where that is faster; 0 and 1 are this thread alone. */
mi_tokenizer_status mi_tokenizer_encode_batch(const mi_tokenizer *tokenizer, const void *const *texts,
                                              const size_t *sizes, size_t count, mi_tokenizer_special special,
                                              size_t threads, uint32_t *tokens, size_t capacity, size_t *ends,
                                              size_t *needed);
/* The bytes that `count` tokens stand for; not zero-terminated. */
mi_tokenizer_status mi_tokenizer_decode(const mi_tokenizer *tokenizer, const uint32_t *tokens, size_t count,
                                        uint8_t *bytes, size_t capacity, size_t *needed);
/* The bytes that one token stands for. There are never more than 256. */
mi_tokenizer_status mi_tokenizer_token_bytes(const mi_tokenizer *tokenizer, uint32_t id, uint8_t *bytes,
                                             size_t capacity, size_t *needed);

/* A stream at the beginning of a text. *out is NULL after a failure; otherwise it is to be given to
 * mi_tokenizer_stream_free. */
mi_tokenizer_status mi_tokenizer_stream_new(const mi_tokenizer *tokenizer, mi_tokenizer_stream **out);
/* The text that a token completes, at most 777 bytes: whole characters in UTF-8; bytes that are none become U+FFFD. Text
 * that does not fit is not lost: it comes with the next call. An unknown token changes nothing. */
mi_tokenizer_status mi_tokenizer_stream_push(mi_tokenizer_stream *stream, uint32_t id, uint8_t *bytes, size_t capacity,
                                             size_t *needed);
/* The end of the text: what is left of it, U+FFFD if it ends within a character. The stream is at a beginning again. */
mi_tokenizer_status mi_tokenizer_stream_finish(mi_tokenizer_stream *stream, uint8_t *bytes, size_t capacity,
                                               size_t *needed);
/* NULL is allowed. */
void mi_tokenizer_stream_free(mi_tokenizer_stream *stream);

/* The contents of the tokenizer file, which tokenizers of other makers do not have unless they number as this one does;
 * of a .tiktoken file, if tiktoken would give the same ids; of a tokenizer.json. */
mi_tokenizer_status mi_tokenizer_to_bytes(const mi_tokenizer *tokenizer, uint8_t *bytes, size_t capacity,
                                          size_t *needed);
mi_tokenizer_status mi_tokenizer_to_tiktoken(const mi_tokenizer *tokenizer, uint8_t *bytes, size_t capacity,
                                             size_t *needed);
mi_tokenizer_status mi_tokenizer_to_huggingface(const mi_tokenizer *tokenizer, uint8_t *bytes, size_t capacity,
                                                size_t *needed);
/* Writes the tokenizer file, complete or not at all. */
mi_tokenizer_status mi_tokenizer_save(const mi_tokenizer *tokenizer, const char *out_path);
/* Learns a vocabulary of `vocab_size` tokens (257 or more) from a UTF-8 text file, whose documents are separated by
 * lines <|endoftext|>, and writes the tokenizer file. It is smaller if the text does not yield as many tokens. */
mi_tokenizer_status mi_tokenizer_train_file(const char *text_path, size_t vocab_size, const char *out_path);

#ifdef __cplusplus
}
#endif
#endif
