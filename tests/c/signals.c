/* Hosts that do as they please with signals: signals MODEL_DIR IMAGE_FILE [ONNXRUNTIME]
 *
 * One ignores SIGCHLD and blocks all signals in all threads, one is interrupted all the time and has a small stack for that. Each loads
 * and asks; with a file of ONNX Runtime both engines. */

#define _GNU_SOURCE

#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

/* What our handler takes on top of what the system saves. */
enum { HANDLER_BYTES = 1024 };
enum { SECONDS = 120 };

static const char *model_dir, *runtime;
static smolvlm_image image;
static volatile sig_atomic_t interruptions;

static smolvlm_result *load_and_ask(void) {
    smolvlm_options options = default_options();
    const smolvlm_request request = ask("What objects are in this image?", &image, 1);
    smolvlm_engine *engine = NULL;
    smolvlm_result *result = NULL;
    options.num_threads = 2;
    if (runtime != NULL) {
        options.backend = SMOLVLM_BACKEND_ONNX;
        options.onnxruntime_path = runtime;
    }
    CHECK_OK(smolvlm_create(model_dir, &options, &engine));
    CHECK_OK(smolvlm_process(engine, &request, &result));
    smolvlm_free(engine);
    return result;
}

static void *ask_on_thread(void *expected) {
    smolvlm_result *result = load_and_ask();
    CHECK(same_tokens(result, (const smolvlm_result *)expected));
    smolvlm_result_free(result);
    return NULL;
}

static void *send_signals(void *enough) {
    while (!*(volatile int *)enough) {
        /* To the process: any thread that has it not blocked would be ended by it, and all with it. */
        CHECK(kill(getpid(), SIGTERM) == 0);
        usleep(200);
    }
    return NULL;
}

static void blocking_host(const smolvlm_result *expected) {
    sigset_t all, pending;
    pthread_t sender;
    int enough = 0;
    CHECK(sigfillset(&all) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    CHECK(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
    CHECK(pthread_create(&sender, NULL, send_signals, &enough) == 0);
    ask_on_thread((void *)expected);
    enough = 1;
    CHECK(pthread_join(sender, NULL) == 0);
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 1);
}

static void interrupt(int signal) {
    (void)signal;
    interruptions++;
}

static void *interrupted_thread(void *expected) {
    stack_t stack;
    memset(&stack, 0, sizeof stack);
    stack.ss_size = getauxval(AT_MINSIGSTKSZ);
    if (stack.ss_size < (size_t)MINSIGSTKSZ) {
        stack.ss_size = (size_t)MINSIGSTKSZ;
    }
    stack.ss_size += HANDLER_BYTES;
    stack.ss_sp = malloc(stack.ss_size);
    CHECK(stack.ss_sp != NULL);
    CHECK(sigaltstack(&stack, NULL) == 0);
    ask_on_thread(expected);
    ask_on_thread(expected);
    stack.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&stack, NULL) == 0);
    free(stack.ss_sp);
    return NULL;
}

/* What is interrupted answers EINTR: the handler asks for no restart. */
static void interrupted_host(const smolvlm_result *expected) {
    const struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    struct sigaction action;
    pthread_t threads[2];
    int i;
    memset(&action, 0, sizeof action);
    action.sa_handler = interrupt;
    action.sa_flags = SA_ONSTACK;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGPROF, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0 && setitimer(ITIMER_PROF, &often, NULL) == 0);
    for (i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, interrupted_thread, (void *)expected) == 0);
    }
    interrupted_thread((void *)expected);
    for (i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0 && setitimer(ITIMER_PROF, &never, NULL) == 0);
    CHECK(interruptions > 20);
}

/* What a host does to signals is its process's. */
static void in_a_process(void (*host)(const smolvlm_result *), const smolvlm_result *expected) {
    int status = 0;
    pid_t child;
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        host(expected);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv) {
    const char *runtimes[2] = {NULL, NULL};
    size_t size;
    void *file;
    int i;
    CHECK(argc == 3 || argc == 4);
    model_dir = argv[1];
    runtimes[1] = argc == 4 ? argv[3] : NULL;
    file = read_file(argv[2], &size);
    memset(&image, 0, sizeof image);
    image.data = file;
    image.data_size = size;
    for (i = 0; i < argc - 2; i++) {
        smolvlm_result *expected;
        runtime = runtimes[i];
        expected = load_and_ask();
        in_a_process(blocking_host, expected);
        in_a_process(interrupted_host, expected);
        smolvlm_result_free(expected);
    }
    free(file);
    puts("signals: all passed");
    return 0;
}
