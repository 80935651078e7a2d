// libsmolvlm for C++11 and later: the handles of smolvlm.h as owning objects, its statuses as exceptions.
//
// Nothing here that smolvlm.h cannot do; what a call means, which thread may make it and how it fails is
// said there.

#ifndef SMOLVLM_HPP
#define SMOLVLM_HPP

#include <smolvlm.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace smolvlm {

/// A call that failed: its status, and smolvlm_last_error() as what().
class Error : public std::runtime_error {
public:
    Error(smolvlm_status status, const char *message) : std::runtime_error(message), status_(status) {}
    smolvlm_status status() const noexcept { return status_; }

private:
    smolvlm_status status_;
};

/// Throws an Error for any status but SMOLVLM_STATUS_OK.
inline void check(smolvlm_status status) {
    if (status != SMOLVLM_STATUS_OK) {
        throw Error(status, smolvlm_last_error());
    }
}

/// Default options, with struct_size set.
inline smolvlm_options options() {
    smolvlm_options options = smolvlm_options();
    options.struct_size = sizeof options;
    return options;
}

/// A request with struct_size and prompt set; `prompt` must outlive the call that it is used in.
inline smolvlm_request request(const char *prompt) {
    smolvlm_request request = smolvlm_request();
    request.struct_size = sizeof request;
    request.prompt = prompt;
    return request;
}

/// The bytes of a file of a kind that SMOLVLM_FORMAT_ENCODED names; they must outlive the call that the image is used in.
inline smolvlm_image encoded_image(const void *data, std::size_t size) {
    smolvlm_image image = smolvlm_image();
    image.data = data;
    image.data_size = size;
    image.format = SMOLVLM_FORMAT_ENCODED;
    return image;
}

/// Receives a piece of the answer; false stops the generation. What it throws, the call throws.
using OnText = std::function<bool(const std::string &)>;

/// An answer.
class Result {
public:
    /// Takes over a result of the C functions.
    explicit Result(smolvlm_result *result) noexcept : result_(result) {}

    std::string text() const {
        std::size_t size = 0;
        const char *text = smolvlm_result_text(get(), &size);
        return std::string(text, size);
    }
    smolvlm_finish_reason finish_reason() const noexcept { return smolvlm_result_finish_reason(get()); }
    std::vector<std::uint32_t> tokens() const { return ids(smolvlm_result_tokens); }
    std::vector<std::uint32_t> prompt_tokens() const { return ids(smolvlm_result_prompt_tokens); }
    smolvlm_metrics metrics() const {
        smolvlm_metrics metrics = smolvlm_metrics();
        metrics.struct_size = sizeof metrics;
        check(smolvlm_result_metrics(get(), &metrics));
        return metrics;
    }
    const smolvlm_result *get() const noexcept { return result_.get(); }

private:
    std::vector<std::uint32_t> ids(const std::uint32_t *(*list)(const smolvlm_result *, std::size_t *)) const {
        std::size_t count = 0;
        const std::uint32_t *ids = list(get(), &count);
        return std::vector<std::uint32_t>(ids, ids + count);
    }

    struct Free {
        void operator()(smolvlm_result *result) const noexcept { smolvlm_result_free(result); }
    };
    std::unique_ptr<smolvlm_result, Free> result_;
};

namespace detail {

/// Carries a callback through C: an exception must not unwind through the library's frames.
class Trampoline {
public:
    explicit Trampoline(const OnText &on_text) : on_text_(on_text) {}

    /// Runs `process` with `request`, whose callback becomes this one if there is one.
    template <typename Process>
    Result run(smolvlm_request request, Process process) {
        if (on_text_) {
            request.on_text = &Trampoline::call;
            request.user_data = this;
        }
        smolvlm_result *out = nullptr;
        const smolvlm_status status = process(&request, &out);
        Result result(out);
        if (thrown_) {
            std::rethrow_exception(thrown_);
        }
        check(status);
        return result;
    }

private:
    static std::int32_t call(void *user_data, const char *text, std::size_t size) {
        Trampoline *self = static_cast<Trampoline *>(user_data);
        try {
            return self->on_text_(std::string(text, size)) ? 0 : 1;
        } catch (...) {
            self->thrown_ = std::current_exception();
            return 1;
        }
    }

    const OnText &on_text_;
    std::exception_ptr thrown_;
};

}  // namespace detail

/// A loaded model. Any thread may use it, and several at once.
class Engine {
public:
    explicit Engine(const std::string &model_dir, const smolvlm_options &options = smolvlm::options()) {
        smolvlm_engine *engine = nullptr;
        check(smolvlm_create(model_dir.c_str(), &options, &engine));
        engine_.reset(engine);
    }

    /// Answers one question; nothing is kept. With an `on_text`, the request's own callback is not used.
    Result process(const smolvlm_request &request, const OnText &on_text = OnText()) const {
        return detail::Trampoline(on_text).run(request, [this](const smolvlm_request *r, smolvlm_result **out) {
            return smolvlm_process(get(), r, out);
        });
    }
    smolvlm_engine *get() const noexcept { return engine_.get(); }

private:
    struct Free {
        void operator()(smolvlm_engine *engine) const noexcept { smolvlm_free(engine); }
    };
    std::unique_ptr<smolvlm_engine, Free> engine_;
};

/// A conversation. One generation at a time; cancel() from any thread. May outlive its engine.
class Session {
public:
    explicit Session(const Engine &engine) {
        smolvlm_session *session = nullptr;
        check(smolvlm_session_new(engine.get(), &session));
        session_.reset(session);
    }

    /// Asks the next question. With an `on_text`, the request's own callback is not used.
    Result process(const smolvlm_request &request, const OnText &on_text = OnText()) {
        return detail::Trampoline(on_text).run(request, [this](const smolvlm_request *r, smolvlm_result **out) {
            return smolvlm_session_process(get(), r, out);
        });
    }
    void cancel() noexcept { smolvlm_session_cancel(get()); }
    void reset() { check(smolvlm_session_reset(get())); }
    smolvlm_session *get() const noexcept { return session_.get(); }

private:
    struct Free {
        void operator()(smolvlm_session *session) const noexcept { smolvlm_session_free(session); }
    };
    std::unique_ptr<smolvlm_session, Free> session_;
};

}  // namespace smolvlm

#endif
