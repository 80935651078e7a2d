//! Matrix products, and numbers that leave the device.

use candle_core::{DType, Result, Tensor};

use super::ops;

/// `x @ weight.T + bias`.
pub struct Linear {
    /// [outputs, inputs]
    pub weight: Tensor,
    /// [outputs]
    pub bias: Option<Tensor>,
}

impl Linear {
    /// [rows, inputs] -> [rows, outputs].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => ops::add(y, bias),
            None => Ok(y),
        }
    }
}

/// The numbers of a tensor, in f32.
pub fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
}
