//! Matrices of a checkpoint on their way to the kernels, with what they take over from their
//! neighbours.

use std::mem;
use std::sync::{Arc, PoisonError};

use candle_core::DType;
use rayon::prelude::*;

use super::{Entry, Weights, in_parts, read, release};
use crate::error::Result;
use crate::kernels::{self, Cpu, Hessian, Mix, PackedLinear, Rotation, grow};
use crate::model::digest::{DIGEST, Digester};
use crate::model::store::Store;

/// Matrices [outputs, inputs] of one input, one below the other, still on disk.
pub struct Matrix {
    weights: Arc<Weights>,
    inputs: usize,
    parts: Vec<Part>,
}

/// What a matrix takes over from what stands before it and behind it.
#[derive(Clone, Copy, Default)]
pub struct Fold<'a> {
    /// Of the norm before it [inputs], or empty: that one then has none.
    pub gains: &'a [f32],
    /// What the norm before it adds [inputs], or empty: the bias then has what becomes of it.
    pub shift: &'a [f32],
    /// What its inputs come turned by, all together or in parts of that size.
    pub inputs: Option<&'a Rotation>,
    /// Blocks in which its inputs come spread; 0: they do not.
    pub spread: usize,
    /// What its outputs leave turned by, all together or in parts of that size.
    pub outputs: Option<&'a Rotation>,
    /// Of its inputs, after all that.
    pub hessian: Option<&'a Hessian>,
    /// Whether it is what 8 bits leave of the matrix, instead of that.
    pub rest: bool,
}

impl Fold<'_> {
    /// By which a store tells one from another: not all numbers are of the checkpoint.
    fn name(&self) -> String {
        let numbers = self.gains.iter().chain(self.shift).map(|x| u64::from(x.to_bits()));
        // FNV-1a, a number at a time.
        let hash = numbers.fold(0xcbf2_9ce4_8422_2325u64, |hash, x| (hash ^ x).wrapping_mul(0x0100_0000_01b3));
        format!("{hash:x}{}", if self.rest { " rest" } else { "" })
    }

    fn row(&self, row: &mut [f32], cpu: Cpu) {
        kernels::multiply(row, self.gains, cpu);
        if let Some(rotation) = self.inputs {
            row.chunks_exact_mut(rotation.size()).for_each(|part| rotation.turn(part, cpu));
        }
        kernels::spread(row, self.spread, cpu);
    }
}

struct Part {
    name: String,
    entry: Entry,
    stored: DType,
    outputs: usize,
}

impl Matrix {
    pub fn new(weights: Arc<Weights>, inputs: usize) -> Self {
        Self { weights, inputs, parts: Vec::new() }
    }

    /// Adds the tensor of this name and shape: outputs first, inputs in all other dimensions.
    pub fn add(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let (entry, stored) = self.weights.find(name, shape)?;
        self.parts.push(Part { name: name.to_owned(), entry: entry.clone(), stored, outputs: shape[0] });
        Ok(())
    }

    fn outputs(&self) -> usize {
        self.parts.iter().map(|p| p.outputs).sum()
    }

    /// What its numbers as they are stored are known by.
    pub fn digest(&self) -> [u8; DIGEST] {
        let mut digester = Digester::default();
        for Part { entry, .. } in &self.parts {
            let map = &self.weights.shards[entry.shard].map;
            in_parts(map, entry.bytes.clone(), &mut |bytes| digester.update(bytes));
        }
        digester.finish()
    }

    /// Writes a row [inputs]; one that is not there is left out.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.some(row, 0, out);
    }

    /// Writes as many of a row's numbers as `out` has, from `first` on.
    fn some(&self, mut row: usize, first: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row < part.outputs {
                let bytes = self.weights.bytes(&part.entry);
                let size = part.stored.size_in_bytes();
                let start = (row * self.inputs + first) * size;
                return read(&bytes[start..][..out.len() * size], part.stored, out);
            }
            row -= part.outputs;
        }
    }

    /// All of it, folded.
    #[cfg(test)]
    pub fn folded(&self, fold: &Fold<'_>, cpu: Cpu) -> Vec<f32> {
        let mut all = vec![0.0; self.outputs() * self.inputs];
        match fold.outputs {
            Some(rotation) => self.turned(rotation, &mut all, cpu),
            None => all.chunks_exact_mut(self.inputs).enumerate().for_each(|(output, row)| self.row(output, row)),
        }
        all.chunks_exact_mut(self.inputs).for_each(|row| fold.row(row, cpu));
        all
    }

    /// All of it, outputs turned.
    fn turned(&self, rotation: &Rotation, all: &mut [f32], cpu: Cpu) {
        for (number, part) in all.chunks_exact_mut(rotation.size() * self.inputs).enumerate() {
            let first = number * rotation.size();
            let read = |row: usize, column: usize, out: &mut [f32]| self.some(first + row, column, out);
            rotation.turn_columns(read, part, self.inputs, cpu);
        }
    }

    /// `bias` [outputs], or empty, folded; as `store` has it under `label`, or for it to have.
    pub fn folded_bias(
        &self,
        mut bias: Vec<f32>,
        fold: &Fold<'_>,
        label: &str,
        store: &Store,
        cpu: Cpu,
    ) -> Result<Vec<f32>> {
        if !fold.shift.is_empty() {
            bias.resize(self.outputs(), 0.0);
            if let Store::From(reader) = store {
                let bytes = reader.take(label, bias.len() * size_of::<f32>())?;
                bias.copy_from_slice(bytemuck::cast_slice(&bytes));
            } else {
                self.shift(&mut bias, fold.shift);
            }
            if let Store::To(writer) = store {
                writer.put(label, bytemuck::cast_slice(&bias));
            }
        }
        if let Some(rotation) = fold.outputs {
            bias.chunks_exact_mut(rotation.size()).for_each(|part| rotation.turn(part, cpu));
        }
        Ok(bias)
    }

    /// `bias` becomes what it is, and what becomes of inputs that are `shift`.
    fn shift(&self, bias: &mut [f32], shift: &[f32]) {
        bias.par_iter_mut().enumerate().for_each_init(
            || vec![0.0; self.inputs],
            |row, (output, bias)| {
                self.row(output, row);
                // Sums that compilers can keep side by side.
                let mut sums = [0f32; 16];
                for (row, shift) in row.chunks(sums.len()).zip(shift.chunks(sums.len())) {
                    sums.iter_mut().zip(row).zip(shift).for_each(|((sum, weight), shift)| *sum += weight * shift);
                }
                *bias += sums.iter().sum::<f32>();
            },
        );
    }

    /// For products on the kernels, folded, as `store` has it, or for it to have; `bias` [outputs],
    /// or empty.
    pub fn pack(&self, bias: Vec<f32>, mix: impl Into<Mix>, fold: &Fold<'_>, store: &Store) -> Result<PackedLinear> {
        let mix = mix.into();
        let (shape, cpu) = ((self.outputs(), self.inputs), Cpu::detect());
        let names: Vec<_> = self.parts.iter().map(|part| &*part.name).collect();
        let label = format!("{} {shape:?} {mix:?} {}", names.join(" "), fold.name());
        let bias = self.folded_bias(bias, fold, &format!("{label} bias"), store, cpu)?;
        if let Store::From(reader) = store {
            return PackedLinear::restore(shape, bias, mix, cpu, |size| reader.take(&label, size));
        }
        let mut room = mem::take(&mut *self.weights.room.lock().unwrap_or_else(PoisonError::into_inner));
        // Only a matrix whose columns are turned has to be there as a whole.
        let turned = fold.outputs.map(|rotation| {
            let all = grow(&mut room, shape.0 * self.inputs);
            self.turned(rotation, all, cpu);
            &*all
        });
        let read = |output: usize, row: &mut [f32]| {
            match turned {
                Some(turned) => row.copy_from_slice(&turned[output * self.inputs..][..self.inputs]),
                None => self.row(output, row),
            }
            fold.row(row, cpu);
            if fold.rest {
                kernels::take_off_int8(row, cpu);
            }
        };
        let packed = PackedLinear::new(shape, read, bias, mix, fold.hessian, cpu);
        *self.weights.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
        for Part { entry: Entry { shard, bytes, .. }, .. } in &self.parts {
            let (weights, shard, bytes) = (self.weights.clone(), *shard, bytes.clone());
            // By whoever has nothing else to do.
            rayon::spawn(move || release(&weights.shards[shard].map, bytes));
        }
        if let Store::To(writer) = store {
            packed.arrays().into_iter().for_each(|array| writer.put(&label, array));
        }
        Ok(packed)
    }
}
