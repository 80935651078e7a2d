// A camera node: camera MODEL_DIR [--frames N] [--timeout-ms N] [--ppm FILE]
//
// One thread delivers BGR8 frames, as ROS and OpenCV have them, at 30 a second; the other asks about the
// newest one, with a deadline, and never about a stale one. A frame that fails costs a message, not the
// process. Without --ppm the frames are drawn: a red square that moves over a gray floor.

#include <smolvlm.hpp>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

/// A frame with rows padded to 64 bytes, as drivers deliver them.
struct Frame {
    std::vector<unsigned char> pixels;
    std::size_t stride = 0;
    unsigned width = 0;
    unsigned height = 0;
    unsigned number = 0;

    Frame() = default;
    Frame(unsigned w, unsigned h) : stride((w * 3u + 63u) / 64u * 64u), width(w), height(h) {
        pixels.resize(stride * h);
    }

    unsigned char *at(unsigned x, unsigned y) { return &pixels[y * stride + x * 3u]; }

    smolvlm_image image() const {
        smolvlm_image image = smolvlm_image();
        image.data = pixels.data();
        image.data_size = pixels.size();
        image.stride = stride;
        image.width = width;
        image.height = height;
        image.format = SMOLVLM_FORMAT_BGR8;
        return image;
    }
};

/// Holds the newest frame: a slow reader misses frames, and never falls behind.
class Mailbox {
public:
    void put(Frame frame) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            newest_ = std::move(frame);
            full_ = true;
        }
        changed_.notify_one();
    }

    void close() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            closed_ = true;
        }
        changed_.notify_one();
    }

    /// False once the camera has stopped.
    bool take(Frame &frame) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return full_ || closed_; });
        if (!full_) {
            return false;
        }
        frame = std::move(newest_);
        full_ = false;
        return true;
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    Frame newest_;
    bool full_ = false;
    bool closed_ = false;
};

Frame draw(unsigned number) {
    const unsigned side = 160;
    Frame frame(640, 480);
    const unsigned left = number * 16u % (frame.width - side);
    for (unsigned y = 0; y < frame.height; y++) {
        for (unsigned x = 0; x < frame.width; x++) {
            const bool inside = x >= left && x < left + side && y >= 160 && y < 160 + side;
            unsigned char *bgr = frame.at(x, y);
            bgr[0] = bgr[1] = inside ? 30 : 170;
            bgr[2] = inside ? 220 : 170;
        }
    }
    return frame;
}

Frame read_ppm(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    unsigned width = 0, height = 0, most = 0;
    file >> magic >> width >> height >> most;
    if (!file || magic != "P6" || most != 255 || width == 0 || height == 0 || width > 32768 || height > 32768) {
        throw std::runtime_error(path + ": no binary PPM (P6) with 8 bits");
    }
    file.get();
    Frame frame(width, height);
    std::vector<char> row(width * 3u);
    for (unsigned y = 0; y < height; y++) {
        if (!file.read(row.data(), static_cast<std::streamsize>(row.size()))) {
            throw std::runtime_error(path + ": ends in row " + std::to_string(y));
        }
        for (unsigned x = 0; x < width; x++) {
            for (unsigned c = 0; c < 3; c++) {
                frame.at(x, y)[c] = static_cast<unsigned char>(row[x * 3u + 2u - c]);
            }
        }
    }
    return frame;
}

/// Stops the camera and waits for its thread, however the scope is left.
class Camera {
public:
    Camera(Mailbox &mailbox, std::string ppm) : mailbox_(mailbox), thread_(&Camera::deliver, this, std::move(ppm)) {}
    ~Camera() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

private:
    void deliver(const std::string &ppm) {
        try {
            const Frame still = ppm.empty() ? Frame() : read_ppm(ppm);
            const std::chrono::milliseconds period(33);
            std::unique_lock<std::mutex> lock(mutex_);
            for (unsigned number = 0; !stop_; number++) {
                Frame frame = ppm.empty() ? draw(number) : still;
                frame.number = number;
                mailbox_.put(std::move(frame));
                changed_.wait_for(lock, period, [this] { return stop_; });
            }
        } catch (const std::exception &error) {
            std::fprintf(stderr, "camera: %s\n", error.what());
        }
        mailbox_.close();
    }

    Mailbox &mailbox_;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool stop_ = false;
    std::thread thread_;
};

const char *name(smolvlm_finish_reason reason) {
    switch (reason) {
    case SMOLVLM_FINISH_REASON_END_OF_TEXT: return "complete";
    case SMOLVLM_FINISH_REASON_TIMEOUT: return "deadline passed";
    default: return "cut short";
    }
}

int run(const std::string &model_dir, unsigned frames, unsigned timeout_ms, const std::string &ppm) {
    smolvlm::Engine engine(model_dir);
    Mailbox mailbox;
    Camera camera(mailbox, ppm);

    smolvlm_request request = smolvlm::request("What objects are in this image?");
    request.max_new_tokens = 32;
    request.timeout_ms = timeout_ms;
    // A frame is one tile: what a control loop needs to know is large in the picture.
    request.no_split = 1;

    unsigned answered = 0;
    Frame frame;
    for (unsigned i = 0; i < frames && mailbox.take(frame); i++) {
        const smolvlm_image image = frame.image();
        request.images = &image;
        request.image_count = 1;
        std::printf("frame %u: ", frame.number);
        try {
            const smolvlm::Result result = engine.process(request, [](const std::string &text) {
                std::fputs(text.c_str(), stdout);
                std::fflush(stdout);
                return true;
            });
            const smolvlm_metrics metrics = result.metrics();
            std::printf(" [%s; vision %.1f ms, prompt %.1f ms, answer %.1f ms, total %.1f ms]\n",
                        name(result.finish_reason()), metrics.vision_ms, metrics.prefill_ms, metrics.decode_ms,
                        metrics.total_ms);
            answered++;
        } catch (const smolvlm::Error &error) {
            std::printf("%s: %s\n", smolvlm_status_name(error.status()), error.what());
        }
    }
    return answered == frames ? EXIT_SUCCESS : EXIT_FAILURE;
}

unsigned number(const char *text) {
    char *end = nullptr;
    const unsigned long value = std::strtoul(text, &end, 10);
    if (end == text || *end != '\0' || value == 0 || value > 1000000) {
        throw std::runtime_error(std::string(text) + ": no number from 1 to 1000000");
    }
    return static_cast<unsigned>(value);
}

}  // namespace

int main(int argc, char **argv) {
    try {
        unsigned frames = 5, timeout_ms = 2000;
        std::string ppm;
        for (int i = 2; i < argc; i += 2) {
            const std::string option = argv[i];
            if (i + 1 == argc) {
                throw std::runtime_error(option + ": needs a value");
            } else if (option == "--frames") {
                frames = number(argv[i + 1]);
            } else if (option == "--timeout-ms") {
                timeout_ms = number(argv[i + 1]);
            } else if (option == "--ppm") {
                ppm = argv[i + 1];
            } else {
                throw std::runtime_error(option + ": unknown option");
            }
        }
        if (argc < 2) {
            throw std::runtime_error("usage: camera MODEL_DIR [--frames N] [--timeout-ms N] [--ppm FILE]");
        }
        return run(argv[1], frames, timeout_ms, ppm);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
}
