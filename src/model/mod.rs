//! What a checkpoint *is*: the Idefics3 family (published as SmolVLM and SmolVLM2), in candle tensors.
//!
//! A SigLIP vision transformer, a pixel-shuffle connector, and a Llama decoder; see
//! `modeling_idefics3.py` and `modeling_llama.py` of transformers 5 for the reference.

mod linear;
mod ops;
mod text;
mod vision;
mod weights;

use linear::Linear;
pub use text::{Cache, TextModel};
pub use vision::VisionModel;
pub use weights::Weights;

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::kernels::Precision;

/// Reads the tensors below one name, checked against the shapes that the configuration implies.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    dtype: DType,
    device: &'a Device,
    packed: Option<Precision>,
}

impl<'a> Loader<'a> {
    /// `dtype`: of activations, and of the weights that are not packed. `packed`: how the kernels keep matrices; then `dtype` is f32
    /// and the device the CPU. None: candle's products.
    pub fn new(weights: &'a Weights, dtype: DType, device: &'a Device, packed: Option<Precision>) -> Self {
        Self { weights, prefix: String::new(), dtype, device, packed }
    }

    /// The loader of the tensors below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor_as(name, shape, self.dtype)
    }

    pub fn tensor_as(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, dtype, self.device)
    }

    /// The matrices `names` [outputs, inputs] of one input, their outputs side by side; with biases [outputs].
    pub fn linear_bias(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        let bias = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("bias", &[outputs]);
        let biases = names.iter().zip(outputs).map(bias).collect::<Result<Vec<_>>>()?;
        Linear::new(self.matrix(names, inputs, outputs)?, Some(Tensor::cat(&biases, 0)?), self.packed)
    }

    /// The same without biases.
    pub fn linear(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        Linear::new(self.matrix(names, inputs, outputs)?, None, self.packed)
    }

    fn matrix(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Tensor> {
        let weight = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("weight", &[outputs, inputs]);
        let weights = names.iter().zip(outputs).map(weight).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&weights, 0)?)
    }
}
