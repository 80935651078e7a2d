/* A child of fork has the model's memory and none of its threads: fork MODEL_DIR IMAGE_FILE [ONNXRUNTIME]
 *
 * It is told so at once, may free all that it inherited, and may load the model itself. With a file of ONNX Runtime the same of
 * that engine. In the end a host that ignores SIGCHLD and blocks all signals. */

#define _POSIX_C_SOURCE 200809L

#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char question[] = "What objects are in this image?";

/* More than it takes under any load; a child that hangs is ended by it, and is a failure. */
enum { SECONDS = 60 };

static smolvlm_engine *load_on(const char *model_dir, const char *runtime) {
    smolvlm_options options = default_options();
    smolvlm_engine *engine = NULL;
    options.num_threads = 2;
    if (runtime != NULL) {
        options.backend = SMOLVLM_BACKEND_ONNX;
        options.onnxruntime_path = runtime;
    }
    CHECK_OK(smolvlm_create(model_dir, &options, &engine));
    return engine;
}

struct asking {
    smolvlm_session *session;
    const smolvlm_image *image;
    volatile int pieces;
};

static int32_t count(void *user_data, const char *text, size_t size) {
    (void)text;
    (void)size;
    ((struct asking *)user_data)->pieces++;
    return 0;
}

/* Keeps the model's threads busy while the process forks. */
static void *keep_asking(void *argument) {
    struct asking *asking = (struct asking *)argument;
    smolvlm_request request = ask(question, asking->image, 1);
    int i;
    request.on_text = count;
    request.user_data = asking;
    for (i = 0; i < 3; i++) {
        smolvlm_result *result = NULL;
        CHECK_OK(smolvlm_session_process(asking->session, &request, &result));
        smolvlm_result_free(result);
        CHECK_OK(smolvlm_session_reset(asking->session));
    }
    return NULL;
}

static void in_the_child(smolvlm_engine *engine, smolvlm_session *session, const smolvlm_image *image,
                         const smolvlm_result *expected, const char *model_dir, const char *runtime) {
    const smolvlm_request request = ask(question, image, 1);
    smolvlm_session *another = NULL;
    smolvlm_result *result = NULL;
    smolvlm_engine *own;
    alarm(SECONDS);
    CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK_FAILS(smolvlm_session_process(session, &request, &result), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK_FAILS(smolvlm_session_new(engine, &another), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK(result == NULL && another == NULL);
    CHECK_OK(smolvlm_session_reset(session));
    smolvlm_session_free(session);
    smolvlm_free(engine);

    own = load_on(model_dir, runtime);
    CHECK_OK(smolvlm_process(own, &request, &result));
    CHECK(same_tokens(result, expected));
    smolvlm_result_free(result);
    smolvlm_free(own);
}

static void check_child(pid_t child) {
    int status = 0;
    CHECK(child > 0);
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void fork_with(const char *model_dir, const smolvlm_image *image, const char *runtime) {
    smolvlm_engine *engine = load_on(model_dir, runtime);
    smolvlm_session *idle = NULL;
    const smolvlm_request request = ask(question, image, 1);
    smolvlm_result *expected = NULL, *again = NULL;
    struct asking asking;
    pthread_t other;
    pid_t child;
    CHECK_OK(smolvlm_session_new(engine, &idle));
    CHECK_OK(smolvlm_session_process(idle, &request, &expected));

    child = fork();
    if (child == 0) {
        in_the_child(engine, idle, image, expected, model_dir, runtime);
        _exit(0);
    }
    check_child(child);

    asking.image = image;
    asking.pieces = 0;
    CHECK_OK(smolvlm_session_new(engine, &asking.session));
    CHECK(pthread_create(&other, NULL, keep_asking, &asking) == 0);
    while (asking.pieces == 0) {
        const struct timespec moment = {0, 100000};
        CHECK(nanosleep(&moment, NULL) == 0);
    }
    child = fork();
    if (child == 0) {
        smolvlm_result *result = NULL;
        alarm(SECONDS);
        CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
        smolvlm_session_free(idle);
        smolvlm_free(engine);
        _exit(0);
    }
    check_child(child);
    CHECK(pthread_join(other, NULL) == 0);

    /* The parent has noticed nothing. */
    CHECK_OK(smolvlm_process(engine, &request, &again));
    CHECK(same_tokens(again, expected));
    smolvlm_result_free(again);
    smolvlm_result_free(expected);
    smolvlm_session_free(asking.session);
    smolvlm_session_free(idle);
    smolvlm_free(engine);
}

int main(int argc, char **argv) {
    smolvlm_image image;
    sigset_t all;
    size_t size;
    void *file;
    CHECK(argc == 3 || argc == 4);
    file = read_file(argv[2], &size);
    memset(&image, 0, sizeof image);
    image.data = file;
    image.data_size = size;

    fork_with(argv[1], &image, NULL);
    if (argc == 4) {
        fork_with(argv[1], &image, argv[3]);
    }

    CHECK(sigfillset(&all) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    CHECK(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
    {
        smolvlm_engine *engine = load_on(argv[1], NULL);
        const smolvlm_request request = ask(question, &image, 1);
        smolvlm_result *result = NULL;
        CHECK_OK(smolvlm_process(engine, &request, &result));
        smolvlm_result_free(result);
        smolvlm_free(engine);
    }
    free(file);
    puts("fork: all passed");
    return 0;
}
