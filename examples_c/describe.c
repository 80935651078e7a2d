/* Asks a model about a picture: describe MODEL_DIR IMAGE_FILE [--backend auto|candle|onnx] [QUESTION...]
 *
 * All questions belong to one conversation; the picture comes with the first. The answer is printed
 * while it is made. */

#include <smolvlm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t print(void *user_data, const char *text, size_t size) {
    (void)user_data;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
    return 0;
}

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    long end = -1;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        end = ftell(file);
    }
    if (end > 0 && (data = (char *)malloc((size_t)end)) != NULL) {
        rewind(file);
        *size = fread(data, 1, (size_t)end, file);
    }
    if (file != NULL) {
        fclose(file);
    }
    return data;
}

static int backend_code(const char *name, int32_t *out) {
    static const struct {
        const char *name;
        int32_t code;
    } backends[] = {
        {"auto", SMOLVLM_BACKEND_AUTO}, {"candle", SMOLVLM_BACKEND_CANDLE}, {"onnx", SMOLVLM_BACKEND_ONNX}};
    size_t i;
    for (i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (strcmp(name, backends[i].name) == 0) {
            *out = backends[i].code;
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    static char default_question[] = "What objects are in this image?";
    static char *default_questions[] = {default_question};
    smolvlm_engine *engine = NULL;
    smolvlm_session *session = NULL;
    smolvlm_options options;
    smolvlm_image image;
    char **questions = argv + 3;
    int count = argc - 3;
    int failed = 1;
    int i;

    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    if (count >= 2 && strcmp(questions[0], "--backend") == 0) {
        if (!backend_code(questions[1], &options.backend)) {
            fprintf(stderr, "--backend %s: auto, candle or onnx\n", questions[1]);
            return 2;
        }
        questions += 2;
        count -= 2;
    }
    if (argc < 3 || (count > 0 && strncmp(questions[0], "--", 2) == 0)) {
        fprintf(stderr, "usage: %s MODEL_DIR IMAGE_FILE [--backend auto|candle|onnx] [QUESTION...]\n", argv[0]);
        return 2;
    }
    if (count == 0) {
        questions = default_questions;
        count = 1;
    }

    memset(&image, 0, sizeof image);
    image.format = SMOLVLM_FORMAT_ENCODED;
    image.data = read_file(argv[2], &image.data_size);
    if (image.data == NULL) {
        fprintf(stderr, "%s: cannot be read\n", argv[2]);
        return 1;
    }

    if (smolvlm_create(argv[1], &options, &engine) != SMOLVLM_STATUS_OK ||
        smolvlm_session_new(engine, &session) != SMOLVLM_STATUS_OK) {
        goto done;
    }
    for (i = 0; i < count; i++) {
        smolvlm_request request;
        smolvlm_result *result = NULL;
        memset(&request, 0, sizeof request);
        request.struct_size = sizeof request;
        request.prompt = questions[i];
        request.images = &image;
        request.image_count = i == 0 ? 1 : 0;
        request.on_text = print;

        printf("> %s\n", questions[i]);
        if (smolvlm_session_process(session, &request, &result) != SMOLVLM_STATUS_OK) {
            goto done;
        }
        printf("\n");
        smolvlm_result_free(result);
    }
    failed = 0;

done:
    if (failed) {
        fprintf(stderr, "%s\n", smolvlm_last_error());
    }
    smolvlm_session_free(session);
    smolvlm_free(engine);
    free((void *)image.data);
    return failed;
}
