/* Encodes a text and decodes it again: encode TOKENIZER TEXT. Prints a line for each token: its id and its bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mamba_integer_tokenizer.h"

static void check(mi_tokenizer_status status) {
    if (status != MI_TOKENIZER_OK) {
        fprintf(stderr, "error: %s\n", mi_tokenizer_last_error());
        exit(status);
    }
}

static void *allocate(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) {
        fputs("error: out of memory\n", stderr);
        exit(EXIT_FAILURE);
    }
    return memory;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fputs("encode TOKENIZER TEXT\n", stderr);
        return EXIT_FAILURE;
    }
    const char *text = argv[2];
    size_t size = strlen(text);
    mi_tokenizer *tokenizer;
    check(mi_tokenizer_load(argv[1], &tokenizer));
    printf("%zu tokens, the last is %u\n", mi_tokenizer_vocab_size(tokenizer),
           (unsigned)mi_tokenizer_eot_id(tokenizer));

    /* There are never more tokens than bytes, so one call is enough. */
    size_t count;
    uint32_t *tokens = (uint32_t *)allocate(size * sizeof *tokens);
    check(mi_tokenizer_encode(tokenizer, text, size, MI_TOKENIZER_SPECIAL_REFUSE, tokens, size, &count));
    for (size_t i = 0; i < count; ++i) {
        uint8_t bytes[256];
        size_t length;
        check(mi_tokenizer_token_bytes(tokenizer, tokens[i], bytes, sizeof bytes, &length));
        printf("%u `%.*s`\n", (unsigned)tokens[i], (int)length, (const char *)bytes);
    }

    /* The first call asks for the length. */
    size_t needed = 0;
    mi_tokenizer_status status = mi_tokenizer_decode(tokenizer, tokens, count, NULL, 0, &needed);
    if (status != MI_TOKENIZER_ERR_CAPACITY) check(status);
    uint8_t *decoded = (uint8_t *)allocate(needed);
    check(mi_tokenizer_decode(tokenizer, tokens, count, decoded, needed, &needed));
    int same = needed == size && memcmp(decoded, text, size) == 0;
    puts(same ? "decoded: the same text" : "decoded: another text");

    free(decoded);
    free(tokens);
    mi_tokenizer_free(tokenizer);
    return same ? EXIT_SUCCESS : EXIT_FAILURE;
}
