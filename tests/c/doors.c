/* Depths of 16 bits and a turned JPEG are in C what they are through every other door: doors MODEL_DIR IMAGE_FILE, the
   folder of the files being DOORS_FILES. tests/doors.rs asks about the same files. */

#include "check.h"

#ifndef DOORS_FILES
#error "DOORS_FILES: the folder tests/golden/files"
#endif

static const char question[] = "What objects are in this image?";

static smolvlm_result *answer(smolvlm_engine *engine, const smolvlm_image *image, int32_t ignore_exif) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *result = NULL;
    /* Nearly all tokens are likely: an answer that any change of the picture changes. */
    request.temperature = 8;
    request.seed = 3;
    request.max_new_tokens = 24;
    request.ignore_exif = ignore_exif;
    CHECK_OK(smolvlm_process(engine, &request, &result));
    return result;
}

static smolvlm_result *file_answer(smolvlm_engine *engine, const char *path, int32_t ignore_exif) {
    smolvlm_image image;
    smolvlm_result *result;
    memset(&image, 0, sizeof image);
    image.data = read_file(path, &image.data_size);
    result = answer(engine, &image, ignore_exif);
    free((void *)image.data);
    return result;
}

/* The values of a PGM file of 16 bits in the byte order of this machine, with `padding` bytes behind each row. */
static smolvlm_image depths(const char *path, size_t padding) {
    smolvlm_image image;
    size_t size, row;
    unsigned x, y, width, height, most;
    int head;
    char *file = (char *)read_file(path, &size);
    char start[64] = "";
    unsigned char *pixels;
    CHECK(size > sizeof start);
    memcpy(start, file, sizeof start - 1);
    CHECK(sscanf(start, "P5 %u %u %u%n", &width, &height, &most, &head) == 3 && most == 65535);
    CHECK(size == (size_t)head + 1 + (size_t)2 * width * height);
    memset(&image, 0, sizeof image);
    row = 2 * (size_t)width + padding;
    image.data_size = row * (height - 1) + 2 * (size_t)width;
    image.stride = padding == 0 ? 0 : row;
    image.width = width;
    image.height = height;
    image.format = SMOLVLM_FORMAT_GRAY16;
    pixels = (unsigned char *)malloc(image.data_size);
    CHECK(pixels != NULL);
    memset(pixels, 0xff, image.data_size);
    for (y = 0; y < height; y++) {
        for (x = 0; x < width; x++) {
            const unsigned char *value = (const unsigned char *)file + head + 1 + 2 * ((size_t)y * width + x);
            const uint16_t here = (uint16_t)(value[0] << 8 | value[1]);
            memcpy(pixels + y * row + 2 * x, &here, sizeof here);
        }
    }
    free(file);
    image.data = pixels;
    return image;
}

static void sixteen_bits(smolvlm_engine *engine) {
    static const char *const files[] = {DOORS_FILES "/depth.png", DOORS_FILES "/depth.tif", DOORS_FILES "/depth.pgm"};
    const size_t paddings[] = {0, 3, 8};
    /* As Pillow and NumPy have scaled it. */
    smolvlm_result *expected = file_answer(engine, DOORS_FILES "/depth.png.seen.png", 0);
    size_t i;
    for (i = 0; i < sizeof files / sizeof files[0]; i++) {
        smolvlm_result *result = file_answer(engine, files[i], 0);
        CHECK(same_tokens(result, expected));
        smolvlm_result_free(result);
    }
    for (i = 0; i < sizeof paddings / sizeof paddings[0]; i++) {
        const smolvlm_image image = depths(DOORS_FILES "/depth.pgm", paddings[i]);
        smolvlm_result *result = answer(engine, &image, 0);
        CHECK(same_tokens(result, expected));
        smolvlm_result_free(result);
        free((void *)image.data);
    }
    smolvlm_result_free(expected);
}

static void orientation(smolvlm_engine *engine) {
    static const char *const files[] = {"turned.jpg", "turned.png", "turned.webp", "turned-6.tif"};
    size_t i;
    for (i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[4096], seen[4096];
        smolvlm_result *expected, *upright, *stored;
        CHECK(snprintf(path, sizeof path, "%s/%s", DOORS_FILES, files[i]) < (int)sizeof path);
        CHECK(snprintf(seen, sizeof seen, "%s/%s.seen.png", DOORS_FILES, files[i]) < (int)sizeof seen);
        expected = file_answer(engine, seen, 0);
        upright = file_answer(engine, path, 0);
        stored = file_answer(engine, path, 1);
        CHECK(same_tokens(upright, expected));
        CHECK(!same_tokens(stored, expected));
        smolvlm_result_free(expected);
        smolvlm_result_free(upright);
        smolvlm_result_free(stored);
    }
}

int main(int argc, char **argv) {
    smolvlm_engine *engine = NULL;
    CHECK(argc == 3);
    CHECK_OK(smolvlm_create(argv[1], NULL, &engine));
    sixteen_bits(engine);
    orientation(engine);
    smolvlm_free(engine);
    puts("doors: all passed");
    return 0;
}
