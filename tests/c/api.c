/* What the API promises to a caller who keeps to it: api MODEL_DIR IMAGE_FILE */

#include "check.h"

static const char question[] = "What objects are in this image?";

static void versions(void) {
    CHECK(strcmp(smolvlm_version(), SMOLVLM_VERSION_STRING) == 0);
    CHECK(smolvlm_version_number() == SMOLVLM_VERSION_NUMBER);
    CHECK(strstr(smolvlm_build_info(), SMOLVLM_VERSION_STRING) == smolvlm_build_info());
    CHECK(strstr(smolvlm_build_info(), " candle onnx") != NULL);
    CHECK(strcmp(smolvlm_status_name(SMOLVLM_STATUS_OK), "OK") == 0);
    CHECK(strcmp(smolvlm_status_name(SMOLVLM_STATUS_CONTEXT_OVERFLOW), "CONTEXT_OVERFLOW") == 0);
    CHECK(strcmp(smolvlm_status_name(10), "UNKNOWN") == 0);
    CHECK(strcmp(smolvlm_status_name(-1), "UNKNOWN") == 0);
}

static void encoded_and_default_options(const char *model_dir, const char *image_file) {
    smolvlm_engine *engine = NULL;
    smolvlm_result *result = NULL;
    smolvlm_image image;
    smolvlm_request request = ask(question, &image, 1);
    memset(&image, 0, sizeof image);
    image.data = read_file(image_file, &image.data_size);
    request.max_new_tokens = 0;
    CHECK_OK(smolvlm_create(model_dir, NULL, &engine));
    CHECK_OK(smolvlm_process(engine, &request, &result));
    CHECK(smolvlm_result_text(result, NULL)[0] != '\0');
    smolvlm_result_free(result);
    smolvlm_free(engine);
    free((void *)image.data);
}

/* The same picture in every layout gets the same answer; the strides and the fourth bytes hold garbage. A gray one
   is another picture, and the same in 8 and 16 bits. */
static void layouts(smolvlm_engine *engine) {
    const size_t paddings[] = {0, 1, 64};
    smolvlm_result *colours = NULL, *gray = NULL;
    size_t f, p;
    for (f = 0; f < sizeof raw_formats / sizeof raw_formats[0]; f++) {
        for (p = 0; p < sizeof paddings / sizeof paddings[0]; p++) {
            const smolvlm_image image = red_square(raw_formats[f], paddings[p]);
            const smolvlm_request request = ask(question, &image, 1);
            smolvlm_result **expected = pixel_bytes(raw_formats[f]) < 3 ? &gray : &colours;
            smolvlm_result *result = NULL;
            CHECK_OK(smolvlm_process(engine, &request, &result));
            free((void *)image.data);
            if (*expected == NULL) {
                *expected = result;
                continue;
            }
            CHECK(same_tokens(result, *expected));
            smolvlm_result_free(result);
        }
    }
    smolvlm_result_free(colours);
    smolvlm_result_free(gray);
}

struct pieces {
    char text[4096];
    size_t size;
    int calls;
};

static int32_t collect(void *user_data, const char *text, size_t size) {
    struct pieces *pieces = (struct pieces *)user_data;
    CHECK(strlen(text) == size);
    CHECK(size > 0);
    CHECK(pieces->size + size < sizeof pieces->text);
    memcpy(pieces->text + pieces->size, text, size + 1);
    pieces->size += size;
    pieces->calls++;
    return 0;
}

static void result_and_stream(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *result = NULL;
    smolvlm_metrics metrics;
    struct pieces pieces;
    size_t size, count, prompt_count;
    const char *text;
    memset(&pieces, 0, sizeof pieces);
    request.on_text = collect;
    request.user_data = &pieces;
    CHECK_OK(smolvlm_process(engine, &request, &result));

    text = smolvlm_result_text(result, &size);
    CHECK(size > 0 && strlen(text) == size);
    CHECK(pieces.calls > 0 && pieces.size == size && strcmp(pieces.text, text) == 0);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_END_OF_TEXT ||
          smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_MAX_TOKENS);
    CHECK(smolvlm_result_tokens(result, &count) != NULL && count > 0 && count <= 12);
    CHECK(smolvlm_result_tokens(result, NULL) == smolvlm_result_tokens(result, &count));
    CHECK(smolvlm_result_prompt_tokens(result, &prompt_count) != NULL);

    memset(&metrics, 0xff, sizeof metrics);
    metrics.struct_size = sizeof metrics;
    CHECK_OK(smolvlm_result_metrics(result, &metrics));
    CHECK(metrics.struct_size == sizeof metrics);
    CHECK(metrics.tiles > 0 && metrics.image_tokens > 0);
    CHECK(metrics.prompt_tokens == prompt_count && metrics.image_tokens < prompt_count);
    CHECK(metrics.generated_tokens == count && metrics.cached_tokens == 0);
    CHECK(metrics.preprocess_ms > 0 && metrics.vision_ms > 0 && metrics.prefill_ms > 0 && metrics.decode_ms > 0);
    CHECK(metrics.time_to_first_token_ms >= metrics.vision_ms + metrics.prefill_ms);
    CHECK(metrics.total_ms >= metrics.time_to_first_token_ms);
    CHECK(metrics.backend == SMOLVLM_BACKEND_CANDLE);
    CHECK(metrics.device == SMOLVLM_DEVICE_CPU);
    /* What `auto` becomes is the processor's affair; that it is said is not. */
    CHECK(metrics.dtype == SMOLVLM_DTYPE_F32 || metrics.dtype == SMOLVLM_DTYPE_INT8);
    CHECK(metrics.kv_cache == metrics.dtype && metrics.reserved == 0);
    smolvlm_result_free(result);
}

/* Keys and values in 16 bits beside weights in 8, and in 8 beside weights in 16. */
static void keys_and_values(const char *model_dir) {
    static const int32_t choices[][2] = {{SMOLVLM_DTYPE_INT8, SMOLVLM_DTYPE_BF16}, {SMOLVLM_DTYPE_BF16, SMOLVLM_DTYPE_INT8}};
    size_t i;
    for (i = 0; i < sizeof choices / sizeof choices[0]; i++) {
        const smolvlm_request request = ask(question, NULL, 0);
        smolvlm_options options = default_options();
        smolvlm_metrics metrics;
        smolvlm_engine *engine = NULL;
        smolvlm_result *result = NULL;
        memset(&metrics, 0, sizeof metrics);
        options.backend = SMOLVLM_BACKEND_CANDLE;
        options.dtype = choices[i][0];
        options.kv_cache = choices[i][1];
        CHECK_OK(smolvlm_create(model_dir, &options, &engine));
        CHECK_OK(smolvlm_process(engine, &request, &result));
        metrics.struct_size = sizeof metrics;
        CHECK_OK(smolvlm_result_metrics(result, &metrics));
        CHECK(metrics.dtype == choices[i][0] && metrics.kv_cache == choices[i][1]);
        smolvlm_result_free(result);
        smolvlm_free(engine);
    }
}

static smolvlm_result *process(smolvlm_engine *engine, const smolvlm_request *request) {
    smolvlm_result *result = NULL;
    CHECK_OK(smolvlm_process(engine, request, &result));
    return result;
}

static void limits_of_an_answer(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *whole = process(engine, &request);
    smolvlm_result *result;
    const char *stops[2] = {"no such text", NULL};
    char second[2] = {0, 0};
    size_t size, count;
    const char *text = smolvlm_result_text(whole, &size);

    /* Not one: an answer's first token may be the space that is stripped. */
    request.max_new_tokens = 3;
    result = process(engine, &request);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_MAX_TOKENS);
    CHECK(smolvlm_result_tokens(result, &count) != NULL && count == 3);
    CHECK(strlen(smolvlm_result_text(result, NULL)) >= 1);
    CHECK(strncmp(smolvlm_result_text(result, NULL), text, strlen(smolvlm_result_text(result, NULL))) == 0);
    smolvlm_result_free(result);
    request.max_new_tokens = 12;

    CHECK(size > 1 && (unsigned char)text[1] < 0x80);
    second[0] = text[1];
    stops[1] = second;
    request.stop = stops;
    request.stop_count = 2;
    result = process(engine, &request);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_STOP_STRING);
    CHECK(strlen(smolvlm_result_text(result, &size)) == size && size <= 1);
    CHECK(strncmp(smolvlm_result_text(result, NULL), text, size) == 0);
    smolvlm_result_free(result);
    smolvlm_result_free(whole);
}

/* A picture this size takes longer than a millisecond on any machine. */
static void deadline(smolvlm_engine *engine) {
    smolvlm_image image;
    smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result;
    memset(&image, 0, sizeof image);
    image.width = image.height = 4000;
    image.format = SMOLVLM_FORMAT_GRAY8;
    image.data_size = (size_t)image.width * image.height;
    image.data = calloc(image.data_size, 1);
    CHECK(image.data != NULL);
    request.timeout_ms = 1;
    result = process(engine, &request);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_TIMEOUT);
    smolvlm_result_free(result);
    free((void *)image.data);
}

static void seeds(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *a, *b;
    uint64_t seed;
    int differing = 0;
    request.temperature = 20.0f; /* so that a sure model varies too */
    request.top_k = 50;
    request.top_p = 0.95f;
    request.min_p = 0.001f;
    request.repetition_penalty = 1.1f;
    a = process(engine, &request);
    for (seed = 0; seed < 8; seed++) {
        request.seed = seed;
        b = process(engine, &request);
        CHECK(seed != 0 || same_tokens(a, b));
        differing += !same_tokens(a, b);
        smolvlm_result_free(b);
    }
    CHECK(differing > 0);
    smolvlm_result_free(a);
}

/* Both penalties reach the engine, each as itself. */
static void penalties(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *plain, *frequency, *presence;
    int frequent = 0, present = 0, apart = 0;
    request.max_new_tokens = 40;
    request.temperature = 4.0f; /* the model is sure of its likeliest answer */
    for (request.seed = 0; request.seed < 4; request.seed++) {
        plain = process(engine, &request);
        request.frequency_penalty = 2.0f;
        frequency = process(engine, &request);
        request.frequency_penalty = 0.0f;
        request.presence_penalty = 2.0f;
        presence = process(engine, &request);
        request.presence_penalty = 0.0f;
        frequent += !same_tokens(plain, frequency);
        present += !same_tokens(plain, presence);
        apart += !same_tokens(frequency, presence);
        smolvlm_result_free(plain);
        smolvlm_result_free(frequency);
        smolvlm_result_free(presence);
    }
    CHECK(frequent > 0 && present > 0 && apart > 0);
}

/* A picture without words is a question; nothing at all is none. */
static void caption(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask("", image, 1);
    smolvlm_result *result = process(engine, &request);
    size_t count;
    smolvlm_result_tokens(result, &count);
    CHECK(count > 0 && smolvlm_result_text(result, NULL)[0] != '\0');
    smolvlm_result_free(result);
    request = ask("", NULL, 0);
    CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_INVALID_ARGUMENT, "prompt: empty");
}

static smolvlm_metrics metrics_of(const smolvlm_result *result) {
    smolvlm_metrics metrics;
    memset(&metrics, 0, sizeof metrics);
    metrics.struct_size = sizeof metrics;
    CHECK_OK(smolvlm_result_metrics(result, &metrics));
    return metrics;
}

static void conversation(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_session *session = NULL;
    smolvlm_request first = ask(question, image, 1);
    smolvlm_request second = ask("How many objects are there?", NULL, 0);
    smolvlm_request failing = second;
    smolvlm_result *stateless, *answers[3] = {NULL, NULL, NULL};
    size_t before, after;
    first.system_prompt = "Answer in one word.";
    stateless = process(engine, &first);
    CHECK_OK(smolvlm_session_new(engine, &session));
    CHECK_OK(smolvlm_session_process(session, &first, &answers[0]));
    CHECK(same_tokens(answers[0], stateless));
    /* A question that fails costs nothing of what the session knows. */
    failing.prompt = "";
    CHECK_FAILS(smolvlm_session_process(session, &failing, &answers[1]), SMOLVLM_STATUS_INVALID_ARGUMENT, "prompt: empty");
    failing.reserved = 1;
    CHECK_FAILS(smolvlm_session_process(session, &failing, &answers[1]), SMOLVLM_STATUS_INVALID_ARGUMENT, "request.reserved");
    CHECK_OK(smolvlm_session_process(session, &second, &answers[1]));
    smolvlm_result_prompt_tokens(answers[0], &before);
    smolvlm_result_prompt_tokens(answers[1], &after);
    CHECK(after > before);
    CHECK(metrics_of(answers[1]).cached_tokens >= before);
    CHECK(metrics_of(answers[1]).tiles == 0);

    CHECK_OK(smolvlm_session_reset(session));
    CHECK_OK(smolvlm_session_process(session, &first, &answers[2]));
    CHECK(same_tokens(answers[2], stateless));
    CHECK(metrics_of(answers[2]).cached_tokens == 0);
    smolvlm_result_free(stateless);
    smolvlm_result_free(answers[0]);
    smolvlm_result_free(answers[1]);
    smolvlm_result_free(answers[2]);
    smolvlm_session_free(session);
}

static void without_splitting(smolvlm_engine *engine, const smolvlm_image *image) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *result;
    request.no_split = 1;
    request.ignore_exif = 1;
    result = process(engine, &request);
    CHECK(metrics_of(result).tiles == 1);
    smolvlm_result_free(result);
}

static void listen(void *user_data, int32_t level, const char *message) {
    CHECK(level >= SMOLVLM_LOG_LEVEL_ERROR && level <= SMOLVLM_LOG_LEVEL_DEBUG);
    CHECK(message[0] != '\0' && strchr(message, '\n') == NULL);
    CHECK(smolvlm_set_log_callback(NULL, NULL) == SMOLVLM_STATUS_BUSY);
    ++*(int *)user_data;
}

static void log_messages(const char *model_dir) {
    int heard = 0;
    int before;
    CHECK_OK(smolvlm_set_log_callback(listen, &heard));
    smolvlm_free(load(model_dir));
    CHECK(heard > 0);
    before = heard;
    CHECK_OK(smolvlm_set_log_callback(NULL, NULL));
    smolvlm_free(load(model_dir));
    CHECK(heard == before);
}

int main(int argc, char **argv) {
    smolvlm_engine *engine;
    smolvlm_image image;
    CHECK(argc == 3);
    versions();
    encoded_and_default_options(argv[1], argv[2]);
    engine = load(argv[1]);
    image = red_square(SMOLVLM_FORMAT_BGR8, 7);
    layouts(engine);
    result_and_stream(engine, &image);
    limits_of_an_answer(engine, &image);
    deadline(engine);
    seeds(engine, &image);
    penalties(engine, &image);
    caption(engine, &image);
    conversation(engine, &image);
    without_splitting(engine, &image);
    free((void *)image.data);
    smolvlm_free(engine);
    keys_and_values(argv[1]);
    log_messages(argv[1]);
    return 0;
}
