//! The model in candle's tensors: the reference in f32, and what accelerators run.

mod linear;
mod ops;
mod text;
mod vision;

pub use linear::{Linear, host};
pub use text::{Cache, TextModel};
pub use vision::VisionModel;
