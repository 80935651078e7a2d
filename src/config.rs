//! What a checkpoint's JSON files say, with the published defaults filled in and every number
//! checked.

mod checks;
pub(crate) mod foreign;
mod image;
mod json;
mod lookalike;
mod model;
mod rope;
mod text;
mod vision;

pub use image::{ImageConfig, MAX_LONGEST_EDGE, MAX_TILE_SIZE};
pub(crate) use json::parse;
pub use model::{ModelConfig, check_processor};
pub use rope::{Rope, Rotary};
pub use text::TextConfig;
pub use vision::VisionConfig;
