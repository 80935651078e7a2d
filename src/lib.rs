//! SmolVLM vision-language models: a picture and a question in, an answer out.
//!
//! ```no_run
//! use smolvlm::{SmolVLM, SmolVLMConfig};
//!
//! let config = SmolVLMConfig { model_path: Some("models/demo".into()), ..Default::default() };
//! let model = SmolVLM::new(config)?;
//! let image = image::open("models/demo/test_image.jpg")?;
//! println!("{}", model.process_image(&image, "What objects are in this image?")?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Data flows one way: [`image`] -> [`preprocess`] -> [`backend`] (vision encoder, connector) ->
//! [`prompt`] and [`tokenizer`] -> [`backend`] (decoder) -> [`sampler`] -> text. [`session`] is the
//! whole pipeline on one screen. The C library in `ffi` is a thin layer over [`engine`] and
//! [`session`]. Which file may import from which: `docs/architecture.md`.

#![deny(unsafe_op_in_unsafe_fn)]
// A build without a backend has the shell of everything, and nobody who uses it.
#![cfg_attr(not(any(feature = "candle", feature = "onnx")), allow(dead_code))]

mod answer;
pub mod backend;
pub mod config;
pub mod conversation;
mod disk;
mod ends;
pub mod engine;
pub mod error;
pub mod ffi;
pub mod files;
mod fork;
mod hub;
pub mod image;
mod image_cache;
#[cfg(all(feature = "candle", not(feature = "bench-internals")))]
mod kernels;
#[cfg(feature = "bench-internals")]
#[doc(hidden)]
pub mod kernels;
pub mod largest;
mod loaded;
pub mod log;
pub mod metrics;
#[cfg(feature = "candle")]
mod model;
mod options;
mod output;
pub mod preprocess;
mod process;
pub mod prompt;
pub mod sampler;
pub mod session;
mod smolvlm;
mod stop;
pub mod tokenizer;

pub use crate::answer::{Answer, FinishReason, Picture, Request};
pub use crate::engine::Engine;
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::image::{ImageView, PixelFormat};
pub use crate::image_cache::ImageCacheStats;
pub use crate::metrics::Metrics;
pub use crate::options::{BackendKind, DTypeKind, DeviceKind, EngineOptions};
pub use crate::sampler::Sampling;
pub use crate::session::Session;
pub use crate::smolvlm::{ModelSize, SmolVLM, SmolVLMConfig};
pub use crate::stop::Canceller;
