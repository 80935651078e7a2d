/*
 * libsmolvlm: SmolVLM vision-language models behind a C ABI.
 *
 * This header is the specification. Four rules hold everywhere:
 *
 * - A call that can fail returns a smolvlm_status; smolvlm_last_error() then says what was wrong, in one
 *   line, for this thread. Its out pointer is NULL on failure; freeing NULL is fine. Unless a function
 *   says otherwise, a pointer that is NULL is SMOLVLM_STATUS_INVALID_ARGUMENT.
 * - What the library makes, its _free function frees. What the caller passes in stays the caller's, and
 *   is not looked at after the call.
 * - Strings are UTF-8 and end with a NUL. Codes in structs are int32_t: an unknown one is an error.
 * - Any thread may call anything; a handle must not be freed while another thread begins a call with it.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */


#ifndef SMOLVLM_H
#define SMOLVLM_H

#include <stddef.h>
#include <stdint.h>

/** The version of this header; smolvlm_version() has the library's. */
#define SMOLVLM_VERSION_MAJOR 0
#define SMOLVLM_VERSION_MINOR 1
#define SMOLVLM_VERSION_PATCH 0
#define SMOLVLM_VERSION_STRING "0.1.0"
#define SMOLVLM_VERSION_NUMBER \
    (SMOLVLM_VERSION_MAJOR * 10000 + SMOLVLM_VERSION_MINOR * 100 + SMOLVLM_VERSION_PATCH)

/**
 * What became of a call.
 */
typedef enum smolvlm_status {
  /**
   * It worked.
   */
  SMOLVLM_STATUS_OK = 0,
  /**
   * A value of the caller is NULL, out of range, malformed or inconsistent.
   */
  SMOLVLM_STATUS_INVALID_ARGUMENT = 1,
  /**
   * A file or directory is not there.
   */
  SMOLVLM_STATUS_NOT_FOUND = 2,
  /**
   * A file of the model is damaged, incomplete, or contradicts another one.
   */
  SMOLVLM_STATUS_INVALID_MODEL = 3,
  /**
   * Well-formed, but not something that this build or version does.
   */
  SMOLVLM_STATUS_UNSUPPORTED = 4,
  /**
   * A memory limit would be exceeded.
   */
  SMOLVLM_STATUS_OUT_OF_MEMORY = 5,
  /**
   * The prompt is longer than the context.
   */
  SMOLVLM_STATUS_CONTEXT_OVERFLOW = 6,
  /**
   * The session runs a generation already.
   */
  SMOLVLM_STATUS_BUSY = 7,
  /**
   * The inference backend reported an error.
   */
  SMOLVLM_STATUS_BACKEND = 8,
  /**
   * A defect of the library; a session that answers this once does so until it is freed.
   */
  SMOLVLM_STATUS_INTERNAL = 9,
} smolvlm_status;

/**
 * Why a generation ended. Each of them is an answer, with the text so far.
 */
typedef enum smolvlm_finish_reason {
  /**
   * There is no result: NULL was given.
   */
  SMOLVLM_FINISH_REASON_NONE = 0,
  /**
   * The model ended its answer.
   */
  SMOLVLM_FINISH_REASON_END_OF_TEXT = 1,
  /**
   * `max_new_tokens` were made, or the context is full.
   */
  SMOLVLM_FINISH_REASON_MAX_TOKENS = 2,
  /**
   * One of `stop` appeared; the text ends before it.
   */
  SMOLVLM_FINISH_REASON_STOP_STRING = 3,
  /**
   * `smolvlm_session_cancel` was called, or the text callback returned non-zero.
   */
  SMOLVLM_FINISH_REASON_CANCELLED = 4,
  /**
   * `timeout_ms` passed.
   */
  SMOLVLM_FINISH_REASON_TIMEOUT = 5,
} smolvlm_finish_reason;

/**
 * The engine that computes.
 */
typedef enum smolvlm_backend {
  /**
   * Candle; ONNX Runtime in a build without it.
   */
  SMOLVLM_BACKEND_AUTO = 0,
  /**
   * Candle, in Rust: runs model.safetensors, or its shards.
   */
  SMOLVLM_BACKEND_CANDLE = 1,
  /**
   * ONNX Runtime, loaded at run time: runs the graphs in the model's `onnx` directory.
   */
  SMOLVLM_BACKEND_ONNX = 2,
} smolvlm_backend;

/**
 * Where it computes.
 */
typedef enum smolvlm_device {
  /**
   * The processor: an accelerator is used when it is asked for, never by surprise.
   */
  SMOLVLM_DEVICE_AUTO = 0,
  /**
   * The processor.
   */
  SMOLVLM_DEVICE_CPU = 1,
  /**
   * An NVIDIA GPU.
   */
  SMOLVLM_DEVICE_CUDA = 2,
  /**
   * An Apple GPU.
   */
  SMOLVLM_DEVICE_METAL = 3,
  /**
   * An NVIDIA GPU through TensorRT; the ONNX backend only.
   */
  SMOLVLM_DEVICE_TENSORRT = 4,
} smolvlm_device;

/**
 * The precision of weights and arithmetic. The Candle backend has F32 and BF16, and
 * INT8 and INT4 on the processor; all but INT4 are variants of a model's
 * ONNX graphs, and the ONNX backend has those whose files are in the model's `onnx` directory.
 */
typedef enum smolvlm_dtype {
  /**
   * Candle: on the processor INT8 where it is fast (AVX2 or better), else F32; BF16 on an
   * accelerator. ONNX: the first of F32, F16, INT8, UINT8, QUANTIZED, Q4, Q4F16 and BNB4 that is
   * there; on an accelerator F16 comes before F32.
   */
  SMOLVLM_DTYPE_AUTO = 0,
  /**
   * 32-bit floats: the reference.
   */
  SMOLVLM_DTYPE_F32 = 1,
  /**
   * bfloat16: half the memory, and faster where the processor multiplies it (AVX-512 BF16).
   */
  SMOLVLM_DTYPE_BF16 = 2,
  /**
   * 16-bit floats.
   */
  SMOLVLM_DTYPE_F16 = 3,
  /**
   * Signed 8-bit weights; on Candle quantised while loading, one scale per output, activations,
   * keys and values per token.
   */
  SMOLVLM_DTYPE_INT8 = 4,
  /**
   * Unsigned 8-bit weights.
   */
  SMOLVLM_DTYPE_UINT8 = 5,
  /**
   * 8-bit weights, signed or not.
   */
  SMOLVLM_DTYPE_QUANTIZED = 6,
  /**
   * 4-bit weights in blocks.
   */
  SMOLVLM_DTYPE_Q4 = 7,
  /**
   * 4-bit weights in blocks, the rest in 16-bit floats.
   */
  SMOLVLM_DTYPE_Q4F16 = 8,
  /**
   * 4-bit weights as bitsandbytes has them.
   */
  SMOLVLM_DTYPE_BNB4 = 9,
  /**
   * Candle on the processor: the decoder in 4 to 6 bits, in blocks of 32 weights, the rest as
   * INT8.
   */
  SMOLVLM_DTYPE_INT4 = 10,
} smolvlm_dtype;

/**
 * How the bytes of an image are to be read. The top row comes first. Raw pixels are used as they
 * lie; only a file says how it is to be turned.
 */
typedef enum smolvlm_format {
  /**
   * The bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file; of several pictures
   * the first. It is turned upright as its EXIF orientation says, unless `ignore_exif` is set,
   * and its transparency becomes white. Of 16 bits, gray is scaled as with
   * `SMOLVLM_FORMAT_GRAY16`; colours keep their high byte. HEIC, AVIF and others are named in
   * the error.
   */
  SMOLVLM_FORMAT_ENCODED = 0,
  /**
   * Red, green, blue; `rgb8` in ROS.
   */
  SMOLVLM_FORMAT_RGB8 = 1,
  /**
   * Blue, green, red; `bgr8` in ROS, the default of OpenCV.
   */
  SMOLVLM_FORMAT_BGR8 = 2,
  /**
   * Red, green, blue and a byte that is ignored.
   */
  SMOLVLM_FORMAT_RGBA8 = 3,
  /**
   * Blue, green, red and a byte that is ignored.
   */
  SMOLVLM_FORMAT_BGRA8 = 4,
  /**
   * Luminance; `mono8` in ROS.
   */
  SMOLVLM_FORMAT_GRAY8 = 5,
  /**
   * Depth or luminance of 16 bits in the byte order of this machine, at any address; `mono16`
   * and `16UC1` in ROS. It is scaled so that the picture's largest value becomes white, and 0,
   * where a depth camera saw nothing, stays black: a sensor that marks that with 65535 needs it
   * replaced by 0. Libraries before this value answer `SMOLVLM_STATUS_INVALID_ARGUMENT`.
   */
  SMOLVLM_FORMAT_GRAY16 = 6,
} smolvlm_format;

/**
 * How important a log message is.
 */
typedef enum smolvlm_log_level {
  /**
   * Something is broken.
   */
  SMOLVLM_LOG_LEVEL_ERROR = 1,
  /**
   * Something works, but not as it should.
   */
  SMOLVLM_LOG_LEVEL_WARN = 2,
  /**
   * What was chosen: device, precision, threads.
   */
  SMOLVLM_LOG_LEVEL_INFO = 3,
  /**
   * Details for developers.
   */
  SMOLVLM_LOG_LEVEL_DEBUG = 4,
} smolvlm_log_level;

/**
 * A loaded model: weights, tokenizer, configuration. It never changes; any thread may use it, and
 * several at once, of the process that made it: a child of `fork` that asks it, or a session of
 * it, is told so at once (`SMOLVLM_STATUS_UNSUPPORTED`, "fork: ..."), may free both, and may load
 * the model itself, whatever the parent's threads were doing. A fork waits, two seconds at most,
 * while another thread reads a tokenizer or opens a graph of ONNX Runtime. Made by
 * `smolvlm_create`, freed by `smolvlm_free`.
 */
typedef struct smolvlm_engine smolvlm_engine;

/**
 * An answer. It never changes; any thread may read it. Made by `smolvlm_process` and
 * `smolvlm_session_process`, freed by `smolvlm_result_free`.
 */
typedef struct smolvlm_result smolvlm_result;

/**
 * One conversation and its memory. Any thread may use it, one generation at a time. Made by
 * `smolvlm_session_new`, freed by `smolvlm_session_free`.
 */
typedef struct smolvlm_session smolvlm_session;

/**
 * How to load a model. Zero everywhere, and `struct_size`, is a good start:
 *
 *     smolvlm_options options = {0};
 *     options.struct_size = sizeof options;
 *
 * A struct of another version is accepted, too: fields that it lacks are zero, and fields that the
 * library does not know must be.
 */
typedef struct smolvlm_options {
  /**
   * `sizeof(smolvlm_options)`.
   */
  size_t struct_size;
  /**
   * A `smolvlm_backend`. One that this build lacks is `SMOLVLM_STATUS_UNSUPPORTED`.
   */
  int32_t backend;
  /**
   * A `smolvlm_device`. One that is not there is an error: nothing falls back silently.
   */
  int32_t device;
  /**
   * Which of several devices, from 0.
   */
  uint32_t device_index;
  /**
   * A `smolvlm_dtype`.
   */
  int32_t dtype;
  /**
   * Threads that compute at a time; 0: one for each core that the process may use. Calls that
   * run at once share them: each gets its part while there is one for each, and from then on
   * they take turns, a tile, 384 prompt tokens or an answer's token at a time. With ONNX Runtime
   * each of two graphs (the vision encoder and the decoder) has as many, the calling thread
   * among them, and answers in turn.
   */
  uint32_t num_threads;
  /**
   * Longest conversation, in tokens; 0: as long as the model allows.
   */
  uint32_t context_tokens;
  /**
   * Memory for the weights and the full KV cache of one session, in bytes: `smolvlm_create`
   * answers
   * `SMOLVLM_STATUS_OUT_OF_MEMORY` where they need more. Further sessions are not counted. 0:
   * unlimited.
   */
  uint64_t max_memory_bytes;
  /**
   * File of the ONNX Runtime library, 1.20 or newer; NULL: the environment variable
   * `ORT_DYLIB_PATH`, else the system's. Only the ONNX backend looks at it. A process has one:
   * after the first engine, another file is `SMOLVLM_STATUS_INVALID_ARGUMENT`.
   */
  const char *onnxruntime_path;
  /**
   * Directory in which Candle keeps BF16, INT8 and INT4 weights as this processor wants them;
   * NULL: nowhere. The next load of the same model maps them, and reads and quantises no others;
   * all that a load uses of what a SHA256SUMS lists is verified all the same, and not what it
   * leaves alone. It must be trusted as the model's directory is, and
   * its files must not change in place. One that cannot be made is
   * `SMOLVLM_STATUS_INVALID_ARGUMENT`; a file in it that cannot be written, or is damaged, is
   * logged, and no error. `SMOLVLM_STATUS_UNSUPPORTED` where weights are not packed: F32, an
   * accelerator, ONNX Runtime.
   */
  const char *packed_cache_dir;
  /**
   * A `smolvlm_dtype`: what the KV cache has keys and values in. With Candle's BF16, INT8 and
   * INT4 on the processor, INT8 or BF16, whichever the weights are in: of INT8, a token takes
   * little more than half of the memory (12.6 against 23 KB of the 256M model); BF16 is nearer to
   * F32. AUTO: BF16 with BF16, else INT8. With
   * F32, an accelerator or ONNX Runtime, there is only what the weights or graphs have; another
   * one is `SMOLVLM_STATUS_UNSUPPORTED`.
   */
  int32_t kv_cache;
  /**
   * Zero.
   */
  int32_t reserved;
} smolvlm_options;

/**
 * A picture that the caller owns and leaves untouched until the call returns. One to one with
 * `sensor_msgs/Image` (`data`, `step`) and `cv::Mat` (`data`, `step`). This struct is frozen: it
 * will never change.
 */
typedef struct smolvlm_image {
  /**
   * The pixels, or the bytes of a file.
   */
  const void *data;
  /**
   * Bytes that may be read at `data`. Too few for the picture is
   * `SMOLVLM_STATUS_INVALID_ARGUMENT`.
   */
  size_t data_size;
  /**
   * Bytes from the start of one row to the start of the next; 0: rows without padding. The last
   * row needs no padding.
   */
  size_t stride;
  /**
   * Pixels of a row, 1 to 32768. With `SMOLVLM_FORMAT_ENCODED`, this, `height` and `stride` are
   * 0.
   */
  uint32_t width;
  /**
   * Rows, 1 to 32768; at most 100 million pixels in all.
   */
  uint32_t height;
  /**
   * A `smolvlm_format`.
   */
  int32_t format;
} smolvlm_image;

/**
 * Receives the answer piece by piece, on the thread that called `smolvlm_process` or
 * `smolvlm_session_process`, before that call returns.
 *
 * `text` is UTF-8, holds whole code points, has `size` bytes and a NUL behind them, and is valid
 * during the call only. The pieces put together are the text of the result. Return 0 to go on, any
 * other value to stop: the result then has `SMOLVLM_FINISH_REASON_CANCELLED`. The callback must
 * not throw or `longjmp`; it may call `smolvlm_session_cancel`, `smolvlm_session_free` and
 * `smolvlm_free`; any other call for its own session answers `SMOLVLM_STATUS_BUSY`.
 */
typedef int32_t (*smolvlm_text_callback)(void *user_data, const char *text, size_t size);

/**
 * One question. Zero is the default of every field but `struct_size` and `prompt`; other versions
 * of the struct are accepted as with `smolvlm_options`. Everything it points to is the caller's
 * and is read during the call only.
 */
typedef struct smolvlm_request {
  /**
   * `sizeof(smolvlm_request)`.
   */
  size_t struct_size;
  /**
   * The question: UTF-8, not NULL; with a picture it may be empty, which asks for a caption.
   */
  const char *prompt;
  /**
   * Instructions that precede the conversation, in UTF-8; NULL: none. In a session,
   * later questions leave it NULL or repeat it.
   */
  const char *system_prompt;
  /**
   * The pictures that the question is about, in order; they precede the text.
   */
  const struct smolvlm_image *images;
  /**
   * Number of `images`; 0: a question without a picture.
   */
  size_t image_count;
  /**
   * Scales a picture so that its longer edge has this many pixels before it is cut into tiles:
   * less is faster and sees less. 0: the model's own value.
   */
  uint32_t longest_edge;
  /**
   * Non-zero: each picture is one tile, the fastest and coarsest way.
   */
  int32_t no_split;
  /**
   * Non-zero: encoded pictures are used as stored, whatever their EXIF orientation says; so does
   * the reference.
   */
  int32_t ignore_exif;
  /**
   * Longest answer, in tokens; 0: 256.
   */
  uint32_t max_new_tokens;
  /**
   * Randomness of the answer; 0: none, the likeliest token is always taken.
   */
  float temperature;
  /**
   * Chooses among this many likeliest tokens; 0: among all.
   */
  uint32_t top_k;
  /**
   * Chooses among the likeliest tokens that have this probability together, over 0 to 1; 0: off.
   */
  float top_p;
  /**
   * Chooses among tokens that have at least this share of the likeliest one's probability, over
   * 0 to 1; 0: off.
   */
  float min_p;
  /**
   * Divides the score of tokens that were there before; over 1 avoids repetition; 0: off.
   */
  float repetition_penalty;
  /**
   * Deadline for the whole call in milliseconds: pictures, prompt and answer. When it passes,
   * the text so far is the answer, with `SMOLVLM_FINISH_REASON_TIMEOUT`. 0: none.
   */
  uint32_t timeout_ms;
  /**
   * Start of the random numbers: the same request with the same seed has the same answer.
   */
  uint64_t seed;
  /**
   * Strings in UTF-8 that end the answer where one appears; they are not part of it.
   */
  const char *const *stop;
  /**
   * Number of `stop` strings.
   */
  size_t stop_count;
  /**
   * Receives the answer while it is made; NULL: none.
   */
  smolvlm_text_callback on_text;
  /**
   * First argument of `on_text`.
   */
  void *user_data;
  /**
   * Non-zero: special tokens of the answer are in its text and in what `on_text` receives, but
   * for those that end it and padding. Models that write a document's layout in such tokens need
   * it.
   */
  int32_t keep_special_tokens;
  /**
   * Zero.
   */
  int32_t reserved;
  /**
   * Taken from a token's score for each time that the answer has it already, -2 to 2; 0: off.
   */
  float frequency_penalty;
  /**
   * Taken once from the score of each token that the answer has already, -2 to 2; 0: off.
   */
  float presence_penalty;
} smolvlm_request;

/**
 * What a generation took and used. Times are milliseconds on a monotonic clock; sizes are counts.
 */
typedef struct smolvlm_metrics {
  /**
   * `sizeof(smolvlm_metrics)`, set by the caller.
   */
  size_t struct_size;
  /**
   * Decoding, scaling and cutting the pictures.
   */
  double preprocess_ms;
  /**
   * The vision encoder.
   */
  double vision_ms;
  /**
   * Reading the prompt.
   */
  double prefill_ms;
  /**
   * Writing the answer.
   */
  double decode_ms;
  /**
   * From the start of the call to the first token.
   */
  double time_to_first_token_ms;
  /**
   * The whole call.
   */
  double total_ms;
  /**
   * Tiles that the pictures were cut into.
   */
  uint32_t tiles;
  /**
   * Tokens that stand for pictures.
   */
  uint32_t image_tokens;
  /**
   * Tokens of the whole prompt, with pictures and the conversation before.
   */
  uint32_t prompt_tokens;
  /**
   * Of these, tokens that the session had read already.
   */
  uint32_t cached_tokens;
  /**
   * Tokens of the answer.
   */
  uint32_t generated_tokens;
  /**
   * The `smolvlm_backend` that really computed.
   */
  int32_t backend;
  /**
   * The `smolvlm_device` that really computed.
   */
  int32_t device;
  /**
   * The `smolvlm_dtype` that was really used.
   */
  int32_t dtype;
  /**
   * The `smolvlm_dtype` that the KV cache had keys and values in.
   */
  int32_t kv_cache;
  /**
   * Zero.
   */
  int32_t reserved;
} smolvlm_metrics;

/**
 * Receives log messages, on any thread, from several at once. `level` is a `smolvlm_log_level`;
 * `message` is one line of UTF-8 without a line end, valid during the call only. The callback must
 * not throw or `longjmp`, nor create engines or ask them anything, since it may be called from
 * inside the engine. What the library would log during it is dropped.
 */
typedef void (*smolvlm_log_callback)(void *user_data, int32_t level, const char *message);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Loads a model.
 *
 * `model_dir` is the path, in UTF-8, of a directory as the Hugging Face hub publishes it:
 * config.json, tokenizer.json, model.safetensors or its shards for Candle, `onnx/` for ONNX
 * Runtime. Where there is no such directory, it may be a hub id, `owner/name` or
 * `owner/name@revision`, that the hub's local cache holds (`HF_HUB_CACHE`, else
 * `HUGGINGFACE_HUB_CACHE`, else `HF_HOME`, else `~/.cache/huggingface`); nothing is
 * fetched, and the message says what would fetch it. `options` may be NULL: all defaults. `*out`
 * is the engine, to be freed with `smolvlm_free`, or NULL on failure. The directory must not
 * change while the engine lives: a backend may keep its weights mapped.
 *
 * Any thread. INVALID_ARGUMENT: an argument, named in the message. NOT_FOUND: the directory, one
 * of its files, or ONNX Runtime. INVALID_MODEL: a file, named. UNSUPPORTED: a kind of model,
 * backend, device or precision, or a library that is no ONNX Runtime or too old. OUT_OF_MEMORY:
 * over `max_memory_bytes`. BACKEND: the inference engine's own error.
 */
enum smolvlm_status smolvlm_create(const char *model_dir,
                                   const struct smolvlm_options *options,
                                   struct smolvlm_engine **out);

/**
 * Answers one question. Nothing is kept: the next question starts anew. See
 * `smolvlm_session_process` for conversations.
 *
 * `request` is read during the call only. `*out` is the answer, to be freed with
 * `smolvlm_result_free`, or NULL on failure. A deadline that passed and a callback that stopped
 * are no failures: the result says so and has the text so far.
 *
 * Any thread, and several at once with one engine. INVALID_ARGUMENT: an argument, named in the
 * message. CONTEXT_OVERFLOW: the prompt with its pictures is longer than the context.
 * OUT_OF_MEMORY, UNSUPPORTED, BACKEND: see the message. INTERNAL: a defect; the engine stays
 * usable.
 */
enum smolvlm_status smolvlm_process(struct smolvlm_engine *engine,
                                    const struct smolvlm_request *request,
                                    struct smolvlm_result **out);

/**
 * Frees an engine; NULL is fine. Its sessions live on, and so does a call that is running: the
 * memory goes with the last of them. Any thread, once per engine.
 */
void smolvlm_free(struct smolvlm_engine *engine);

/**
 * Starts a conversation.
 *
 * `engine` may be freed before the session. `*out` is the session, to be freed with
 * `smolvlm_session_free`, or NULL on failure.
 *
 * Any thread. INVALID_ARGUMENT: an argument is NULL. OUT_OF_MEMORY: over `max_memory_bytes`.
 * BACKEND: the inference engine's own error.
 */
enum smolvlm_status smolvlm_session_new(struct smolvlm_engine *engine, struct smolvlm_session **out);

/**
 * Asks the next question of a conversation; the model sees the earlier ones, their pictures and
 * their answers.
 *
 * As `smolvlm_process`, and further: BUSY: a generation of this session is running, on another
 * thread or around the callback that makes this call. INTERNAL: a defect; if it was a panic, the
 * session answers so until it is freed. After a failure of another kind, and after a stop
 * (deadline, cancel, callback) before the first token, the conversation is as it was before the
 * call: question, pictures and system prompt are to be given again.
 */
enum smolvlm_status smolvlm_session_process(struct smolvlm_session *session,
                                            const struct smolvlm_request *request,
                                            struct smolvlm_result **out);

/**
 * Ends the generation that the session is running: it returns soon, with the text so far and
 * `SMOLVLM_FINISH_REASON_CANCELLED`. An idle session is not affected, nor is its next generation.
 * NULL is fine.
 *
 * Any thread, the text callback, and a signal handler: it stores one atomic value. The session
 * must not be freed meanwhile.
 */
void smolvlm_session_cancel(struct smolvlm_session *session);

/**
 * Forgets the conversation; the session is as new.
 *
 * Any thread. INVALID_ARGUMENT: `session` is NULL. BUSY, INTERNAL: as `smolvlm_session_process`.
 * UNSUPPORTED: in a child of `fork`.
 */
enum smolvlm_status smolvlm_session_reset(struct smolvlm_session *session);

/**
 * Frees a session; NULL is fine. A call that is running with it ends as it would have, and the
 * memory goes then. Any thread, once per session.
 */
void smolvlm_session_free(struct smolvlm_session *session);

/**
 * The text: UTF-8, NUL-terminated, without another NUL, owned by the result. `out_size` receives
 * its bytes without the last NUL, and may be NULL. A result that is NULL has the text "". Any
 * thread.
 */
const char *smolvlm_result_text(const struct smolvlm_result *result, size_t *out_size);

/**
 * Why the answer ended; `SMOLVLM_FINISH_REASON_NONE` for NULL. Any thread.
 */
enum smolvlm_finish_reason smolvlm_result_finish_reason(const struct smolvlm_result *result);

/**
 * The ids of the tokens that the model made, without the one that ends an answer; owned by the
 * result. `out_count` receives their number, and may be NULL. NULL has none. Any thread.
 */
const uint32_t *smolvlm_result_tokens(const struct smolvlm_result *result, size_t *out_count);

/**
 * The ids of the tokens that the model read, the conversation before and the places of the
 * pictures included; owned by the result. `out_count` receives their number, and may be NULL. NULL
 * has none. Any thread.
 */
const uint32_t *smolvlm_result_prompt_tokens(const struct smolvlm_result *result, size_t *out_count);

/**
 * What the answer took and used. The caller sets `out->struct_size`; the rest is filled in, as far
 * as the struct of the caller's version goes.
 *
 * Any thread. INVALID_ARGUMENT: an argument is NULL, or `struct_size` is no size of this struct.
 */
enum smolvlm_status smolvlm_result_metrics(const struct smolvlm_result *result, struct smolvlm_metrics *out);

/**
 * Frees a result, with its text and its tokens; NULL is fine. Any thread, once per result.
 */
void smolvlm_result_free(struct smolvlm_result *result);

/**
 * The version of the library that is loaded, e.g. "0.1.0"; the header's is
 * `SMOLVLM_VERSION_STRING`. A static string. Any thread.
 */
const char *smolvlm_version(void);

/**
 * The version of the library that is loaded, as `SMOLVLM_VERSION_NUMBER` is made: 10000 times
 * major, plus 100 times minor, plus patch. Any thread.
 */
uint32_t smolvlm_version_number(void);

/**
 * Version, target and backends of the library that is loaded, separated by spaces: a line
 * for a bug report. A static string. Any thread.
 */
const char *smolvlm_build_info(void);

/**
 * The name of a status, e.g. "INVALID_ARGUMENT"; "UNKNOWN" for a number that is none. A static
 * string. Any thread.
 */
const char *smolvlm_status_name(int32_t status);

/**
 * What went wrong in the last call on this thread that returned a status: one line of UTF-8, ""
 * after
 * `SMOLVLM_STATUS_OK` and before the first such call, never NULL. Owned by the library, valid
 * until this thread makes the next such call or ends.
 */
const char *smolvlm_last_error(void);

/**
 * Sends what the library has to say to `callback`, for the whole process; NULL ends that, and is
 * how it begins. When this returns, the callback that was set before is not running and will not
 * be called again.
 *
 * Any thread. BUSY: called from inside a log callback.
 */
enum smolvlm_status smolvlm_set_log_callback(smolvlm_log_callback callback, void *user_data);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SMOLVLM_H */
