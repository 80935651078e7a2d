// What smolvlm.hpp adds to smolvlm.h: owning handles, exceptions, callbacks that may throw. hpp MODEL_DIR IMAGE_FILE

#include <smolvlm.hpp>

#include "check.h"

#include <type_traits>
#include <utility>

static_assert(std::is_move_constructible<smolvlm::Engine>::value, "an engine can be handed on");
static_assert(!std::is_copy_constructible<smolvlm::Engine>::value, "an engine has one owner");
static_assert(!std::is_copy_constructible<smolvlm::Session>::value, "a session has one owner");
static_assert(!std::is_copy_constructible<smolvlm::Result>::value, "a result has one owner");

namespace {

template <typename Call>
void throws(smolvlm_status status, const char *text, Call call) {
    try {
        call();
    } catch (const smolvlm::Error &error) {
        CHECK(error.status() == status);
        CHECK(strstr(error.what(), text) != nullptr);
        return;
    }
    CHECK(!"an exception");
}

struct Thrown {
    int value;
};

}  // namespace

int main(int argc, char **argv) {
    CHECK(argc == 3);
    throws(SMOLVLM_STATUS_NOT_FOUND, "/nowhere", [] { smolvlm::Engine("/nowhere"); });

    smolvlm_options options = smolvlm::options();
    options.num_threads = 1;
    smolvlm::Engine loaded(argv[1], options);
    const smolvlm::Engine engine(std::move(loaded));
    throws(SMOLVLM_STATUS_INVALID_ARGUMENT, "request.prompt: NULL", [&] { engine.process(smolvlm::request(nullptr)); });
    throws(SMOLVLM_STATUS_INVALID_ARGUMENT, "engine: NULL", [&] { loaded.process(smolvlm::request("?")); });

    std::size_t size = 0;
    void *file = read_file(argv[2], &size);
    const smolvlm_image image = smolvlm::encoded_image(file, size);
    smolvlm_request request = smolvlm::request("What objects are in this image?");
    request.images = &image;
    request.image_count = 1;
    request.max_new_tokens = 12;

    std::string streamed;
    const smolvlm::Result result = engine.process(request, [&](const std::string &text) {
        streamed += text;
        return true;
    });
    CHECK(!result.text().empty() && result.text() == streamed);
    CHECK(result.tokens().size() == result.metrics().generated_tokens);
    CHECK(result.prompt_tokens().size() == result.metrics().prompt_tokens);
    CHECK(engine.process(request).tokens() == result.tokens());

    smolvlm::Session session(engine);
    int calls = 0;
    const smolvlm::Result stopped = session.process(request, [&](const std::string &) { return ++calls != 1; });
    CHECK(calls == 1 && stopped.finish_reason() == SMOLVLM_FINISH_REASON_CANCELLED);
    session.reset();

    calls = 0;
    try {
        session.process(request, [&](const std::string &) -> bool {
            calls++;
            throw Thrown{7};
        });
        CHECK(!"an exception");
    } catch (const Thrown &thrown) {
        CHECK(thrown.value == 7 && calls == 1);
    }
    // The exception unwound through the caller's frames only: the session works.
    session.reset();
    CHECK(session.process(request).tokens() == result.tokens());
    const smolvlm::Result cancelled = [&] {
        session.reset();
        return session.process(request, [&](const std::string &) {
            session.cancel();
            return true;
        });
    }();
    CHECK(cancelled.finish_reason() == SMOLVLM_FINISH_REASON_CANCELLED);

    // The request's own callback is used where no other is given.
    int pieces = 0;
    request.user_data = &pieces;
    request.on_text = [](void *user_data, const char *, std::size_t) -> std::int32_t {
        ++*static_cast<int *>(user_data);
        return 0;
    };
    engine.process(request);
    CHECK(pieces > 0);
    request.on_text = nullptr;
    request.max_new_tokens = 40;
    request.temperature = 4;
    int apart = 0;
    for (request.seed = 0; request.seed < 4; request.seed++) {
        const std::vector<std::uint32_t> plain = engine.process(request).tokens();
        request.frequency_penalty = 2;
        const std::vector<std::uint32_t> frequency = engine.process(request).tokens();
        request.frequency_penalty = 0;
        apart += plain != frequency;
    }
    CHECK(apart > 0);

    // A picture without words is a question.
    request.temperature = 0;
    request.prompt = "";
    CHECK(!engine.process(request).text().empty());
    free(file);
    return 0;
}
