/* What C hears of a missing, foreign or too old ONNX Runtime, and of graphs that do not fit:
 * onnx MODEL_DIR RUNTIME OTHER_RUNTIME TOO_OLD_RUNTIME IMAGE_FILE
 *
 * MODEL_DIR is this test's own: it spoils files there, and mends them. */

#include "check.h"

#include <dlfcn.h>

static char path[4096];

static const char *file(const char *dir, const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void write_file(const char *name, const void *data, size_t size) {
    FILE *out = fopen(name, "wb");
    CHECK(out != NULL);
    CHECK(fwrite(data, 1, size, out) == size);
    CHECK(fclose(out) == 0);
}

/* Replaces every `from` by `to`, which is as long. */
static size_t replace(char *data, size_t size, const char *from, const char *to) {
    const size_t length = strlen(from);
    size_t found = 0, i;
    CHECK(strlen(to) == length);
    for (i = 0; i + length <= size; i++) {
        if (memcmp(data + i, from, length) == 0) {
            memcpy(data + i, to, length);
            found++;
        }
    }
    return found;
}

static smolvlm_options onnx_options(const char *runtime) {
    smolvlm_options options = default_options();
    options.backend = SMOLVLM_BACKEND_ONNX;
    options.onnxruntime_path = runtime;
    return options;
}

static void refused(const char *model_dir, const smolvlm_options *options, smolvlm_status status, const char *text) {
    smolvlm_engine *engine = NULL;
    CHECK_FAILS(smolvlm_create(model_dir, options, &engine), status, text);
    CHECK(engine == NULL);
}

static void runtimes(const char *model_dir, const char *too_old) {
    static const char text[] = "This is no library.\n";
    char name[4096];
    void *installed;
    smolvlm_options options;

    snprintf(name, sizeof name, "%s/none.so", model_dir);
    options = onnx_options(name);
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, name);
    write_file(name, text, sizeof text - 1);
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, name);
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "no library that can be loaded");
    remove(name);
    options = onnx_options(model_dir);
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, "is not a file");
    options = onnx_options(too_old);
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, too_old);
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "is ONNX Runtime 1.19.2, 1.20 or newer is needed");

    options = onnx_options(NULL);
    CHECK(setenv("ORT_DYLIB_PATH", "/none/libonnxruntime.so", 1) == 0);
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, "ORT_DYLIB_PATH: /none/libonnxruntime.so");
    CHECK(unsetenv("ORT_DYLIB_PATH") == 0);
    installed = dlopen("libonnxruntime.so", RTLD_LAZY);
    installed = installed != NULL ? installed : dlopen("libonnxruntime.so.1", RTLD_LAZY);
    if (installed == NULL) {
        refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, "no ONNX Runtime");
    }
}

/* The same model, picture and question on both engines. */
static void answers_are_equal(const char *model_dir, const smolvlm_options *options, const char *image_file) {
    smolvlm_engine *onnx = NULL, *candle = load(model_dir);
    smolvlm_result *ours = NULL, *theirs = NULL;
    smolvlm_metrics metrics;
    smolvlm_image image;
    smolvlm_request request;
    memset(&image, 0, sizeof image);
    image.format = SMOLVLM_FORMAT_ENCODED;
    image.data = read_file(image_file, &image.data_size);
    request = ask("What objects are in this image?", &image, 1);
    CHECK_OK(smolvlm_create(model_dir, options, &onnx));
    CHECK_OK(smolvlm_process(onnx, &request, &ours));
    CHECK_OK(smolvlm_process(candle, &request, &theirs));
    CHECK(same_tokens(ours, theirs));
    memset(&metrics, 0, sizeof metrics);
    metrics.struct_size = sizeof metrics;
    CHECK_OK(smolvlm_result_metrics(ours, &metrics));
    CHECK(metrics.backend == SMOLVLM_BACKEND_ONNX && metrics.device == SMOLVLM_DEVICE_CPU);
    CHECK(metrics.dtype == SMOLVLM_DTYPE_F32 && metrics.kv_cache == SMOLVLM_DTYPE_F32);
    smolvlm_result_free(ours);
    smolvlm_result_free(theirs);
    smolvlm_free(onnx);
    smolvlm_free(candle);
    free((void *)image.data);
}

static void graphs(const char *model_dir, smolvlm_options options) {
    static const char graph[] = "onnx/decoder_model_merged.onnx";
    static const smolvlm_status invalid = SMOLVLM_STATUS_INVALID_MODEL;
    size_t size;
    char *whole = (char *)read_file(file(model_dir, graph), &size);
    char *spoilt = (char *)malloc(size);
    CHECK(spoilt != NULL);

    write_file(path, whole, size / 2);
    refused(model_dir, &options, invalid, graph);

    memcpy(spoilt, whole, size);
    CHECK(replace(spoilt, size, "inputs_embeds", "inputs_embedz") >= 2);
    write_file(path, spoilt, size);
    refused(model_dir, &options, invalid, "decoder_model_merged.onnx: has no input inputs_embeds; its inputs are inputs_embedz,");

    memcpy(spoilt, whole, size);
    CHECK(replace(spoilt, size, "model.safetensors", "decoder.onnx_data") >= 2);
    write_file(path, spoilt, size);
    refused(model_dir, &options, invalid, graph);
    refused(model_dir, &options, invalid, "decoder.onnx_data");

    CHECK(remove(path) == 0);
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, graph);
    write_file(path, whole, size);

    options.dtype = SMOLVLM_DTYPE_INT8;
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, "vision_encoder_int8.onnx: no such file");
    refused(model_dir, &options, SMOLVLM_STATUS_NOT_FOUND, "complete variants here: f32");
    options.dtype = SMOLVLM_DTYPE_BF16;
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "dtype: bf16 is no variant of ONNX graphs");
    options.dtype = SMOLVLM_DTYPE_AUTO;
    options.kv_cache = SMOLVLM_DTYPE_INT8;
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "kv_cache: int8; the f32 graphs have keys and values in f32");
    options.kv_cache = SMOLVLM_DTYPE_AUTO;
    options.device = SMOLVLM_DEVICE_METAL;
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "device: metal");
    options.device = SMOLVLM_DEVICE_TENSORRT;
    refused(model_dir, &options, SMOLVLM_STATUS_UNSUPPORTED, "device: tensorrt asked for, this ONNX Runtime has cpu");
    options.device = SMOLVLM_DEVICE_CPU;
    options.max_memory_bytes = 1000;
    refused(model_dir, &options, SMOLVLM_STATUS_OUT_OF_MEMORY, "max_memory_bytes: 1000 given");
    free(whole);
    free(spoilt);
}

int main(int argc, char **argv) {
    smolvlm_options options;
    CHECK(argc == 6);
    runtimes(argv[1], argv[4]);
    options = onnx_options(argv[2]);
    answers_are_equal(argv[1], &options, argv[5]);
    options.onnxruntime_path = argv[3];
    refused(argv[1], &options, SMOLVLM_STATUS_INVALID_ARGUMENT, "asked for, but this process has loaded");
    options.onnxruntime_path = NULL;
    answers_are_equal(argv[1], &options, argv[5]);
    graphs(argv[1], options);
    answers_are_equal(argv[1], &options, argv[5]);
    return 0;
}
