//! The model in candle's tensors: the reference in f32, and what accelerators run.

mod ops;
mod text;
mod vision;

pub use text::{Cache, TextModel};
pub use vision::VisionModel;

use candle_core::{Result, Tensor};

/// `x @ weight.T + bias`.
pub struct Linear {
    /// [outputs, inputs]
    pub weight: Tensor,
    /// [outputs]
    pub bias: Option<Tensor>,
}

impl Linear {
    /// [rows, inputs] -> [rows, outputs].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => ops::add(y, bias),
            None => Ok(y),
        }
    }
}
