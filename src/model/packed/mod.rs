//! The model on the CPU's kernels: packed weights, plain rows of f32 between the products.

mod calibration;
mod chunks;
mod layer;
mod recipe;
mod shape;
mod stream;
mod text;
mod vision;

pub use text::{Cache, TextModel};
pub use vision::{VisionBuffers, VisionModel};
