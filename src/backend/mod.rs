//! The seam between the pipeline and what computes: plain data in, plain data out.

#[cfg(feature = "candle")]
pub mod candle;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::config::{ImageConfig, ModelConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::preprocess::Tiles;

/// Which engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// Candle.
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
}

/// The precision of weights and activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DTypeKind {
    /// `F32` on the CPU, `Bf16` on an accelerator.
    #[default]
    Auto,
    F32,
    Bf16,
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
names!(DeviceKind: Auto = "auto", Cpu = "cpu", Cuda = "cuda", Metal = "metal");
names!(DTypeKind: Auto = "auto", F32 = "f32", Bf16 = "bf16");

/// What a backend really uses; no field is `Auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub backend: BackendKind,
    pub device: DeviceKind,
    pub dtype: DTypeKind,
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
}

/// One sequence and its KV cache.
pub trait Decoder: Send {
    /// Appends `ids`, whose image tokens take `image_rows` ([rows, width]) in order; the logits after the
    /// last one. What was appended before a halt stays.
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]>;
    /// Appends one id; the logits after it.
    fn step(&mut self, id: u32) -> Result<&[f32]>;
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
    /// One atomic operation: from any thread, from a signal handler. Nothing happens to an idle session.
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

/// Loads the weights on the backend that the options name.
pub(crate) fn open(
    files: &ModelFiles,
    model: &ModelConfig,
    images: &ImageConfig,
    options: &EngineOptions,
) -> Result<Box<dyn Backend>> {
    match options.backend {
        #[cfg(feature = "candle")]
        BackendKind::Auto | BackendKind::Candle => {
            Ok(Box::new(candle::CandleBackend::load(files, model, images, options)?))
        }
        #[cfg(not(feature = "candle"))]
        BackendKind::Auto | BackendKind::Candle => {
            Err(Error::unsupported("backend: this build has no candle backend (cargo feature `candle`)"))
        }
        BackendKind::Onnx => Err(Error::unsupported("backend: this build has no onnx backend")),
    }
}
