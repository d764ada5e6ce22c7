/* Writes the exact f32 logits that llama.cpp computes for a text, chunk by chunk from a cleared cache:
 *
 *     llama_logits MODEL.gguf TEXT CHUNK N_CHUNKS OUT
 *
 * OUT holds, native-endian: i32 CHUNK, i32 N_CHUNKS, i32 V; the token ids i32 [N_CHUNKS][CHUNK]; the logits
 * f32 [N_CHUNKS][CHUNK][V]. The text is tokenized once, with BOS where the vocabulary adds it, and every chunk's first
 * token is replaced by BOS then. All settings of the context but the sizes are the library's defaults.
 *
 * cc -O2 -I $LLAMA/include -I $LLAMA/ggml/include llama_logits.c -L $LLAMA/build/bin -lllama -lggml -lggml-base -o llama_logits
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void die(const char *what) {
    fprintf(stderr, "llama_logits: %s\n", what);
    exit(1);
}

static char *slurp(const char *path, long *len) {
    FILE *f = fopen(path, "rb");
    if (!f) die(path);
    fseek(f, 0, SEEK_END);
    *len = ftell(f);
    rewind(f);
    char *text = malloc(*len + 1);
    if (!text || fread(text, 1, *len, f) != (size_t)*len) die("cannot read the text");
    fclose(f);
    return text;
}

int main(int argc, char **argv) {
    if (argc != 6) die("usage: llama_logits MODEL.gguf TEXT CHUNK N_CHUNKS OUT");
    int chunk = atoi(argv[3]), n_chunks = atoi(argv[4]);
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) die("cannot load the model");
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    int n_vocab = llama_vocab_n_tokens(vocab);

    long len;
    char *text = slurp(argv[2], &len);
    llama_token *ids = malloc(sizeof *ids * (len + 2));
    int n_ids = llama_tokenize(vocab, text, (int)len, ids, (int)len + 2, true, false);
    if (n_ids < chunk * n_chunks) die("the text has too few tokens");
    if (llama_vocab_get_add_bos(vocab))
        for (int c = 0; c < n_chunks; c++) ids[c * chunk] = llama_vocab_bos(vocab);

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = chunk;
    params.n_threads = params.n_threads_batch = 2;
    struct llama_context *ctx = llama_init_from_model(model, params);
    if (!ctx) die("cannot make a context");
    FILE *out = fopen(argv[5], "wb");
    if (!out) die(argv[5]);
    int32_t head[3] = {chunk, n_chunks, n_vocab};
    fwrite(head, sizeof *head, 3, out);
    fwrite(ids, sizeof *ids, (size_t)chunk * n_chunks, out);
    struct llama_batch batch = llama_batch_init(chunk, 0, 1);
    for (int c = 0; c < n_chunks; c++) {
        llama_memory_clear(llama_get_memory(ctx), true);
        batch.n_tokens = chunk;
        for (int i = 0; i < chunk; i++) {
            batch.token[i] = ids[c * chunk + i];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        if (llama_decode(ctx, batch) != 0) die("llama_decode failed");
        for (int i = 0; i < chunk; i++) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), n_vocab, out);
    }
    if (fclose(out) != 0) die("cannot write");
    return 0;
}
