/* What the API does for a caller who does not keep to it: misuse MODEL_DIR IMAGE_FILE
 *
 * Every buffer here ends where its contents end, so that Valgrind sees a byte read too many. */

#include "check.h"

#define INVALID SMOLVLM_STATUS_INVALID_ARGUMENT

static const char bad_utf8[] = "caf\xe9!";
static const char question[] = "What objects are in this image?";

/* A pointer that no call may leave in place. */
#define STALE(type) ((type *)(void *)&stale)
static int stale;

static void nulls(const char *model_dir, smolvlm_engine *engine, smolvlm_session *session) {
    const smolvlm_request request = ask(question, NULL, 0);
    smolvlm_request no_prompt = request;
    smolvlm_metrics metrics;
    smolvlm_engine *no_engine = STALE(smolvlm_engine);
    smolvlm_session *no_session = STALE(smolvlm_session);
    smolvlm_result *no_result = STALE(smolvlm_result);
    smolvlm_result *result = NULL;
    size_t count = 7;
    memset(&metrics, 0, sizeof metrics);
    metrics.struct_size = sizeof metrics;
    no_prompt.prompt = NULL;

    CHECK_FAILS(smolvlm_create(NULL, NULL, &no_engine), INVALID, "model_dir: NULL");
    CHECK(no_engine == NULL);
    CHECK_FAILS(smolvlm_create(model_dir, NULL, NULL), INVALID, "out: NULL");
    CHECK_FAILS(smolvlm_process(NULL, &request, &no_result), INVALID, "engine: NULL");
    CHECK(no_result == NULL);
    CHECK_FAILS(smolvlm_process(engine, NULL, &no_result), INVALID, "request: NULL");
    CHECK_FAILS(smolvlm_process(engine, &request, NULL), INVALID, "out: NULL");
    no_result = STALE(smolvlm_result);
    CHECK_FAILS(smolvlm_process(engine, &no_prompt, &no_result), INVALID, "request.prompt: NULL");
    CHECK(no_result == NULL);
    CHECK_FAILS(smolvlm_session_new(NULL, &no_session), INVALID, "engine: NULL");
    CHECK(no_session == NULL);
    CHECK_FAILS(smolvlm_session_new(engine, NULL), INVALID, "out: NULL");
    no_result = STALE(smolvlm_result);
    CHECK_FAILS(smolvlm_session_process(NULL, &request, &no_result), INVALID, "session: NULL");
    CHECK(no_result == NULL);
    CHECK_FAILS(smolvlm_session_process(session, NULL, &no_result), INVALID, "request: NULL");
    CHECK_FAILS(smolvlm_session_process(session, &request, NULL), INVALID, "out: NULL");
    CHECK_FAILS(smolvlm_session_reset(NULL), INVALID, "session: NULL");
    CHECK_FAILS(smolvlm_result_metrics(NULL, &metrics), INVALID, "result: NULL");
    smolvlm_session_cancel(NULL);
    smolvlm_session_free(NULL);
    smolvlm_result_free(NULL);
    smolvlm_free(NULL);

    CHECK(strcmp(smolvlm_result_text(NULL, &count), "") == 0 && count == 0);
    CHECK(strcmp(smolvlm_result_text(NULL, NULL), "") == 0);
    count = 7;
    CHECK(smolvlm_result_tokens(NULL, &count) == NULL && count == 0);
    count = 7;
    CHECK(smolvlm_result_prompt_tokens(NULL, &count) == NULL && count == 0);
    CHECK(smolvlm_result_finish_reason(NULL) == SMOLVLM_FINISH_REASON_NONE);

    CHECK_OK(smolvlm_process(engine, &request, &result));
    CHECK_FAILS(smolvlm_result_metrics(result, NULL), INVALID, "out: NULL");
    smolvlm_result_free(result);
}

#define CHECK_REQUEST(text) CHECK_FAILS(smolvlm_process(engine, &request, &result), INVALID, text)

static void strings(smolvlm_engine *engine) {
    const char *stops[2] = {"fine", bad_utf8};
    smolvlm_request request = ask(bad_utf8, NULL, 0);
    smolvlm_engine *other = NULL;
    smolvlm_result *result = NULL;
    smolvlm_options options = default_options();
    CHECK_FAILS(smolvlm_create(bad_utf8, NULL, &other), INVALID, "model_dir: byte 3 is not UTF-8");
    options.onnxruntime_path = bad_utf8;
    CHECK_FAILS(smolvlm_create("here", &options, &other), INVALID, "options.onnxruntime_path: byte 3 is not UTF-8");
    options = default_options();
    options.packed_cache_dir = bad_utf8;
    CHECK_FAILS(smolvlm_create("here", &options, &other), INVALID, "options.packed_cache_dir: byte 3 is not UTF-8");
    CHECK_REQUEST("request.prompt: byte 3 is not UTF-8");
    request.prompt = "";
    CHECK_REQUEST("request.prompt: ");
    request.prompt = question;
    request.system_prompt = bad_utf8;
    CHECK_REQUEST("request.system_prompt: byte 3 is not UTF-8");
    request.system_prompt = NULL;
    request.stop = stops;
    request.stop_count = 2;
    CHECK_REQUEST("request.stop[1]: byte 3 is not UTF-8");
    stops[1] = NULL;
    CHECK_REQUEST("request.stop[1]: NULL");
    stops[1] = "";
    CHECK_REQUEST("request.stop");
    request.stop = NULL;
    CHECK_REQUEST("request.stop: NULL");
    request.stop_count = (size_t)-1;
    CHECK_REQUEST("request.stop_count: ");
}

static void codes(const char *model_dir, smolvlm_engine *engine) {
    static const int32_t unknown[] = {-1, 100, INT32_MAX, INT32_MIN};
    const smolvlm_image square = red_square(SMOLVLM_FORMAT_RGB8, 0);
    smolvlm_engine *other = NULL;
    smolvlm_result *result = NULL;
    size_t i;
    for (i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        smolvlm_image image = square;
        const smolvlm_request request = ask(question, &image, 1);
        smolvlm_options options = default_options();
        options.backend = unknown[i];
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.backend: ");
        options = default_options();
        options.device = unknown[i];
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.device: ");
        options = default_options();
        options.dtype = unknown[i];
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.dtype: ");
        options = default_options();
        options.kv_cache = unknown[i];
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.kv_cache: ");
        options = default_options();
        options.reserved = unknown[i];
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.reserved: ");
        image.format = unknown[i];
        CHECK_REQUEST("request.images[0].format: ");
    }
    free((void *)square.data);
}

static void missing_devices(const char *model_dir) {
    smolvlm_engine *other = STALE(smolvlm_engine);
    smolvlm_options options = default_options();
    options.device = SMOLVLM_DEVICE_METAL;
    CHECK_FAILS(smolvlm_create(model_dir, &options, &other), SMOLVLM_STATUS_UNSUPPORTED, "metal");
    CHECK(other == NULL);
    options = default_options();
    options.context_tokens = UINT32_MAX;
    CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.context_tokens: 4294967295");
    options = default_options();
    options.max_memory_bytes = 1000;
    CHECK_FAILS(smolvlm_create(model_dir, &options, &other), SMOLVLM_STATUS_OUT_OF_MEMORY, "");
    CHECK_FAILS(smolvlm_create("/nowhere/at/all", NULL, &other), SMOLVLM_STATUS_NOT_FOUND, "/nowhere/at/all");
    options = default_options();
    options.dtype = SMOLVLM_DTYPE_F32;
    options.kv_cache = SMOLVLM_DTYPE_INT8;
    CHECK_FAILS(smolvlm_create(model_dir, &options, &other), SMOLVLM_STATUS_UNSUPPORTED,
                "kv_cache: int8; candle has f32 where dtype is f32");
}

/* A struct of `size` bytes, the rest of them `fill`, in memory that ends with it; freed by the caller. */
static void *resized(const void *value, size_t known, size_t size, int fill) {
    unsigned char *copy = (unsigned char *)malloc(size);
    CHECK(copy != NULL);
    memset(copy, fill, size);
    memcpy(copy, value, size < known ? size : known);
    memcpy(copy, &size, sizeof size);
    return copy;
}

static smolvlm_status process_resized(smolvlm_engine *engine, size_t size, int fill) {
    const smolvlm_request request = ask(question, NULL, 0);
    void *copy = resized(&request, sizeof request, size, fill);
    smolvlm_result *result = NULL;
    const smolvlm_status status = smolvlm_process(engine, (const smolvlm_request *)copy, &result);
    smolvlm_result_free(result);
    free(copy);
    return status;
}

static smolvlm_status create_resized(const char *model_dir, size_t size, int fill) {
    const smolvlm_options options = default_options();
    void *copy = resized(&options, sizeof options, size, fill);
    smolvlm_engine *engine = NULL;
    const smolvlm_status status = smolvlm_create(model_dir, (const smolvlm_options *)copy, &engine);
    smolvlm_free(engine);
    free(copy);
    return status;
}

static void struct_sizes(const char *model_dir, smolvlm_engine *engine) {
    static const size_t never[] = {0, 1, 4, 12, (size_t)-1, (size_t)-8, 1u << 20};
    const smolvlm_request request = ask(question, NULL, 0);
    const size_t two_fields = 2 * sizeof(size_t);
    smolvlm_result *result = NULL;
    size_t i;

    for (i = 0; i < sizeof never / sizeof never[0]; i++) {
        smolvlm_request odd = request;
        smolvlm_options options = default_options();
        smolvlm_engine *other = NULL;
        odd.struct_size = options.struct_size = never[i];
        CHECK_FAILS(smolvlm_process(engine, &odd, &result), INVALID, "request.struct_size: ");
        CHECK_FAILS(smolvlm_create(model_dir, &options, &other), INVALID, "options.struct_size: ");
    }
    CHECK_OK(process_resized(engine, two_fields, 0));
    CHECK_OK(process_resized(engine, sizeof request - sizeof(void *), 0));
    CHECK_OK(process_resized(engine, sizeof request + 64, 0));
    CHECK_FAILS(process_resized(engine, sizeof request + 64, 1), INVALID, "request.struct_size: ");
    CHECK_FAILS(process_resized(engine, sizeof(size_t), 0), INVALID, "request.prompt: NULL");
    CHECK_OK(create_resized(model_dir, sizeof(size_t), 0));
    CHECK_OK(create_resized(model_dir, sizeof(smolvlm_options) + 8, 0));
    CHECK_FAILS(create_resized(model_dir, sizeof(smolvlm_options) + 8, 1), INVALID, "options.struct_size: ");

    CHECK_OK(smolvlm_process(engine, &request, &result));
    {
        const size_t large = sizeof(smolvlm_metrics) + 16;
        smolvlm_metrics whole, *small, *larger;
        memset(&whole, 0xff, sizeof whole);
        small = (smolvlm_metrics *)resized(&whole, sizeof whole, two_fields, 0);
        larger = (smolvlm_metrics *)resized(&whole, sizeof whole, large, 0xff);
        CHECK_OK(smolvlm_result_metrics(result, small));
        CHECK(small->struct_size == two_fields && small->preprocess_ms >= 0);
        CHECK_OK(smolvlm_result_metrics(result, larger));
        CHECK(larger->struct_size == large && larger->prompt_tokens > 0);
        for (i = sizeof whole; i < large; i++) {
            CHECK(((unsigned char *)larger)[i] == 0);
        }
        for (i = 0; i < sizeof never / sizeof never[0]; i++) {
            whole.struct_size = never[i];
            CHECK_FAILS(smolvlm_result_metrics(result, &whole), INVALID, "out.struct_size: ");
        }
        free(small);
        free(larger);
    }
    smolvlm_result_free(result);
}

static void pictures(smolvlm_engine *engine, const char *image_file) {
    smolvlm_result *result = NULL;
    smolvlm_image good, image;
    const smolvlm_image none = {NULL, 0, 0, 0, 0, 0};
    smolvlm_request request;
    void *file;
    size_t f, size;

    image = none;
    request = ask(question, &image, 1);
    for (f = 0; f < sizeof raw_formats / sizeof raw_formats[0]; f++) {
        const size_t bytes = pixel_bytes(raw_formats[f]);
        unsigned char *exact;
        good = red_square(raw_formats[f], 3);
        exact = (unsigned char *)malloc(good.data_size - 1);
        CHECK(exact != NULL);
        memcpy(exact, good.data, good.data_size - 1);
        image = good;
        image.data = exact;
        image.data_size--;
        CHECK_REQUEST("request.images[0].data_size: ");
        free(exact);

        image = good;
        image.stride = PICTURE_EDGE * bytes - 1;
        CHECK_REQUEST("request.images[0].stride: ");
        image.stride = (size_t)-1;
        CHECK_REQUEST("request.images[0].stride: ");
        image.stride = (size_t)-1 / (PICTURE_EDGE - 1);
        CHECK_REQUEST("request.images[0]");
        image = good;
        image.width = 0;
        CHECK_REQUEST("request.images[0].width: 0");
        image = good;
        image.height = 0;
        CHECK_REQUEST("request.images[0].height: 0");
        image = good;
        image.width = image.height = UINT32_MAX;
        CHECK_REQUEST("request.images[0].width: 4294967295");
        image.width = image.height = 32768;
        CHECK_REQUEST("request.images[0]");
        image = good;
        image.height++;
        CHECK_REQUEST("request.images[0].data_size: ");
        image = good;
        image.data_size = 0;
        CHECK_REQUEST("request.images[0].data_size: 0 bytes given");
        image = good;
        image.data_size = (size_t)-1;
        CHECK_REQUEST("request.images[0].data_size: ");
        image = good;
        image.data = NULL;
        CHECK_REQUEST("request.images[0].data: NULL");
        free((void *)good.data);
    }

    file = read_file(image_file, &size);
    memset(&good, 0, sizeof good);
    good.data = file;
    good.data_size = size;
    image = good;
    image.width = 640;
    CHECK_REQUEST("request.images[0].width: 640 given");
    image = good;
    image.height = 480;
    CHECK_REQUEST("request.images[0].height: 480 given");
    image = good;
    image.stride = 1920;
    CHECK_REQUEST("request.images[0].stride: 1920 given");
    image = good;
    image.data_size = 0;
    CHECK_REQUEST("request.images[0]");
    image.data = "no picture at all";
    image.data_size = 17;
    CHECK_REQUEST("request.images[0]");
    image.data = good.data;
    image.data_size = 40;
    CHECK_REQUEST("request.images[0]");
    free(file);

    request.images = NULL;
    CHECK_REQUEST("request.images: NULL");
    request.image_count = (size_t)-1;
    request.images = &image;
    CHECK_REQUEST("request.image_count: ");
    /* An address that no such struct can have is not looked at. */
    request.image_count = 1;
    request.images = (const smolvlm_image *)(const void *)((const char *)(const void *)&image + 1);
    CHECK_REQUEST("request.images: ");
    CHECK(result == NULL);
}

static void senseless_numbers(smolvlm_engine *engine) {
    const float none = 0.0f;
    smolvlm_request request = ask(question, NULL, 0);
    smolvlm_result *result = NULL;
    char *long_prompt;
    request.temperature = -1.0f;
    CHECK_REQUEST("request.temperature: -1 given");
    request.temperature = none / none;
    CHECK_REQUEST("request.temperature: ");
    request.temperature = 0;
    request.top_p = 1.5f;
    CHECK_REQUEST("request.top_p: 1.5 given");
    request.top_p = 0;
    request.min_p = -0.5f;
    CHECK_REQUEST("request.min_p: -0.5 given");
    request.min_p = 0;
    request.repetition_penalty = -2;
    CHECK_REQUEST("request.repetition_penalty: -2 given");
    request.repetition_penalty = 0;
    request.frequency_penalty = 2.5f;
    CHECK_REQUEST("request.frequency_penalty: 2.5 given, -2 to 2 accepted");
    request.frequency_penalty = 0;
    request.presence_penalty = -2.5f;
    CHECK_REQUEST("request.presence_penalty: -2.5 given, -2 to 2 accepted");

    long_prompt = (char *)malloc(200001);
    CHECK(long_prompt != NULL);
    memset(long_prompt, 'x', 200000);
    long_prompt[200000] = '\0';
    request = ask(long_prompt, NULL, 0);
    CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_CONTEXT_OVERFLOW, "tokens");
    free(long_prompt);
}

/* More pictures than any context holds cost an error, not the memory of all their tiles. */
static void too_many_images(smolvlm_engine *engine) {
    static const unsigned char pixel[3] = {1, 2, 3};
    const size_t count = 60000;
    smolvlm_image *images = (smolvlm_image *)calloc(count, sizeof *images);
    smolvlm_result *result = STALE(smolvlm_result);
    smolvlm_request request;
    size_t i;
    CHECK(images != NULL);
    for (i = 0; i < count; i++) {
        images[i].data = pixel;
        images[i].data_size = sizeof pixel;
        images[i].width = images[i].height = 1;
        images[i].format = SMOLVLM_FORMAT_RGB8;
    }
    request = ask(question, images, count);
    CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_CONTEXT_OVERFLOW, "image tokens up to here");
    CHECK(result == NULL);
    request = ask(question, images, 1);
    request.longest_edge = 70000;
    CHECK_FAILS(smolvlm_process(engine, &request, &result), INVALID, "request.longest_edge: 70000 given");
    free(images);
}

struct reentry {
    smolvlm_engine *engine;
    smolvlm_session *session;
    int calls;
};

static int32_t stop_at_once(void *user_data, const char *text, size_t size) {
    (void)text;
    (void)size;
    ++*(int *)user_data;
    return 1;
}

static int32_t call_again(void *user_data, const char *text, size_t size) {
    struct reentry *reentry = (struct reentry *)user_data;
    const smolvlm_request request = ask(question, NULL, 0);
    smolvlm_result *result = STALE(smolvlm_result);
    (void)text;
    (void)size;
    CHECK_FAILS(smolvlm_session_process(reentry->session, &request, &result), SMOLVLM_STATUS_BUSY, "session: ");
    CHECK(result == NULL);
    CHECK_FAILS(smolvlm_session_reset(reentry->session), SMOLVLM_STATUS_BUSY, "session: ");
    reentry->calls++;
    return 0;
}

static int32_t free_everything(void *user_data, const char *text, size_t size) {
    struct reentry *reentry = (struct reentry *)user_data;
    (void)text;
    (void)size;
    smolvlm_session_free(reentry->session);
    smolvlm_free(reentry->engine);
    reentry->session = NULL;
    reentry->engine = NULL;
    reentry->calls++;
    return 0;
}

static void callbacks(smolvlm_engine *engine, smolvlm_session *session) {
    const smolvlm_image image = red_square(SMOLVLM_FORMAT_RGB8, 0);
    smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result = NULL;
    struct reentry reentry = {NULL, NULL, 0};
    int calls = 0;
    request.on_text = stop_at_once;
    request.user_data = &calls;
    CHECK_OK(smolvlm_session_process(session, &request, &result));
    CHECK(calls == 1);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_CANCELLED);
    CHECK(smolvlm_result_text(result, NULL)[0] != '\0');
    smolvlm_result_free(result);

    reentry.engine = engine;
    reentry.session = session;
    request.on_text = call_again;
    request.user_data = &reentry;
    CHECK_OK(smolvlm_session_process(session, &request, &result));
    CHECK(reentry.calls > 0);
    CHECK(smolvlm_result_finish_reason(result) != SMOLVLM_FINISH_REASON_CANCELLED);
    smolvlm_result_free(result);
    free((void *)image.data);
}

static void engine_freed_before_its_session(const char *model_dir) {
    const smolvlm_image image = red_square(SMOLVLM_FORMAT_RGB8, 0);
    smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result = NULL;
    struct reentry reentry = {NULL, NULL, 0};
    reentry.engine = load(model_dir);
    CHECK_OK(smolvlm_session_new(reentry.engine, &reentry.session));
    smolvlm_free(reentry.engine);
    CHECK_OK(smolvlm_session_process(reentry.session, &request, &result));
    smolvlm_result_free(result);
    smolvlm_session_free(reentry.session);

    /* Both freed by the first call of the callback; the generation goes on, and calls it again. */
    reentry.engine = load(model_dir);
    CHECK_OK(smolvlm_session_new(reentry.engine, &reentry.session));
    request.on_text = free_everything;
    request.user_data = &reentry;
    CHECK_OK(smolvlm_session_process(reentry.session, &request, &result));
    CHECK(reentry.calls > 1 && reentry.engine == NULL);
    CHECK(smolvlm_result_text(result, NULL)[0] != '\0');
    smolvlm_result_free(result);
    free((void *)image.data);
}

int main(int argc, char **argv) {
    smolvlm_engine *engine;
    smolvlm_session *session = NULL;
    CHECK(argc == 3);
    CHECK(smolvlm_last_error()[0] == '\0');
    engine = load(argv[1]);
    CHECK_OK(smolvlm_session_new(engine, &session));
    nulls(argv[1], engine, session);
    strings(engine);
    codes(argv[1], engine);
    missing_devices(argv[1]);
    struct_sizes(argv[1], engine);
    pictures(engine, argv[2]);
    senseless_numbers(engine);
    too_many_images(engine);
    callbacks(engine, session);
    engine_freed_before_its_session(argv[1]);
    smolvlm_session_free(session);
    smolvlm_free(engine);
    return 0;
}
