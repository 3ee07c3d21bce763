/* Generates token ids with the C interface: generate MODEL.gguf [N]. Begins with the start token, chooses N tokens (default 20), goes back to the state
 * that it saved in the middle, and checks that the second half is the same again.
 *
 *   cc generate.c $(pkg-config --cflags --libs mamba_integer) -o generate
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <mamba_integer.h>

static void check(mi_status status) {
    if (status == MI_OK) return;
    fprintf(stderr, "generate: error: %s\n", mi_last_error());
    exit(2);
}

int main(int argc, char **argv) {
    mi_model *model;
    mi_session *session;
    mi_config config;
    const mi_sampling sampling = {52429 /* temperature 0.8 in Q16 */, 40, 65536, 7};
    unsigned n = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 20, again = 0;
    uint32_t token, *tokens;
    void *state = NULL;
    size_t size;

    if (argc < 2 || n == 0) {
        fprintf(stderr, "usage: generate MODEL.gguf [N]\n");
        return 2;
    }
    check(mi_model_load(argv[1], &model));
    check(mi_session_new(model, &session));
    mi_model_get_config(model, &config);
    size = mi_session_state_size(session);
    state = malloc(size);
    tokens = malloc(n * sizeof *tokens);
    if (!state || !tokens) return 2;

    token = config.vocab_size - 1; /* <|endoftext|> begins every text */
    for (unsigned i = 0; i < n; ++i) {
        check(mi_session_feed(session, &token, 1, NULL));
        if (i == n / 2) check(mi_session_save(session, state, size));
        check(mi_session_sample(session, &sampling, i, &token));
        tokens[i] = token;
        printf("%s%" PRIu32, i ? " " : "", token);
    }
    printf("\n");

    check(mi_session_restore(session, state, size));
    for (unsigned i = n / 2; i < n; ++i) {
        check(mi_session_sample(session, &sampling, i, &token));
        again += token == tokens[i];
        check(mi_session_feed(session, &token, 1, NULL));
    }
    printf("%s, %s kernels: %u of %u tokens again from a state of %zu bytes\n", mi_model_name(model), mi_isa(), again,
           n - n / 2, size);
    free(tokens);
    free(state);
    mi_session_free(session);
    mi_model_free(model);
    return again != n - n / 2;
}
