/* Opens the library, uses it and closes it, 200 times, each time on a thread that ends at once: dlclose MODEL_DIR IMAGE_FILE LIBRARY */

#define _DEFAULT_SOURCE

#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/resource.h>

enum { TIMES = 200, WARM = 50 };

/* Worn memory would be megabytes a round: the model alone has several. */
static const long MOST_GROWTH_KIB = 32 * 1024;

static const char *model_dir, *library;
static smolvlm_image image;

typedef smolvlm_status (*create_function)(const char *, const smolvlm_options *, smolvlm_engine **);
typedef smolvlm_status (*process_function)(smolvlm_engine *, const smolvlm_request *, smolvlm_result **);
typedef const char *(*text_function)(const smolvlm_result *, size_t *);
typedef void (*result_free_function)(smolvlm_result *);
typedef void (*free_function)(smolvlm_engine *);

/* Everything through the handle: this program links no other copy. */
#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, dlerror());                   \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static void *symbol(void *handle, const char *name) {
    void *found = dlsym(handle, name);
    EXPECT(found != NULL);
    return found;
}

static void *use(void *unused) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    smolvlm_options options = default_options();
    smolvlm_request request = ask("What is this?", &image, 1);
    smolvlm_engine *engine = NULL;
    smolvlm_result *result = NULL;
    create_function create;
    process_function process;
    text_function text;
    result_free_function result_free;
    free_function engine_free;
    (void)unused;
    EXPECT(handle != NULL);
    *(void **)&create = symbol(handle, "smolvlm_create");
    *(void **)&process = symbol(handle, "smolvlm_process");
    *(void **)&text = symbol(handle, "smolvlm_result_text");
    *(void **)&result_free = symbol(handle, "smolvlm_result_free");
    *(void **)&engine_free = symbol(handle, "smolvlm_free");
    options.num_threads = 2;
    request.max_new_tokens = 2;
    EXPECT(create(model_dir, &options, &engine) == SMOLVLM_STATUS_OK);
    EXPECT(process(engine, &request, &result) == SMOLVLM_STATUS_OK);
    EXPECT(text(result, NULL) != NULL);
    result_free(result);
    engine_free(engine);
    EXPECT(dlclose(handle) == 0);
    return NULL;
}

static long peak_kib(void) {
    struct rusage usage;
    EXPECT(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_maxrss;
}

int main(int argc, char **argv) {
    FILE *file;
    long warm = 0;
    int i;
    static char bytes[1 << 20];
    EXPECT(argc == 4);
    model_dir = argv[1];
    library = argv[3];
    file = fopen(argv[2], "rb");
    EXPECT(file != NULL);
    memset(&image, 0, sizeof image);
    image.data = bytes;
    image.data_size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    for (i = 0; i < TIMES; i++) {
        pthread_t thread;
        EXPECT(pthread_create(&thread, NULL, use, NULL) == 0);
        EXPECT(pthread_join(thread, NULL) == 0);
        if (i == WARM) {
            warm = peak_kib();
        }
    }
    printf("peak: %ld KiB after %d times, %ld after %d\n", warm, WARM, peak_kib(), TIMES);
    EXPECT(peak_kib() - warm < MOST_GROWTH_KIB);
    return 0;
}
