//! Everything that C sees as a type: codes, structs and callbacks.
//!
//! A code that C passes in is an `int32_t` there, so that an unknown value is an error and never
//! undefined behaviour. Growable structs begin with `struct_size` and have no padding: the bytes
//! behind the last known field of a newer program's struct are then fields, or zero.

use std::ffi::{c_char, c_void};

use crate::answer::FinishReason;
use crate::error::ErrorKind;
use crate::options::{BackendKind, DTypeKind, DeviceKind};

/// What became of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_status {
    /// It worked.
    Ok = 0,
    /// A value of the caller is NULL, out of range, malformed or inconsistent.
    InvalidArgument = 1,
    /// A file or directory is not there.
    NotFound = 2,
    /// A file of the model is damaged, incomplete, or contradicts another one.
    InvalidModel = 3,
    /// Well-formed, but not something that this build or version does.
    Unsupported = 4,
    /// A memory limit would be exceeded.
    OutOfMemory = 5,
    /// The prompt is longer than the context.
    ContextOverflow = 6,
    /// The session runs a generation already.
    Busy = 7,
    /// The inference backend reported an error.
    Backend = 8,
    /// A defect of the library; a session that answers this once does so until it is freed.
    Internal = 9,
}

impl From<ErrorKind> for smolvlm_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::InvalidArgument => Self::InvalidArgument,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::InvalidModel => Self::InvalidModel,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::OutOfMemory => Self::OutOfMemory,
            ErrorKind::ContextOverflow => Self::ContextOverflow,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::Backend => Self::Backend,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

/// Why a generation ended. Each of them is an answer, with the text so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_finish_reason {
    /// There is no result: NULL was given.
    None = 0,
    /// The model ended its answer.
    EndOfText = 1,
    /// `max_new_tokens` were made, or the context is full.
    MaxTokens = 2,
    /// One of `stop` appeared; the text ends before it.
    StopString = 3,
    /// `smolvlm_session_cancel` was called, or the text callback returned non-zero.
    Cancelled = 4,
    /// `timeout_ms` passed.
    Timeout = 5,
}

impl From<FinishReason> for smolvlm_finish_reason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::EndOfText => Self::EndOfText,
            FinishReason::MaxTokens => Self::MaxTokens,
            FinishReason::StopString => Self::StopString,
            FinishReason::Cancelled => Self::Cancelled,
            FinishReason::Timeout => Self::Timeout,
        }
    }
}

/// The engine that computes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_backend {
    /// Candle; ONNX Runtime in a build without it.
    Auto = 0,
    /// Candle, in Rust: runs model.safetensors, or its shards.
    Candle = 1,
    /// ONNX Runtime, loaded at run time: runs the graphs in the model's `onnx` directory.
    Onnx = 2,
}

impl From<BackendKind> for smolvlm_backend {
    fn from(kind: BackendKind) -> Self {
        match kind {
            BackendKind::Auto => Self::Auto,
            BackendKind::Candle => Self::Candle,
            BackendKind::Onnx => Self::Onnx,
        }
    }
}

/// Where it computes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_device {
    /// The processor: an accelerator is used when it is asked for, never by surprise.
    Auto = 0,
    /// The processor.
    Cpu = 1,
    /// An NVIDIA GPU.
    Cuda = 2,
    /// An Apple GPU.
    Metal = 3,
    /// An NVIDIA GPU through TensorRT; the ONNX backend only.
    Tensorrt = 4,
}

impl From<DeviceKind> for smolvlm_device {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Auto => Self::Auto,
            DeviceKind::Cpu => Self::Cpu,
            DeviceKind::Cuda => Self::Cuda,
            DeviceKind::Metal => Self::Metal,
            DeviceKind::TensorRt => Self::Tensorrt,
        }
    }
}

/// The precision of weights and arithmetic. The Candle backend has F32 and BF16, and
/// INT8 and INT4 on the processor; all but INT4 are variants of a model's
/// ONNX graphs, and the ONNX backend has those whose files are in the model's `onnx` directory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_dtype {
    /// Candle: on the processor INT8 where it is fast (AVX2 or better), else F32; BF16 on an
    /// accelerator. ONNX: the first of F32, F16, INT8, UINT8, QUANTIZED, Q4, Q4F16 and BNB4 that is
    /// there; on an accelerator F16 comes before F32.
    Auto = 0,
    /// 32-bit floats: the reference.
    F32 = 1,
    /// bfloat16: half the memory, and faster where the processor multiplies it (AVX-512 BF16).
    Bf16 = 2,
    /// 16-bit floats.
    F16 = 3,
    /// Signed 8-bit weights; on Candle quantised while loading, one scale per output, activations,
    /// keys and values per token.
    Int8 = 4,
    /// Unsigned 8-bit weights.
    Uint8 = 5,
    /// 8-bit weights, signed or not.
    Quantized = 6,
    /// 4-bit weights in blocks.
    Q4 = 7,
    /// 4-bit weights in blocks, the rest in 16-bit floats.
    Q4f16 = 8,
    /// 4-bit weights as bitsandbytes has them.
    Bnb4 = 9,
    /// Candle on the processor: the decoder in 4 to 6 bits, in blocks of 32 weights, the rest as
    /// INT8.
    Int4 = 10,
}

impl From<DTypeKind> for smolvlm_dtype {
    fn from(kind: DTypeKind) -> Self {
        match kind {
            DTypeKind::Auto => Self::Auto,
            DTypeKind::F32 => Self::F32,
            DTypeKind::Bf16 => Self::Bf16,
            DTypeKind::F16 => Self::F16,
            DTypeKind::Int8 => Self::Int8,
            DTypeKind::Uint8 => Self::Uint8,
            DTypeKind::Quantized => Self::Quantized,
            DTypeKind::Q4 => Self::Q4,
            DTypeKind::Q4F16 => Self::Q4f16,
            DTypeKind::Bnb4 => Self::Bnb4,
            DTypeKind::Int4 => Self::Int4,
        }
    }
}

/// How the bytes of an image are to be read. The top row comes first. Raw pixels are used as they
/// lie; only a file says how it is to be turned.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_format {
    /// The bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file; of several pictures
    /// the first. It is turned upright as its EXIF orientation says, unless `ignore_exif` is set,
    /// and its transparency becomes white. Of 16 bits, gray is scaled as with
    /// `SMOLVLM_FORMAT_GRAY16`; colours keep their high byte. HEIC, AVIF and others are named in
    /// the error.
    Encoded = 0,
    /// Red, green, blue; `rgb8` in ROS.
    Rgb8 = 1,
    /// Blue, green, red; `bgr8` in ROS, the default of OpenCV.
    Bgr8 = 2,
    /// Red, green, blue and a byte that is ignored.
    Rgba8 = 3,
    /// Blue, green, red and a byte that is ignored.
    Bgra8 = 4,
    /// Luminance; `mono8` in ROS.
    Gray8 = 5,
    /// Depth or luminance of 16 bits in the byte order of this machine, at any address; `mono16`
    /// and `16UC1` in ROS. It is scaled so that the picture's largest value becomes white, and 0,
    /// where a depth camera saw nothing, stays black: a sensor that marks that with 65535 needs it
    /// replaced by 0. Libraries before this value answer `SMOLVLM_STATUS_INVALID_ARGUMENT`.
    Gray16 = 6,
}

/// How important a log message is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum smolvlm_log_level {
    /// Something is broken.
    Error = 1,
    /// Something works, but not as it should.
    Warn = 2,
    /// What was chosen: device, precision, threads.
    Info = 3,
    /// Details for developers.
    Debug = 4,
}

/// Receives the answer piece by piece, on the thread that called `smolvlm_process` or
/// `smolvlm_session_process`, before that call returns.
///
/// `text` is UTF-8, holds whole code points, has `size` bytes and a NUL behind them, and is valid
/// during the call only. The pieces put together are the text of the result. Return 0 to go on, any
/// other value to stop: the result then has `SMOLVLM_FINISH_REASON_CANCELLED`. The callback must
/// not throw or `longjmp`; it may call `smolvlm_session_cancel`, `smolvlm_session_free` and
/// `smolvlm_free`; any other call for its own session answers `SMOLVLM_STATUS_BUSY`.
pub type smolvlm_text_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, text: *const c_char, size: usize) -> i32>;

/// Receives log messages, on any thread, from several at once. `level` is a `smolvlm_log_level`;
/// `message` is one line of UTF-8 without a line end, valid during the call only. The callback must
/// not throw or `longjmp`, nor create engines or ask them anything, since it may be called from
/// inside the engine. What the library would log during it is dropped.
pub type smolvlm_log_callback =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char)>;

/// How to load a model. Zero everywhere, and `struct_size`, is a good start:
///
///     smolvlm_options options = {0};
///     options.struct_size = sizeof options;
///
/// A struct of another version is accepted, too: fields that it lacks are zero, and fields that the
/// library does not know must be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smolvlm_options {
    /// `sizeof(smolvlm_options)`.
    pub struct_size: usize,
    /// A `smolvlm_backend`. One that this build lacks is `SMOLVLM_STATUS_UNSUPPORTED`.
    pub backend: i32,
    /// A `smolvlm_device`. One that is not there is an error: nothing falls back silently.
    pub device: i32,
    /// Which of several devices, from 0.
    pub device_index: u32,
    /// A `smolvlm_dtype`.
    pub dtype: i32,
    /// Threads that compute at a time; 0: one for each core that the process may use. Calls that
    /// run at once share them: each gets its part while there is one for each, and from then on
    /// they take turns, a tile, 384 prompt tokens or an answer's token at a time. With ONNX Runtime
    /// each of two graphs (the vision encoder and the decoder) has as many, the calling thread
    /// among them, and answers in turn.
    pub num_threads: u32,
    /// Longest conversation, in tokens; 0: as long as the model allows.
    pub context_tokens: u32,
    /// Memory for the weights and the full KV cache of one session, in bytes: `smolvlm_create`
    /// answers
    /// `SMOLVLM_STATUS_OUT_OF_MEMORY` where they need more. Further sessions are not counted. 0:
    /// unlimited.
    pub max_memory_bytes: u64,
    /// File of the ONNX Runtime library, 1.20 or newer; NULL: the environment variable
    /// `ORT_DYLIB_PATH`, else the system's. Only the ONNX backend looks at it. A process has one:
    /// after the first engine, another file is `SMOLVLM_STATUS_INVALID_ARGUMENT`.
    pub onnxruntime_path: *const c_char,
    /// Directory in which Candle keeps BF16, INT8 and INT4 weights as this processor wants them;
    /// NULL: nowhere. The next load of the same model maps them, and reads and quantises no others;
    /// all that a load uses of what a SHA256SUMS lists is verified all the same, and not what it
    /// leaves alone. It must be trusted as the model's directory is, and
    /// its files must not change in place. One that cannot be made is
    /// `SMOLVLM_STATUS_INVALID_ARGUMENT`; a file in it that cannot be written, or is damaged, is
    /// logged, and no error. `SMOLVLM_STATUS_UNSUPPORTED` where weights are not packed: F32, an
    /// accelerator, ONNX Runtime.
    pub packed_cache_dir: *const c_char,
    /// A `smolvlm_dtype`: what the KV cache has keys and values in. With Candle's BF16, INT8 and
    /// INT4 on the processor, INT8 or BF16, whichever the weights are in: of INT8, a token takes
    /// little more than half of the memory (12.6 against 23 KB of the 256M model); BF16 is nearer to
    /// F32. AUTO: BF16 with BF16, else INT8. With
    /// F32, an accelerator or ONNX Runtime, there is only what the weights or graphs have; another
    /// one is `SMOLVLM_STATUS_UNSUPPORTED`.
    pub kv_cache: i32,
    /// Zero.
    pub reserved: i32,
}

/// A picture that the caller owns and leaves untouched until the call returns. One to one with
/// `sensor_msgs/Image` (`data`, `step`) and `cv::Mat` (`data`, `step`). This struct is frozen: it
/// will never change.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smolvlm_image {
    /// The pixels, or the bytes of a file.
    pub data: *const c_void,
    /// Bytes that may be read at `data`. Too few for the picture is
    /// `SMOLVLM_STATUS_INVALID_ARGUMENT`.
    pub data_size: usize,
    /// Bytes from the start of one row to the start of the next; 0: rows without padding. The last
    /// row needs no padding.
    pub stride: usize,
    /// Pixels of a row, 1 to 32768. With `SMOLVLM_FORMAT_ENCODED`, this, `height` and `stride` are
    /// 0.
    pub width: u32,
    /// Rows, 1 to 32768; at most 100 million pixels in all.
    pub height: u32,
    /// A `smolvlm_format`.
    pub format: i32,
}

/// One question. Zero is the default of every field but `struct_size` and `prompt`; other versions
/// of the struct are accepted as with `smolvlm_options`. Everything it points to is the caller's
/// and is read during the call only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smolvlm_request {
    /// `sizeof(smolvlm_request)`.
    pub struct_size: usize,
    /// The question: UTF-8, not NULL; with a picture it may be empty, which asks for a caption.
    pub prompt: *const c_char,
    /// Instructions that precede the conversation, in UTF-8; NULL: none. In a session,
    /// later questions leave it NULL or repeat it.
    pub system_prompt: *const c_char,
    /// The pictures that the question is about, in order; they precede the text.
    pub images: *const smolvlm_image,
    /// Number of `images`; 0: a question without a picture.
    pub image_count: usize,
    /// Scales a picture so that its longer edge has this many pixels before it is cut into tiles:
    /// less is faster and sees less. 0: the model's own value.
    pub longest_edge: u32,
    /// Non-zero: each picture is one tile, the fastest and coarsest way.
    pub no_split: i32,
    /// Non-zero: encoded pictures are used as stored, whatever their EXIF orientation says; so does
    /// the reference.
    pub ignore_exif: i32,
    /// Longest answer, in tokens; 0: 256.
    pub max_new_tokens: u32,
    /// Randomness of the answer; 0: none, the likeliest token is always taken.
    pub temperature: f32,
    /// Chooses among this many likeliest tokens; 0: among all.
    pub top_k: u32,
    /// Chooses among the likeliest tokens that have this probability together, over 0 to 1; 0: off.
    pub top_p: f32,
    /// Chooses among tokens that have at least this share of the likeliest one's probability, over
    /// 0 to 1; 0: off.
    pub min_p: f32,
    /// Divides the score of tokens that were there before; over 1 avoids repetition; 0: off.
    pub repetition_penalty: f32,
    /// Deadline for the whole call in milliseconds: pictures, prompt and answer. When it passes,
    /// the text so far is the answer, with `SMOLVLM_FINISH_REASON_TIMEOUT`. 0: none.
    pub timeout_ms: u32,
    /// Start of the random numbers: the same request with the same seed has the same answer.
    pub seed: u64,
    /// Strings in UTF-8 that end the answer where one appears; they are not part of it.
    pub stop: *const *const c_char,
    /// Number of `stop` strings.
    pub stop_count: usize,
    /// Receives the answer while it is made; NULL: none.
    pub on_text: smolvlm_text_callback,
    /// First argument of `on_text`.
    pub user_data: *mut c_void,
    /// Non-zero: special tokens of the answer are in its text and in what `on_text` receives, but
    /// for those that end it and padding. Models that write a document's layout in such tokens need
    /// it.
    pub keep_special_tokens: i32,
    /// Zero.
    pub reserved: i32,
    /// Taken from a token's score for each time that the answer has it already, -2 to 2; 0: off.
    pub frequency_penalty: f32,
    /// Taken once from the score of each token that the answer has already, -2 to 2; 0: off.
    pub presence_penalty: f32,
}

/// What a generation took and used. Times are milliseconds on a monotonic clock; sizes are counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct smolvlm_metrics {
    /// `sizeof(smolvlm_metrics)`, set by the caller.
    pub struct_size: usize,
    /// Decoding, scaling and cutting the pictures.
    pub preprocess_ms: f64,
    /// The vision encoder.
    pub vision_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Writing the answer.
    pub decode_ms: f64,
    /// From the start of the call to the first token.
    pub time_to_first_token_ms: f64,
    /// The whole call.
    pub total_ms: f64,
    /// Tiles that the pictures were cut into.
    pub tiles: u32,
    /// Tokens that stand for pictures.
    pub image_tokens: u32,
    /// Tokens of the whole prompt, with pictures and the conversation before.
    pub prompt_tokens: u32,
    /// Of these, tokens that the session had read already.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub generated_tokens: u32,
    /// The `smolvlm_backend` that really computed.
    pub backend: i32,
    /// The `smolvlm_device` that really computed.
    pub device: i32,
    /// The `smolvlm_dtype` that was really used.
    pub dtype: i32,
    /// The `smolvlm_dtype` that the KV cache had keys and values in.
    pub kv_cache: i32,
    /// Zero.
    pub reserved: i32,
}
