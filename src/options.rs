//! What a caller may choose: the engine, the device, the precision, and how a checkpoint is loaded.

use std::path::PathBuf;

use crate::error::{Error, Result};

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

/// How a checkpoint is loaded. Zero means default.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    pub backend: BackendKind,
    pub device: DeviceKind,
    /// Which of several accelerators.
    pub device_index: usize,
    pub dtype: DTypeKind,
    /// What the KV cache has keys and values in. Candle: `Int8` or `Bf16` where `dtype` is `Bf16`,
    /// `Int8` or `Int4` on the CPU, whichever the weights are in; `Auto` is `Bf16` for `Bf16`, else
    /// `Int8`. Otherwise it is as `dtype` or the ONNX graphs say, and asking for another one is an
    /// error.
    pub kv_cache: DTypeKind,
    /// Threads that compute, 0: one per core at hand. The engine never takes more: calls that run
    /// at once share them.
    pub num_threads: usize,
    /// Refuse to load if weights and one full KV cache need more, 0: no limit.
    pub max_memory_bytes: u64,
    /// Longest context of a session, 0: the checkpoint's.
    pub context_tokens: usize,
    /// The ONNX Runtime library.
    pub onnxruntime_path: Option<PathBuf>,
    /// A directory in which Candle keeps weights as the kernels want them, in bf16, int8 and int4:
    /// a load that finds them there reads no others, but the embedding. It is made if it is missing,
    /// and must be trusted as the checkpoint is; its files are checked against their digests. Of
    /// the weights that a `SHA256SUMS` lists, all that a load uses is verified by it, or against
    /// what was made of them when they were. `None`: nothing is kept.
    pub packed_cache_dir: Option<PathBuf>,
    /// Most bytes of encoded pictures that the engine keeps, for the next question about the same
    /// file. 0: none.
    pub image_cache_bytes: usize,
}
