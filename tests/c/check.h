/* What the C tests share: checks that name their line, a model, pictures. C99 and C++11 alike. */

#ifndef CHECK_H
#define CHECK_H

#include <smolvlm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PICTURE_EDGE 64u

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition,                 \
                    smolvlm_last_error());                                                                   \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define CHECK_OK(call)                                                                                       \
    do {                                                                                                     \
        CHECK((call) == SMOLVLM_STATUS_OK);                                                                  \
        CHECK(smolvlm_last_error()[0] == '\0');                                                              \
    } while (0)

/* The call answers `status`, and its message contains `text`. */
#define CHECK_FAILS(call, status, text)                                                                      \
    do {                                                                                                     \
        CHECK((call) == (status));                                                                           \
        CHECK(strstr(smolvlm_last_error(), (text)) != NULL);                                                 \
        CHECK(strchr(smolvlm_last_error(), '\n') == NULL);                                                   \
    } while (0)

static inline smolvlm_options default_options(void) {
    smolvlm_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    /* A test machine may do something else at the same time; and Valgrind runs one thread at a time. */
    options.num_threads = 1;
    return options;
}

static inline smolvlm_request ask(const char *prompt, const smolvlm_image *images, size_t image_count) {
    smolvlm_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.prompt = prompt;
    request.images = images;
    request.image_count = image_count;
    request.max_new_tokens = 12;
    return request;
}

static inline smolvlm_engine *load(const char *model_dir) {
    const smolvlm_options options = default_options();
    smolvlm_engine *engine = NULL;
    CHECK_OK(smolvlm_create(model_dir, &options, &engine));
    CHECK(engine != NULL);
    return engine;
}

/* The bytes of a file in memory that ends where they end; freed by the caller. */
static inline void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    void *data;
    CHECK(file != NULL);
    CHECK(fseek(file, 0, SEEK_END) == 0);
    *size = (size_t)ftell(file);
    rewind(file);
    data = malloc(*size);
    CHECK(data != NULL);
    CHECK(fread(data, 1, *size, file) == *size);
    fclose(file);
    return data;
}

static const int32_t raw_formats[] = {SMOLVLM_FORMAT_RGB8, SMOLVLM_FORMAT_BGR8, SMOLVLM_FORMAT_RGBA8,
                                      SMOLVLM_FORMAT_BGRA8, SMOLVLM_FORMAT_GRAY8, SMOLVLM_FORMAT_GRAY16};

static inline size_t pixel_bytes(int32_t format) {
    switch (format) {
    case SMOLVLM_FORMAT_GRAY8:
        return 1;
    case SMOLVLM_FORMAT_GRAY16:
        return 2;
    case SMOLVLM_FORMAT_RGB8:
    case SMOLVLM_FORMAT_BGR8:
        return 3;
    default:
        return 4;
    }
}

/* A red square on white, 64x64, in memory that ends with the last pixel; `data` is freed by the caller. */
static inline smolvlm_image red_square(int32_t format, size_t padding) {
    static const unsigned char colours[2][3] = {{255, 255, 255}, {220, 20, 20}};
    const size_t bytes = pixel_bytes(format);
    const size_t row = PICTURE_EDGE * bytes;
    smolvlm_image image;
    unsigned char *data;
    unsigned x, y;
    memset(&image, 0, sizeof image);
    image.stride = padding == 0 ? 0 : row + padding;
    image.data_size = (row + padding) * (PICTURE_EDGE - 1) + row;
    image.width = image.height = PICTURE_EDGE;
    image.format = format;
    data = (unsigned char *)malloc(image.data_size);
    CHECK(data != NULL);
    memset(data, 0xa5, image.data_size);
    for (y = 0; y < PICTURE_EDGE; y++) {
        for (x = 0; x < PICTURE_EDGE; x++) {
            const unsigned char *rgb = colours[x >= 16 && x < 48 && y >= 16 && y < 48];
            unsigned char *pixel = data + y * (row + padding) + x * bytes;
            const int bgr = format == SMOLVLM_FORMAT_BGR8 || format == SMOLVLM_FORMAT_BGRA8;
            const uint16_t deep = (uint16_t)(rgb[0] * 16);
            pixel[0] = rgb[bgr ? 2 : 0];
            if (bytes == 2) { /* a part of the range, as depth cameras have it */
                memcpy(pixel, &deep, sizeof deep);
            } else if (bytes > 2) {
                pixel[1] = rgb[1];
                pixel[2] = rgb[bgr ? 0 : 2];
            }
        }
    }
    image.data = data;
    return image;
}

static inline int same_tokens(const smolvlm_result *a, const smolvlm_result *b) {
    size_t a_count, b_count;
    const uint32_t *a_ids = smolvlm_result_tokens(a, &a_count);
    const uint32_t *b_ids = smolvlm_result_tokens(b, &b_count);
    return a_count == b_count && a_count > 0 && memcmp(a_ids, b_ids, a_count * sizeof *a_ids) == 0;
}

#endif
