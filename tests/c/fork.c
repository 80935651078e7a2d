/* A child of fork has the model's memory and none of its threads: fork MODEL_DIR IMAGE_FILE [ONNXRUNTIME]
 *
 * It is told so at once, may free all that it inherited, and may load the model itself, whatever the parent's threads were doing.
 * With a file of ONNX Runtime that is the engine, else Candle. */

#define _GNU_SOURCE

#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char question[] = "What objects are in this image?";

static const char *model_dir, *runtime;
static smolvlm_image image;

/* More than it takes under any load; a child that hangs is ended by it, and is a failure. */
enum { SECONDS = 60 };
/* More than one that is refused at once takes. */
enum { AT_ONCE_SECONDS = 5 };
enum { HUNG = 9 };

static void hung(int signal) {
    static const char text[] = "fork: a child hangs\n";
    (void)signal;
    (void)!write(2, text, sizeof text - 1);
    _exit(HUNG);
}

/* With a handler: the first process of a namespace is not ended by a signal of its own. */
static void at_most(unsigned seconds) {
    CHECK(signal(SIGALRM, hung) != SIG_ERR);
    alarm(seconds);
}

static void pause_us(long microseconds) {
    const struct timespec moment = {microseconds / 1000000, microseconds % 1000000 * 1000};
    CHECK(nanosleep(&moment, NULL) == 0);
}

static pid_t forked(void) {
    pid_t child;
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    return child;
}

static void check_child(pid_t child) {
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static smolvlm_engine *load_here(void) {
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

/* A model of one's own works; `expected` may be NULL. */
static void ask_own(const smolvlm_result *expected) {
    const smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result = NULL;
    smolvlm_engine *own = load_here();
    CHECK_OK(smolvlm_process(own, &request, &result));
    CHECK(expected == NULL || same_tokens(result, expected));
    smolvlm_result_free(result);
    smolvlm_free(own);
}

/* A session that the parent uses on another thread. */
struct asking {
    smolvlm_session *session;
    volatile int pieces, enough;
};

/* From the first piece on it stays in the middle of its answer. */
static int32_t hold(void *user_data, const char *text, size_t size) {
    struct asking *asking = (struct asking *)user_data;
    (void)text;
    (void)size;
    asking->pieces++;
    while (!asking->enough) {
        pause_us(1000);
    }
    return 0;
}

static int32_t count(void *user_data, const char *text, size_t size) {
    (void)text;
    (void)size;
    ((struct asking *)user_data)->pieces++;
    return 0;
}

static void answer(struct asking *asking, smolvlm_text_callback on_text) {
    smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result = NULL;
    request.on_text = on_text;
    request.user_data = asking;
    CHECK_OK(smolvlm_session_process(asking->session, &request, &result));
    smolvlm_result_free(result);
    CHECK_OK(smolvlm_session_reset(asking->session));
}

static void *answer_held(void *argument) {
    answer((struct asking *)argument, hold);
    return NULL;
}

static void *answer_often(void *argument) {
    struct asking *asking = (struct asking *)argument;
    do {
        answer(asking, count);
    } while (!asking->enough);
    return NULL;
}

/* Whether the session was idle, in the middle of an answer or computing: the same refusal, and all can be freed. */
static void refused(smolvlm_engine *engine, smolvlm_session *session) {
    const smolvlm_request request = ask(question, &image, 1);
    smolvlm_session *another = NULL;
    smolvlm_result *result = NULL;
    at_most(AT_ONCE_SECONDS);
    CHECK_FAILS(smolvlm_session_process(session, &request, &result), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK_FAILS(smolvlm_process(engine, &request, &result), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK_FAILS(smolvlm_session_new(engine, &another), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK_FAILS(smolvlm_session_reset(session), SMOLVLM_STATUS_UNSUPPORTED, "fork: ");
    CHECK(result == NULL && another == NULL);
    smolvlm_session_cancel(session);
    smolvlm_session_free(session);
    smolvlm_free(engine);
}

static void fork_beside(smolvlm_engine *engine, smolvlm_session *session, const smolvlm_result *expected) {
    const pid_t child = forked();
    if (child == 0) {
        refused(engine, session);
        at_most(SECONDS);
        ask_own(expected);
        /* Not _exit: what ends with a process ends in a child too. */
        exit(0);
    }
    check_child(child);
}

static void fork_while_idle_and_answering(void) {
    smolvlm_engine *engine = load_here();
    smolvlm_session *idle = NULL;
    const smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *expected = NULL, *again = NULL;
    struct asking asking;
    pthread_t other;
    int i;
    CHECK_OK(smolvlm_session_new(engine, &idle));
    CHECK_OK(smolvlm_session_process(idle, &request, &expected));
    fork_beside(engine, idle, expected);

    memset(&asking, 0, sizeof asking);
    CHECK_OK(smolvlm_session_new(engine, &asking.session));
    CHECK(pthread_create(&other, NULL, answer_held, &asking) == 0);
    while (asking.pieces == 0) {
        pause_us(100);
    }
    CHECK_FAILS(smolvlm_session_reset(asking.session), SMOLVLM_STATUS_BUSY, "session: ");
    fork_beside(engine, asking.session, expected);
    asking.enough = 1;
    CHECK(pthread_join(other, NULL) == 0);

    asking.enough = 0;
    CHECK(pthread_create(&other, NULL, answer_often, &asking) == 0);
    for (i = 0; i < 20; i++) {
        const pid_t child = forked();
        if (child == 0) {
            refused(engine, asking.session);
            _exit(0);
        }
        check_child(child);
        pause_us(i * 500);
    }
    fork_beside(engine, asking.session, expected);
    asking.enough = 1;
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

/* --- while another thread loads --------------------------------------------------------------------------- */

static void *load_often(void *enough) {
    do {
        smolvlm_free(load_here());
    } while (!*(volatile int *)enough);
    return NULL;
}

/* In a process that has loaded nothing yet; what a process has only once is begun by the other thread. */
static void fork_while_loading(long first_pause_us) {
    int enough = 0, i;
    pthread_t other;
    pid_t children[4];
    CHECK(pthread_create(&other, NULL, load_often, &enough) == 0);
    for (i = 0; i < 4; i++) {
        pause_us(i == 0 ? first_pause_us : 20000);
        children[i] = forked();
        if (children[i] == 0) {
            at_most(SECONDS);
            ask_own(NULL);
            exit(0);
        }
    }
    for (i = 0; i < 4; i++) {
        check_child(children[i]);
    }
    enough = 1;
    CHECK(pthread_join(other, NULL) == 0);
}

extern char **environ;

/* Fresh processes: once a process has loaded a model, there is nothing left to be caught in. */
static void load_in_fresh_processes(char **argv) {
    long pause;
    for (pause = 0; pause < 150000; pause += pause < 20000 ? 2000 : 13000) {
        char text[32], *arguments[6];
        pid_t fresh;
        sprintf(text, "%ld", pause);
        arguments[0] = argv[0];
        arguments[1] = argv[1];
        arguments[2] = argv[2];
        arguments[3] = runtime != NULL ? argv[3] : (char *)"";
        arguments[4] = text;
        arguments[5] = NULL;
        CHECK(posix_spawn(&fresh, "/proc/self/exe", NULL, NULL, arguments, environ) == 0);
        check_child(fresh);
    }
}

/* --- while another thread is in the log's listener -------------------------------------------------------- */

struct listening {
    volatile int inside, enough;
};

static void listen_long(void *user_data, int32_t level, const char *message) {
    struct listening *listening = (struct listening *)user_data;
    (void)level;
    (void)message;
    listening->inside = 1;
    while (!listening->enough) {
        pause_us(1000);
    }
}

static void listen_and_fork(void *user_data, int32_t level, const char *message) {
    int *forks = (int *)user_data;
    (void)level;
    (void)message;
    if ((*forks)++ == 0) {
        const pid_t child = forked();
        if (child == 0) {
            at_most(SECONDS);
            /* Not from here, and here it is known. */
            CHECK_FAILS(smolvlm_set_log_callback(NULL, NULL), SMOLVLM_STATUS_BUSY, "log callback");
            ask_own(NULL);
            _exit(0);
        }
        check_child(child);
    }
}

static void *load_once(void *unused) {
    (void)unused;
    smolvlm_free(load_here());
    return NULL;
}

static void fork_while_listening(void) {
    struct listening listening = {0, 0};
    pthread_t other;
    pid_t child;
    int forks = 0;
    CHECK_OK(smolvlm_set_log_callback(listen_long, &listening));
    CHECK(pthread_create(&other, NULL, load_once, NULL) == 0);
    while (!listening.inside) {
        pause_us(100);
    }
    child = forked();
    if (child == 0) {
        at_most(AT_ONCE_SECONDS);
        CHECK_OK(smolvlm_set_log_callback(NULL, NULL));
        at_most(SECONDS);
        ask_own(NULL);
        exit(0);
    }
    check_child(child);
    listening.enough = 1;
    CHECK(pthread_join(other, NULL) == 0);

    CHECK_OK(smolvlm_set_log_callback(listen_and_fork, &forks));
    smolvlm_free(load_here());
    CHECK(forks > 0);
    CHECK_OK(smolvlm_set_log_callback(NULL, NULL));
}

/* --- a child with the number of its parent ------------------------------------------------------------------ */

/* Both are the first process of a namespace. That takes rights; without them the unit tests of src/process.rs are left. */
static void fork_into_a_namespace(void) {
    pid_t first = forked();
    if (first == 0) {
        smolvlm_engine *engine;
        smolvlm_session *session = NULL;
        if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
            puts("fork: no PID namespaces here, not tried");
            exit(0);
        }
        first = forked();
        if (first == 0) {
            pid_t second;
            CHECK(getpid() == 1);
            engine = load_here();
            CHECK_OK(smolvlm_session_new(engine, &session));
            CHECK(unshare(CLONE_NEWPID) == 0);
            second = forked();
            if (second == 0) {
                CHECK(getpid() == 1);
                refused(engine, session);
                at_most(SECONDS);
                ask_own(NULL);
                puts("fork: a child with its parent's number was told");
                exit(0);
            }
            check_child(second);
            exit(0);
        }
        check_child(first);
        exit(0);
    }
    check_child(first);
}

static void fork_with(char **argv, const char *of) {
    runtime = of;
    load_in_fresh_processes(argv);
    fork_into_a_namespace();
    fork_while_listening();
    fork_while_idle_and_answering();
}

int main(int argc, char **argv) {
    size_t size;
    void *file;
    CHECK(argc >= 3 && argc <= 5);
    model_dir = argv[1];
    file = read_file(argv[2], &size);
    memset(&image, 0, sizeof image);
    image.data = file;
    image.data_size = size;
    if (argc == 5) {
        runtime = argv[3][0] == '\0' ? NULL : argv[3];
        fork_while_loading(atol(argv[4]));
        return 0;
    }
    fork_with(argv, argc == 4 ? argv[3] : NULL);
    free(file);
    puts("fork: all passed");
    return 0;
}
