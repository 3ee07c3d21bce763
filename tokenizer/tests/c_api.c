/* Calls every function of the C interface as it is meant to be called and as it is not. Run by tests/c_api.rs, in a
 * directory of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mamba_integer_tokenizer.h"

#define REQUIRE(condition)                                                                                     \
    do {                                                                                                       \
        if (!(condition)) {                                                                                    \
            fprintf(stderr, "line %d: %s\nlast error: %s\n", __LINE__, #condition, mi_tokenizer_last_error()); \
            exit(EXIT_FAILURE);                                                                                \
        }                                                                                                      \
    } while (0)

static const char FILE_TEXT[] =
    "mamba-integer-bpe 1\npattern gpt4\nmerges 2\n97 98\n256 99\nspecial 1\n<|endoftext|>\n";

static int said(const char *part) { return strstr(mi_tokenizer_last_error(), part) != NULL; }

static void write_file(const char *path, const char *text) {
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    REQUIRE(fwrite(text, 1, strlen(text), file) == strlen(text));
    REQUIRE(fclose(file) == 0);
}

static mi_tokenizer *make(void) {
    mi_tokenizer *tokenizer = NULL;
    REQUIRE(mi_tokenizer_from_bytes(FILE_TEXT, sizeof FILE_TEXT - 1, &tokenizer) == MI_TOKENIZER_OK);
    REQUIRE(tokenizer != NULL);
    return tokenizer;
}

static void test_making(void) {
    mi_tokenizer *tokenizer = make();
    REQUIRE(mi_tokenizer_vocab_size(tokenizer) == 259);
    REQUIRE(mi_tokenizer_eot_id(tokenizer) == 258);
    mi_tokenizer *const kept = tokenizer;

    REQUIRE(mi_tokenizer_from_bytes("x\n", 2, &tokenizer) == MI_TOKENIZER_ERR_FORMAT);
    REQUIRE(tokenizer == NULL && said("line 1"));
    REQUIRE(mi_tokenizer_from_bytes(NULL, 0, &tokenizer) == MI_TOKENIZER_ERR_FORMAT);
    REQUIRE(mi_tokenizer_from_bytes(NULL, 1, &tokenizer) == MI_TOKENIZER_ERR_ARGUMENT && said("data is NULL"));
    REQUIRE(mi_tokenizer_from_bytes(FILE_TEXT, (size_t)-1, &tokenizer) == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_from_bytes(FILE_TEXT, 1, NULL) == MI_TOKENIZER_ERR_ARGUMENT && said("out is NULL"));

    write_file("a.bpe", FILE_TEXT);
    REQUIRE(mi_tokenizer_load("a.bpe", &tokenizer) == MI_TOKENIZER_OK);
    REQUIRE(mi_tokenizer_vocab_size(tokenizer) == 259);
    mi_tokenizer_free(tokenizer);
    REQUIRE(mi_tokenizer_load("none.bpe", &tokenizer) == MI_TOKENIZER_ERR_IO && said("none.bpe"));
    REQUIRE(tokenizer == NULL);
    REQUIRE(mi_tokenizer_load(NULL, &tokenizer) == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_load("a.bpe", NULL) == MI_TOKENIZER_ERR_ARGUMENT);

    mi_tokenizer_free(kept);
    mi_tokenizer_free(NULL);
    REQUIRE(mi_tokenizer_vocab_size(NULL) == 0);
    REQUIRE(mi_tokenizer_eot_id(NULL) == UINT32_MAX);
}

static void test_encode(void) {
    mi_tokenizer *tokenizer = make();
    uint32_t tokens[16] = {0};
    size_t needed = 77;
    REQUIRE(mi_tokenizer_encode(tokenizer, "abcab\xff", 6, MI_TOKENIZER_SPECIAL_REFUSE, tokens, 3, &needed) ==
            MI_TOKENIZER_OK);
    REQUIRE(needed == 3 && tokens[0] == 257 && tokens[1] == 256 && tokens[2] == 255 && tokens[3] == 0);

    memset(tokens, 0, sizeof tokens);
    REQUIRE(mi_tokenizer_encode(tokenizer, "abcab\xff", 6, MI_TOKENIZER_SPECIAL_REFUSE, tokens, 2, &needed) ==
            MI_TOKENIZER_ERR_CAPACITY);
    REQUIRE(needed == 3 && tokens[0] == 0);
    REQUIRE(mi_tokenizer_encode(tokenizer, "abc", 3, MI_TOKENIZER_SPECIAL_REFUSE, NULL, 0, &needed) ==
            MI_TOKENIZER_ERR_CAPACITY);
    REQUIRE(needed == 1);
    REQUIRE(mi_tokenizer_encode(tokenizer, NULL, 0, MI_TOKENIZER_SPECIAL_REFUSE, NULL, 0, &needed) == MI_TOKENIZER_OK);
    REQUIRE(needed == 0);

    const char *special = "a<|endoftext|>";
    REQUIRE(mi_tokenizer_encode(tokenizer, special, 14, MI_TOKENIZER_SPECIAL_REFUSE, tokens, 16, &needed) ==
            MI_TOKENIZER_ERR_SPECIAL);
    REQUIRE(said("byte 1"));
    REQUIRE(mi_tokenizer_encode(tokenizer, special, 14, MI_TOKENIZER_SPECIAL_ALL, tokens, 16, &needed) ==
            MI_TOKENIZER_OK);
    REQUIRE(needed == 2 && tokens[0] == 'a' && tokens[1] == 258);
    REQUIRE(mi_tokenizer_encode(tokenizer, special, 14, MI_TOKENIZER_SPECIAL_AS_TEXT, tokens, 16, &needed) ==
            MI_TOKENIZER_OK);
    REQUIRE(needed == 14 && tokens[1] == '<');

    const mi_tokenizer_special none = (mi_tokenizer_special)3;
    REQUIRE(mi_tokenizer_encode(tokenizer, "a", 1, none, tokens, 16, &needed) == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_encode(NULL, "a", 1, MI_TOKENIZER_SPECIAL_ALL, tokens, 16, &needed) ==
            MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_encode(tokenizer, NULL, 1, MI_TOKENIZER_SPECIAL_ALL, tokens, 16, &needed) ==
            MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_encode(tokenizer, "a", 1, MI_TOKENIZER_SPECIAL_ALL, NULL, 16, &needed) ==
            MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_encode(tokenizer, "a", 1, MI_TOKENIZER_SPECIAL_ALL, tokens, 16, NULL) ==
            MI_TOKENIZER_ERR_ARGUMENT);
    mi_tokenizer_free(tokenizer);
}

static void test_decode(void) {
    mi_tokenizer *tokenizer = make();
    const uint32_t tokens[] = {257, 0, 258};
    uint8_t bytes[32] = {0};
    size_t needed = 0;
    REQUIRE(mi_tokenizer_decode(tokenizer, tokens, 3, bytes, sizeof bytes, &needed) == MI_TOKENIZER_OK);
    REQUIRE(needed == 17 && memcmp(bytes, "abc\0<|endoftext|>", 17) == 0);
    REQUIRE(mi_tokenizer_decode(tokenizer, tokens, 3, NULL, 0, &needed) == MI_TOKENIZER_ERR_CAPACITY && needed == 17);
    REQUIRE(mi_tokenizer_decode(tokenizer, NULL, 0, NULL, 0, &needed) == MI_TOKENIZER_OK && needed == 0);
    const uint32_t unknown = 259;
    REQUIRE(mi_tokenizer_decode(tokenizer, &unknown, 1, bytes, sizeof bytes, &needed) == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(said("259"));
    REQUIRE(mi_tokenizer_decode(tokenizer, tokens, (size_t)-1 / 4, bytes, sizeof bytes, &needed) ==
            MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_decode(NULL, tokens, 3, bytes, sizeof bytes, &needed) == MI_TOKENIZER_ERR_ARGUMENT);

    REQUIRE(mi_tokenizer_token_bytes(tokenizer, 257, bytes, 3, &needed) == MI_TOKENIZER_OK);
    REQUIRE(needed == 3 && memcmp(bytes, "abc", 3) == 0);
    REQUIRE(mi_tokenizer_token_bytes(tokenizer, 257, bytes, 2, &needed) == MI_TOKENIZER_ERR_CAPACITY && needed == 3);
    REQUIRE(mi_tokenizer_token_bytes(tokenizer, 259, bytes, 3, &needed) == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_token_bytes(NULL, 0, bytes, 3, &needed) == MI_TOKENIZER_ERR_ARGUMENT);
    mi_tokenizer_free(tokenizer);
}

static void test_train(void) {
    write_file("text.txt", "low lower\n<|endoftext|>\nlowest\n");
    REQUIRE(mi_tokenizer_train_file("text.txt", 259, "trained.bpe") == MI_TOKENIZER_OK);
    mi_tokenizer *tokenizer = NULL;
    REQUIRE(mi_tokenizer_load("trained.bpe", &tokenizer) == MI_TOKENIZER_OK);
    REQUIRE(mi_tokenizer_vocab_size(tokenizer) == 259);
    mi_tokenizer_free(tokenizer);
    REQUIRE(mi_tokenizer_train_file("text.txt", 256, "b.bpe") == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_train_file("none.txt", 259, "b.bpe") == MI_TOKENIZER_ERR_IO && said("none.txt"));
    REQUIRE(mi_tokenizer_train_file("text.txt", 259, "none/b.bpe") == MI_TOKENIZER_ERR_IO);
    REQUIRE(mi_tokenizer_train_file(NULL, 259, "b.bpe") == MI_TOKENIZER_ERR_ARGUMENT);
    REQUIRE(mi_tokenizer_train_file("text.txt", 259, NULL) == MI_TOKENIZER_ERR_ARGUMENT);
    write_file("text.txt", "low\xff");
    REQUIRE(mi_tokenizer_train_file("text.txt", 259, "b.bpe") == MI_TOKENIZER_ERR_ARGUMENT && said("UTF-8"));
}

int main(void) {
    REQUIRE(strcmp(mi_tokenizer_last_error(), "") == 0);
    test_making();
    test_encode();
    test_decode();
    test_train();
    return EXIT_SUCCESS;
}
