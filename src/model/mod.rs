//! What a checkpoint *is*: the Idefics3 family (published as SmolVLM and SmolVLM2), in candle tensors.
//!
//! A SigLIP vision transformer, a pixel-shuffle connector, and a Llama decoder; see
//! `modeling_idefics3.py` and `modeling_llama.py` of transformers 5 for the reference.

mod ops;
mod text;
mod vision;
mod weights;

pub use text::{Cache, TextModel};
pub use vision::VisionModel;
pub use weights::Weights;

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// Reads the tensors below one name, checked against the shapes that the configuration implies.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    dtype: DType,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    pub fn new(weights: &'a Weights, dtype: DType, device: &'a Device) -> Self {
        Self { weights, prefix: String::new(), dtype, device }
    }

    /// The loader of the tensors below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, self.dtype, self.device)
    }

    /// A matrix product with weights [outputs, inputs], without bias.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let weight = self.at(name).tensor("weight", &[outputs, inputs])?;
        Ok(Linear { weight, bias: None })
    }

    /// The same with a bias [outputs].
    pub fn linear_bias(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let bias = Some(self.at(name).tensor("bias", &[outputs])?);
        Ok(Linear { bias, ..self.linear(name, inputs, outputs)? })
    }
}

/// `x @ weight.T + bias`.
#[derive(Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From weights [outputs, inputs] at hand.
    pub fn new(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// [rows, inputs] -> [rows, outputs].
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => ops::add(y, bias),
            None => Ok(y),
        }
    }
}
