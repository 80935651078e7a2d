/* llama.cpp as the benchmarks drive it: one command a line on standard input, its seconds on standard output.
 *
 *     llamacpp quantize IN.gguf OUT.gguf q8_0|q4_0|q4_1|q4_k_m
 *     llamacpp serve MODEL.gguf MMPROJ.gguf|- THREADS CONTEXT on|off     (flash attention)
 *
 *     tiles N            N tiles through vision encoder and connector
 *     generate P S       a prompt of P tokens, then each of S greedy steps
 *     answer N P S       N tiles, then a prompt of P tokens of which 64 a tile are image embeddings, then S tokens: first token, total
 *
 *     llamacpp logits MODEL.gguf THREADS CONTEXT     one decoder for benches/quality, by the protocol of its peer.rs
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-backend.h"
#include "llama.h"
#include "mtmd.h"

static struct llama_model *model;
static struct llama_context *context;
static mtmd_context *vision;
static mtmd_input_chunks *chunks;
static const mtmd_input_chunk *tile;
static int32_t vocabulary, width;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void stop(const char *what) {
    fprintf(stderr, "llamacpp: %s\n", what);
    exit(1);
}

static void warnings(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

/* The likeliest token after the last one that was decoded. */
static llama_token likeliest(void) {
    const float *logits = llama_get_logits_ith(context, -1);
    llama_token best = 0;
    for (llama_token i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* Decodes `count` positions from `start`: `tokens`, or embeddings where those are NULL. Only the last one has logits if `last`. */
static void decode(const llama_token *tokens, float *embeddings, int32_t count, llama_pos start, int last) {
    struct llama_batch batch = llama_batch_init(count, tokens ? 0 : width, 1);
    batch.n_tokens = count;
    if (tokens) memcpy(batch.token, tokens, (size_t)count * sizeof *tokens);
    else memcpy(batch.embd, embeddings, (size_t)count * (size_t)width * sizeof *embeddings);
    for (int32_t i = 0; i < count; i++) {
        batch.pos[i] = start + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = last && i == count - 1;
    }
    if (llama_decode(context, batch) != 0) stop("llama_decode refuses a batch");
    llama_batch_free(batch);
}

static void read_prompt(int32_t count, llama_pos start) {
    llama_token *tokens = malloc((size_t)count * sizeof *tokens);
    for (int32_t i = 0; i < count; i++) tokens[i] = i % 400;
    decode(tokens, NULL, count, start, 1);
    free(tokens);
}

static void encode_tile(void) {
    if (!vision) stop("serve was started without a vision encoder");
    if (mtmd_encode_chunk(vision, tile) != 0) stop("mtmd refuses a tile");
}

static void tiles(int32_t count) {
    double start = now();
    for (int32_t i = 0; i < count; i++) encode_tile();
    printf("%.9f\n", now() - start);
}

static void generate(int32_t prompt, int32_t steps) {
    llama_memory_clear(llama_get_memory(context), true);
    double start = now();
    read_prompt(prompt, 0);
    llama_token token = likeliest();
    printf("%.9f", now() - start);
    for (int32_t i = 0; i < steps; i++) {
        start = now();
        decode(&token, NULL, 1, prompt + i, 1);
        token = likeliest();
        printf(" %.9f", now() - start);
    }
    printf("\n");
}

static void answer(int32_t count, int32_t prompt, int32_t steps) {
    llama_memory_clear(llama_get_memory(context), true);
    double start = now();
    int32_t rows = (int32_t)mtmd_input_chunk_get_n_tokens(tile), position = 0;
    for (int32_t i = 0; i < count; i++, position += rows) {
        encode_tile();
        decode(NULL, mtmd_get_output_embd(vision), rows, position, 0);
    }
    read_prompt(prompt - position, position);
    llama_token token = likeliest();
    double first = now() - start;
    for (int32_t i = 0; i + 1 < steps; i++) {
        decode(&token, NULL, 1, prompt + i, 1);
        token = likeliest();
    }
    printf("%.9f %.9f\n", first, now() - start);
}

/* mtmd cuts every picture into tiles and an overview; each is a chunk. One of them is all we need. */
static void load_vision(const char *path, int32_t threads, enum llama_flash_attn_type flash) {
    struct mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = false;
    params.n_threads = threads;
    params.flash_attn_type = flash;
    params.warmup = false;
    params.print_timings = false;
    vision = mtmd_init_from_file(path, model, params);
    if (!vision) stop("no vision encoder there");
    enum { SIDE = 512 };
    unsigned char *pixels = malloc(3 * SIDE * SIDE);
    for (size_t i = 0; i < 3 * SIDE * SIDE; i++) pixels[i] = (unsigned char)(i * 2654435761u >> 24);
    mtmd_bitmap *bitmap = mtmd_bitmap_init(SIDE, SIDE, pixels);
    free(pixels);
    const char *marker = mtmd_default_marker();
    struct mtmd_input_text text = {.text = marker, .text_len = strlen(marker), .add_special = false, .parse_special = true};
    const mtmd_bitmap *bitmaps[] = {bitmap};
    chunks = mtmd_input_chunks_init();
    if (mtmd_tokenize(vision, chunks, &text, bitmaps, 1) != 0) stop("mtmd refuses a picture");
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk *chunk = mtmd_input_chunks_get(chunks, i);
        if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_IMAGE) tile = chunk;
    }
    if (!tile) stop("mtmd makes no tile of a picture");
    mtmd_bitmap_free(bitmap);
}

static void load(char **arguments) {
    int32_t threads = atoi(arguments[2]), length = atoi(arguments[3]);
    enum llama_flash_attn_type flash = strcmp(arguments[4], "on") ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    model = llama_model_load_from_file(arguments[0], llama_model_default_params());
    if (!model) stop("no model there");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)length;
    params.n_batch = (uint32_t)length;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = flash;
    params.no_perf = true;
    context = llama_init_from_model(model, params);
    if (!context) stop("no context for this model");
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    width = llama_model_n_embd(model);
    if (strcmp(arguments[1], "-")) load_vision(arguments[1], threads, flash);
}

static void serve(void) {
    char line[256];
    int a, b, c;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "tiles %d", &a) == 1) tiles(a);
        else if (sscanf(line, "generate %d %d", &a, &b) == 2) generate(a, b);
        else if (sscanf(line, "answer %d %d %d", &a, &b, &c) == 3) answer(a, b, c);
        else stop("no such command");
        fflush(stdout);
    }
}

/* Numbers of four bytes on standard output, as this machine has them. */
static void put(const void *numbers, size_t count) {
    if (fwrite(numbers, 4, count, stdout) != count || fflush(stdout) != 0) stop("nobody reads");
}

static void give_logits(int32_t length) {
    size_t room = 16 * (size_t)length + 16;
    char *line = malloc(room);
    llama_token *tokens = malloc((size_t)length * sizeof *tokens);
    int32_t position = 0;
    put(&vocabulary, 1);
    while (fgets(line, (int)room, stdin)) {
        char *rest = strchr(line, ' ');
        if (!rest) stop("no such command");
        if (!strncmp(line, "truncate ", 9)) {
            int32_t kept = (int32_t)strtol(rest, NULL, 10);
            position = kept < position ? kept : position;
            llama_memory_seq_rm(llama_get_memory(context), 0, position, -1);
        } else if (!strncmp(line, "append ", 7)) {
            int32_t count = 0;
            for (char *end; position + count < length; rest = end) {
                long id = strtol(rest, &end, 10);
                if (end == rest) break;
                tokens[count++] = (llama_token)id;
            }
            decode(tokens, NULL, count, position, 1);
            position += count;
            put(llama_get_logits_ith(context, -1), (size_t)vocabulary);
        } else stop("no such command");
    }
    free(tokens);
    free(line);
}

/* The number of what the file is to be, or -1. */
static int kind(const char *name) {
    static const struct {
        const char *name;
        enum llama_ftype kind;
    } known[] = {
        {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
        {"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
        {"q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
        {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return (int)known[i].kind;
    return -1;
}

int main(int count, char **arguments) {
    llama_log_set(warnings, NULL);
    mtmd_log_set(warnings, NULL);
    llama_backend_init();
    if (count == 5 && !strcmp(arguments[1], "quantize")) {
        struct llama_model_quantize_params params = llama_model_quantize_default_params();
        if (kind(arguments[4]) < 0) stop("quantize: no such type");
        params.ftype = (enum llama_ftype)kind(arguments[4]);
        return (int)llama_model_quantize(arguments[2], arguments[3], &params);
    }
    if (count == 5 && !strcmp(arguments[1], "logits")) {
        load((char *[]){arguments[2], "-", arguments[3], arguments[4], "on"});
        give_logits(atoi(arguments[4]));
        return 0;
    }
    if (count != 7 || strcmp(arguments[1], "serve")) stop("quantize IN OUT TYPE, or serve MODEL MMPROJ THREADS CONTEXT FLASH");
    double start = now();
    load(arguments + 2);
    printf("ready %.9f\n", now() - start);
    fflush(stdout);
    serve();
    return 0;
}
