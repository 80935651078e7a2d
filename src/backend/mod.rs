//! The seam between the pipeline and what computes: plain data in, plain data out.

#[cfg(feature = "candle")]
pub mod candle;
#[cfg(feature = "onnx")]
pub mod onnx;
pub(crate) mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

pub use self::threads::Threads;
use crate::config::{ImageConfig, ModelConfig, TextConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::largest::Largest;
use crate::preprocess::Tiles;

/// Which engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Candle, or ONNX Runtime in a build without it.
    #[default]
    Auto,
    Candle,
    Onnx,
}

/// Where it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// The CPU. An accelerator is used when it is asked for, never by surprise.
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
    /// CUDA through TensorRT.
    TensorRt,
}

/// The precision of weights and activations. Candle knows `F32`, `Bf16` and on the CPU `Int8` and
/// `Int4`; these but for `Int4` and the others are the variants in which the hub publishes ONNX
/// graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DTypeKind {
    /// Candle: on the CPU `Int8` where the kernels have the processor's instructions (AVX2 or
    /// better), else `F32`; `Bf16` on an accelerator. ONNX: the most precise variant that is there
    /// on the CPU, `F16` before `F32` on an accelerator.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
    Int8,
    Uint8,
    /// 8 bits, signed or not, as the exporter chose.
    Quantized,
    /// 4 bits in blocks.
    Q4,
    /// 4 bits in blocks, activations in 16.
    Q4F16,
    /// 4 bits by bitsandbytes.
    Bnb4,
    /// The decoder in 4 to 6 bits, in blocks of 32 weights, whichever its parts need, the rest in 8.
    Int4,
}

macro_rules! names {
    ($type:ident: $($variant:ident = $name:literal),+) => {
        impl $type {
            /// The lower-case name that options and reports use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
        impl std::str::FromStr for $type {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                match s {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(Error::invalid_argument(format!("\"{s}\" is none of {}", [$($name),+].join(", ")))),
                }
            }
        }
    };
}
names!(BackendKind: Auto = "auto", Candle = "candle", Onnx = "onnx");
names!(DeviceKind: Auto = "auto", Cpu = "cpu", Cuda = "cuda", Metal = "metal", TensorRt = "tensorrt");
names!(DTypeKind: Auto = "auto", F32 = "f32", Bf16 = "bf16", F16 = "f16", Int8 = "int8", Uint8 = "uint8",
    Quantized = "quantized", Q4 = "q4", Q4F16 = "q4f16", Bnb4 = "bnb4",
    Int4 = "int4");

/// What a backend really uses; no field is `Auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub backend: BackendKind,
    pub device: DeviceKind,
    pub dtype: DTypeKind,
    /// Of keys and values.
    pub kv_cache: DTypeKind,
}

/// Image features as the decoder takes them: one row for each image token.
#[derive(Clone, Debug, Default)]
pub struct ImageRows {
    /// [rows, width].
    pub values: Vec<f32>,
    pub width: usize,
}

/// Loaded weights, shared by every session.
pub trait Backend: Send + Sync {
    /// Vision encoder and connector.
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows>;
    /// A decoder with an empty KV cache.
    fn decoder(&self) -> Result<Box<dyn Decoder>>;
    fn placement(&self) -> Placement;
    /// Those that compute, for all calls together.
    fn threads(&self) -> &Threads;
}

/// One sequence and its KV cache.
pub trait Decoder: Send {
    /// Appends `ids`, whose image tokens take `image_rows` ([rows, width]) in order; the logits
    /// after the last one. What was appended before a halt stays.
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]>;
    /// Appends one id; the logits after it. After a halt the cache is as it was.
    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]>;
    /// The same; what becomes of the logits are the largest of them.
    fn step_to(&mut self, id: u32, largest: &mut Largest, stop: &Stop) -> Run<()> {
        largest.clear();
        largest.take_in(0, self.step(id, stop)?);
        Ok(())
    }
    /// Appends `ids`, all of them text; `each` is given the logits after every one, in order. What
    /// was appended before a halt stays.
    fn score(&mut self, ids: &[u32], each: &mut (dyn FnMut(&[f32]) + Send), stop: &Stop) -> Run<()> {
        ids.iter().try_for_each(|&id| {
            each(self.step(id, stop)?);
            Ok(())
        })
    }
    /// Tokens in the cache.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Rewinds to the first `len` tokens.
    fn truncate(&mut self, len: usize);
}

/// Why work ended early.
#[derive(Debug)]
pub enum Halt {
    /// The caller wanted it so: no error.
    Stopped(StopReason),
    Failed(Error),
}

#[cfg(feature = "candle")]
impl Halt {
    /// The error of work that nobody could stop.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Stopped(_) => Error::internal("stopped, and nobody could stop it"),
        }
    }
}

/// What asked for the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Cancelled,
    Timeout,
}

/// The result of work that can be stopped.
pub type Run<T> = std::result::Result<T, Halt>;

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Asks, between pieces of work, whether to go on.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    signal: Canceller,
    deadline: Option<Instant>,
}

impl Stop {
    pub fn new(signal: Canceller, deadline: Option<Instant>) -> Self {
        Self { signal, deadline }
    }

    /// What asked for a stop, if anything did.
    pub fn reason(&self) -> Option<StopReason> {
        if self.signal.is_cancelled() {
            return Some(StopReason::Cancelled);
        }
        self.deadline.filter(|&d| Instant::now() >= d).map(|_| StopReason::Timeout)
    }

    pub fn check(&self) -> Run<()> {
        self.reason().map_or(Ok(()), |r| Err(Halt::Stopped(r)))
    }
}

/// Cancels the generation that runs, if one does; the semantics of `sqlite3_interrupt`.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicU8>);

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CANCELLED: u8 = 2;

impl Canceller {
    /// One atomic operation: from any thread, from a signal handler. Nothing happens to an idle
    /// session.
    pub fn cancel(&self) {
        let _ = self.0.compare_exchange(RUNNING, CANCELLED, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn start(&self) {
        self.0.store(RUNNING, Ordering::Relaxed);
    }

    pub(crate) fn finish(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CANCELLED
    }
}

/// Prompt tokens that run through the decoder at once: enough for full matrix products, few enough
/// for a small score matrix and a prompt answer to a stop.
const PREFILL_CHUNK: usize = 384;

/// Patches that run through the vision encoder at once; at least one tile.
const VISION_PATCHES: usize = 1024;

/// More threads than any machine this runs on has.
const MAX_THREADS: usize = 1024;

/// The threads that the options ask for.
fn threads(options: &EngineOptions) -> Threads {
    Threads::new(match options.num_threads {
        0 => std::thread::available_parallelism().map_or(1, Into::into),
        n => n,
    })
}

/// Work of the caller's that a backend may do while it loads, on a thread that has nothing else to
/// do then, once at most.
pub(crate) type Beside<'a> = dyn FnMut() + Send + 'a;

/// Loads the weights on the backend that the options name.
pub(crate) fn open(
    files: &ModelFiles,
    model: &ModelConfig,
    images: &ImageConfig,
    options: &EngineOptions,
    #[cfg_attr(not(feature = "candle"), allow(unused_variables))] beside: &mut Beside<'_>,
) -> Result<Box<dyn Backend>> {
    if options.num_threads > MAX_THREADS {
        let given = options.num_threads;
        return Err(Error::invalid_argument(format!("num_threads: {given} given, at most {MAX_THREADS} accepted")));
    }
    match options.backend {
        #[cfg(feature = "candle")]
        BackendKind::Auto | BackendKind::Candle => {
            Ok(Box::new(candle::CandleBackend::load_beside(files, model, images, options, beside)?))
        }
        #[cfg(not(feature = "candle"))]
        BackendKind::Candle => Err(missing("candle")),
        #[cfg(all(feature = "onnx", not(feature = "candle")))]
        BackendKind::Auto => Ok(Box::new(onnx::OnnxBackend::load(files, model, images, options)?)),
        #[cfg(feature = "onnx")]
        BackendKind::Onnx => Ok(Box::new(onnx::OnnxBackend::load(files, model, images, options)?)),
        #[cfg(not(feature = "onnx"))]
        BackendKind::Onnx => Err(missing("onnx")),
        #[cfg(not(any(feature = "candle", feature = "onnx")))]
        BackendKind::Auto => Err(Error::unsupported("backend: this build has none (cargo features `candle`, `onnx`)")),
    }
}

#[cfg(not(all(feature = "candle", feature = "onnx")))]
fn missing(name: &str) -> Error {
    Error::unsupported(format!("backend: this build has no {name} backend (cargo feature `{name}`)"))
}

/// Numbers that the KV cache has for a position.
#[cfg(any(feature = "candle", feature = "onnx"))]
fn cached_numbers(text: &TextConfig) -> u64 {
    let dimensions = [text.num_hidden_layers, text.num_key_value_heads, text.head_dim];
    dimensions.into_iter().fold(2, |numbers: u64, dimension| numbers.saturating_mul(dimension as u64))
}

/// Refuses before loading what would not fit: weights, and one session's full KV cache.
#[cfg(any(feature = "candle", feature = "onnx"))]
fn check_memory(weights_bytes: u64, position_bytes: u64, model: &ModelConfig, options: &EngineOptions) -> Result<()> {
    if options.max_memory_bytes == 0 {
        return Ok(());
    }
    let context = if options.context_tokens > 0 { options.context_tokens } else { model.text.max_position_embeddings };
    let needed = weights_bytes.saturating_add(position_bytes.saturating_mul(context as u64));
    if needed > options.max_memory_bytes {
        return Err(Error::out_of_memory(format!(
            "max_memory_bytes: {} given, {needed} needed for the weights and the KV cache of {context} tokens",
            options.max_memory_bytes
        )));
    }
    Ok(())
}
