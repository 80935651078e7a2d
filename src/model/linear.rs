//! A linear layer: candle's product, or a packed one of the kernels.

use candle_core::{CpuStorage, Device, Storage, Tensor, bail};

use super::ops;
use crate::error::Result;
use crate::kernels::{Activation, Cpu, PackedLinear, Precision};

/// `x @ weight.T + bias`.
pub enum Linear {
    Candle { weight: Tensor, bias: Option<Tensor> },
    Packed(PackedLinear),
}

impl Linear {
    /// From `weight` [outputs, inputs] and `bias` [outputs], packed if a precision says how.
    pub fn new(weight: Tensor, bias: Option<Tensor>, packed: Option<Precision>) -> Result<Self> {
        let Some(precision) = packed else { return Ok(Self::Candle { weight, bias }) };
        let inputs = weight.dim(1)?;
        let bias = bias.map_or(Ok(Vec::new()), |bias| bias.to_vec1())?;
        let pack = |weight: &[f32]| PackedLinear::new(weight, bias, inputs, precision, Cpu::detect());
        Ok(Self::Packed(with_floats(&weight, pack)?))
    }

    /// [rows, inputs] -> [rows, outputs].
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Candle { weight, bias } => {
                let y = x.matmul(&weight.t()?)?;
                match bias {
                    Some(bias) => ops::add(y, bias),
                    None => Ok(y),
                }
            }
            Self::Packed(packed) => apply(packed, x, Activation::None),
        }
    }

    /// The same, and GELU of it.
    pub fn forward_gelu(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Candle { .. } => ops::gelu(self.forward(x)?),
            Self::Packed(packed) => apply(packed, x, Activation::Gelu),
        }
    }
}

fn apply(packed: &PackedLinear, x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
    let rows = x.dim(0)?;
    let out = with_floats(x, |x| packed.multiply(x, activation))?;
    matrix(out, rows)
}

/// A tensor [rows, numbers / rows] on the CPU.
pub fn matrix(numbers: Vec<f32>, rows: usize) -> candle_core::Result<Tensor> {
    let width = numbers.len() / rows;
    Tensor::from_vec(numbers, (rows, width), &Device::Cpu)
}

/// Calls `read` with the numbers of a tensor on the CPU.
pub fn with_floats<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(numbers)), Some((start, end))) => Ok(read(&numbers[start..end])),
        _ => bail!("the kernels take f32 on the CPU, not {:?} on {:?}", tensor.dtype(), tensor.device()),
    }
}
