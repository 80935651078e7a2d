//! What computes: two engines behind one seam.

#[cfg(feature = "candle")]
pub mod candle;
mod limits;
#[cfg(feature = "onnx")]
pub mod onnx;
mod seam;
pub(crate) mod threads;

use self::limits::MAX_THREADS;
pub(crate) use self::seam::Beside;
pub use self::seam::{Backend, Decoder, ImageRows};
pub use self::threads::Threads;
use crate::config::{ImageConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::options::EngineOptions;
pub use crate::options::{BackendKind, DTypeKind, DeviceKind, Placement};
pub use crate::stop::{Canceller, Halt, Run, Stop, StopReason};

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
