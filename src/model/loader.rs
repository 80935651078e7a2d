//! From a checkpoint's tensors to what networks keep of them.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::digest::DIGEST;
use super::store::Store;
use super::tensors::{Linear, host};
use super::weights::Weights;
use super::weights::matrix::{Fold, Matrix};
use crate::error::{Error, Result};
use crate::kernels::{Mix, PackedLinear};

/// Reads the tensors below one name, checked against the shapes that the configuration implies.
#[derive(Clone)]
pub(super) struct Loader<'a> {
    pub(super) weights: &'a Arc<Weights>,
    prefix: String,
    pub(super) dtype: DType,
    pub(super) device: &'a Device,
    /// Of packed weights.
    pub(super) store: &'a Store,
}

impl<'a> Loader<'a> {
    /// `dtype` and `device`: of tensors.
    pub(super) fn new(weights: &'a Arc<Weights>, dtype: DType, device: &'a Device) -> Self {
        Self { weights, prefix: String::new(), dtype, device, store: &Store::None }
    }

    /// The same, with packed weights in `store`.
    pub(super) fn with(self, store: &'a Store) -> Self {
        Self { store, ..self }
    }

    /// The loader of the tensors below `name`.
    pub(super) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// A tensor that must have `shape`.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, self.dtype, self.device)
    }

    /// The matrices `names` [outputs, inputs] of one input, their outputs side by side; with biases
    /// [outputs], if there are any.
    pub(super) fn linear_if(&self, bias: bool, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        if bias { self.linear_bias(names, inputs, outputs) } else { self.linear(names, inputs, outputs) }
    }

    /// The same with biases.
    pub(super) fn linear_bias(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        let bias = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("bias", &[outputs]);
        let biases = names.iter().zip(outputs).map(bias).collect::<Result<Vec<_>>>()?;
        let Linear { weight, .. } = self.linear(names, inputs, outputs)?;
        Ok(Linear { weight, bias: Some(Tensor::cat(&biases, 0)?) })
    }

    /// The same without biases.
    pub(super) fn linear(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        let weight = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("weight", &[outputs, inputs]);
        let weights = names.iter().zip(outputs).map(weight).collect::<Result<Vec<_>>>()?;
        Ok(Linear { weight: Tensor::cat(&weights, 0)?, bias: None })
    }

    /// A small tensor's numbers, as the store has them, or for it to have: they lie all over a
    /// checkpoint.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let label = format!("{}{name} {shape:?}", self.prefix);
        if let Store::From(reader) = self.store {
            self.weights.check(&format!("{}{name}", self.prefix), shape)?;
            let bytes = reader.take(&label, shape.iter().product::<usize>() * size_of::<f32>())?;
            return Ok(bytemuck::cast_slice(&bytes).to_vec());
        }
        let numbers = host(&self.tensor(name, shape)?)?;
        if let Store::To(writer) = self.store {
            writer.put(&label, bytemuck::cast_slice(&numbers));
        }
        Ok(numbers)
    }

    /// The matrices `names` [outputs, inputs] of one input, their outputs side by side, on disk.
    pub(super) fn matrix(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Matrix> {
        let mut matrix = Matrix::new(self.weights.clone(), inputs);
        for (name, &outputs) in names.iter().zip(outputs) {
            matrix.add(&format!("{}{name}.weight", self.prefix), &[outputs, inputs])?;
        }
        Ok(matrix)
    }

    /// Checks a matrix that is not packed, where `SHA256SUMS` says what it is: with packed weights
    /// nobody has looked at its file.
    pub(super) fn check_unpacked(&self, matrix: &Matrix, name: &str) -> Result<()> {
        if !self.weights.are_listed() {
            return Ok(());
        }
        let label = format!("{}{name}.weight, digest", self.prefix);
        match self.store {
            Store::None => {}
            Store::To(writer) => writer.put(&label, &matrix.digest()),
            Store::From(reader) => {
                if *reader.take(&label, DIGEST)? != matrix.digest() {
                    let file = self.weights.name();
                    return Err(Error::invalid_model(format!("{file}: {label}: is another than when it was packed")));
                }
            }
        }
        Ok(())
    }

    /// The tensor `weight`, whose first dimension are the outputs.
    pub(super) fn matrix_of(&self, shape: &[usize]) -> Result<Matrix> {
        let mut matrix = Matrix::new(self.weights.clone(), shape[1..].iter().product());
        matrix.add(&format!("{}weight", self.prefix), shape)?;
        Ok(matrix)
    }

    /// As [`Self::linear_if`], packed.
    pub(super) fn packed(
        &self,
        bias: bool,
        names: &[&str],
        inputs: usize,
        outputs: &[usize],
        mix: impl Into<Mix>,
        fold: &Fold<'_>,
    ) -> Result<PackedLinear> {
        let biases = if bias {
            let bias = |(name, &outputs): (&&str, &usize)| self.at(name).floats("bias", &[outputs]);
            names.iter().zip(outputs).map(bias).collect::<Result<Vec<_>>>()?.concat()
        } else {
            Vec::new()
        };
        self.matrix(names, inputs, outputs)?.pack(biases, mix, fold, self.store)
    }
}
