/* Cancelling, sharing and waiting across threads and signals: threads MODEL_DIR IMAGE_FILE */

#include "check.h"

#include <pthread.h>
#include <signal.h>

#define PARALLEL 4

static const char question[] = "What objects are in this image?";

/* One generation, and what its callback does at the first piece, on another thread. */
struct meeting {
    smolvlm_session *session;
    void *(*at_first_piece)(void *);
    pthread_t caller;
    int pieces;
};

static int32_t meet(void *user_data, const char *text, size_t size) {
    struct meeting *meeting = (struct meeting *)user_data;
    (void)text;
    (void)size;
    CHECK(pthread_equal(pthread_self(), meeting->caller));
    if (meeting->pieces++ == 0) {
        pthread_t other;
        CHECK(pthread_create(&other, NULL, meeting->at_first_piece, meeting) == 0);
        CHECK(pthread_join(other, NULL) == 0);
    }
    return 0;
}

static void *cancel(void *argument) {
    smolvlm_session_cancel(((struct meeting *)argument)->session);
    return NULL;
}

static void *ask_the_busy(void *argument) {
    struct meeting *meeting = (struct meeting *)argument;
    const smolvlm_request request = ask(question, NULL, 0);
    smolvlm_result *result = NULL;
    CHECK_FAILS(smolvlm_session_process(meeting->session, &request, &result), SMOLVLM_STATUS_BUSY, "session: ");
    CHECK(result == NULL);
    CHECK_FAILS(smolvlm_session_reset(meeting->session), SMOLVLM_STATUS_BUSY, "session: ");
    return NULL;
}

static smolvlm_result *generate(struct meeting *meeting, const smolvlm_image *image, void *(*at_first_piece)(void *)) {
    smolvlm_request request = ask(question, image, 1);
    smolvlm_result *result = NULL;
    meeting->at_first_piece = at_first_piece;
    meeting->caller = pthread_self();
    meeting->pieces = 0;
    request.on_text = meet;
    request.user_data = meeting;
    CHECK_OK(smolvlm_session_process(meeting->session, &request, &result));
    CHECK(meeting->pieces > 0);
    return result;
}

static void cancelled_from_another_thread(smolvlm_engine *engine, const smolvlm_image *image) {
    struct meeting meeting;
    smolvlm_result *result;
    size_t size, count;
    CHECK_OK(smolvlm_session_new(engine, &meeting.session));
    /* An idle session does not remember it. */
    smolvlm_session_cancel(meeting.session);
    result = generate(&meeting, image, ask_the_busy);
    CHECK(smolvlm_result_finish_reason(result) != SMOLVLM_FINISH_REASON_CANCELLED);
    smolvlm_result_free(result);

    CHECK_OK(smolvlm_session_reset(meeting.session));
    result = generate(&meeting, image, cancel);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_CANCELLED);
    CHECK(smolvlm_result_text(result, &size)[0] != '\0');
    CHECK(smolvlm_result_tokens(result, &count) != NULL && count < 12);
    smolvlm_result_free(result);
    smolvlm_session_free(meeting.session);
}

static smolvlm_session *signalled;

static void on_signal(int number) {
    (void)number;
    smolvlm_session_cancel(signalled);
}

static void *interrupt(void *argument) {
    CHECK(pthread_kill(((struct meeting *)argument)->caller, SIGUSR1) == 0);
    return NULL;
}

static void cancelled_from_a_signal_handler(smolvlm_engine *engine, const smolvlm_image *image) {
    struct meeting meeting;
    smolvlm_result *result;
    CHECK_OK(smolvlm_session_new(engine, &meeting.session));
    signalled = meeting.session;
    CHECK(signal(SIGUSR1, on_signal) != SIG_ERR);
    result = generate(&meeting, image, interrupt);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_CANCELLED);
    smolvlm_result_free(result);
    smolvlm_session_free(meeting.session);
}

/* The first thread cancels until the second one's generation, whatever its stage, is over. */
struct storm {
    smolvlm_session *session;
    pthread_mutex_t mutex;
    int over;
};

static void *cancel_until_over(void *argument) {
    struct storm *storm = (struct storm *)argument;
    int over = 0;
    while (!over) {
        smolvlm_session_cancel(storm->session);
        pthread_mutex_lock(&storm->mutex);
        over = storm->over;
        pthread_mutex_unlock(&storm->mutex);
    }
    return NULL;
}

static void cancelled_at_any_stage(smolvlm_engine *engine) {
    struct storm storm;
    pthread_t other;
    smolvlm_image image;
    smolvlm_request request = ask(question, &image, 1);
    smolvlm_result *result = NULL;
    memset(&image, 0, sizeof image);
    image.width = image.height = 2000;
    image.format = SMOLVLM_FORMAT_GRAY8;
    image.data_size = (size_t)image.width * image.height;
    image.data = calloc(image.data_size, 1);
    CHECK(image.data != NULL);
    CHECK_OK(smolvlm_session_new(engine, &storm.session));
    CHECK(pthread_mutex_init(&storm.mutex, NULL) == 0);
    storm.over = 0;
    CHECK(pthread_create(&other, NULL, cancel_until_over, &storm) == 0);
    CHECK_OK(smolvlm_session_process(storm.session, &request, &result));
    pthread_mutex_lock(&storm.mutex);
    storm.over = 1;
    pthread_mutex_unlock(&storm.mutex);
    CHECK(pthread_join(other, NULL) == 0);
    CHECK(smolvlm_result_finish_reason(result) == SMOLVLM_FINISH_REASON_CANCELLED);
    smolvlm_result_free(result);
    smolvlm_session_free(storm.session);
    pthread_mutex_destroy(&storm.mutex);
    free((void *)image.data);
}

struct job {
    smolvlm_engine *engine;
    const smolvlm_image *image;
    smolvlm_result *result;
};

/* An error of this thread is not seen by another, and the answer is what it would be alone. */
static void *work(void *argument) {
    struct job *job = (struct job *)argument;
    const smolvlm_request request = ask(question, job->image, 1);
    CHECK(smolvlm_last_error()[0] == '\0');
    CHECK_OK(smolvlm_process(job->engine, &request, &job->result));
    CHECK_FAILS(smolvlm_process(job->engine, NULL, NULL), SMOLVLM_STATUS_INVALID_ARGUMENT, "out: NULL");
    return NULL;
}

static void in_parallel(smolvlm_engine *engine, const smolvlm_image *image) {
    struct job jobs[PARALLEL];
    pthread_t threads[PARALLEL];
    int i;
    for (i = 0; i < PARALLEL; i++) {
        jobs[i].engine = engine;
        jobs[i].image = image;
        jobs[i].result = NULL;
        CHECK(pthread_create(&threads[i], NULL, work, &jobs[i]) == 0);
    }
    for (i = 0; i < PARALLEL; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(same_tokens(jobs[i].result, jobs[0].result));
    }
    for (i = 0; i < PARALLEL; i++) {
        smolvlm_result_free(jobs[i].result);
    }
}

int main(int argc, char **argv) {
    const smolvlm_image image = red_square(SMOLVLM_FORMAT_RGB8, 0);
    smolvlm_engine *engine;
    CHECK(argc == 3);
    engine = load(argv[1]);
    cancelled_from_another_thread(engine, &image);
    cancelled_from_a_signal_handler(engine, &image);
    cancelled_at_any_stage(engine);
    in_parallel(engine, &image);
    smolvlm_free(engine);
    free((void *)image.data);
    return 0;
}
