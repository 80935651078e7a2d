//! Activations in a product's precision, made from f32 in the same pass as what comes before the
//! product.

use super::cpu::Cpu;
use super::isa;
use super::layout::{OFFSET, QUAD};
use super::math;
use super::precision::Precision;
use super::rotation::spread;
use super::rows::{FEW, HALVES, Rows, TASK};
use super::scratch::scratch;
use super::team::{self, Split};

impl Rows {
    /// Becomes `count` rows of `width` for weights of `precision`; `make` writes the numbers of the
    /// row that it is given.
    pub fn set(
        &mut self,
        precision: Precision,
        (count, width): (usize, usize),
        cpu: Cpu,
        make: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.pack(precision, (count, width), cpu, |row, pack| {
            scratch(width, |numbers| {
                make(row, numbers);
                pack(numbers);
            });
        });
    }

    /// The same; `give` gives a row's numbers to the function that it is given.
    fn pack(
        &mut self,
        precision: Precision,
        (count, width): (usize, usize),
        cpu: Cpu,
        give: impl Fn(usize, &dyn Fn(&[f32])) + Sync,
    ) {
        let fine = self.fine && count <= FEW && precision != Precision::Bf16;
        let halves = if fine { HALVES } else { 1 };
        self.shape(precision, (count * halves, width));
        (self.count, self.halved) = (count, halves > 1);
        let (groups, blocks, precision) = (self.groups, self.blocks(), self.precision);
        let (words, scales, sums) =
            (Split::new(&mut self.words), Split::new(&mut self.scales), Split::new(&mut self.sums));
        team::share(count.div_ceil(TASK), |task| {
            for row in task * TASK..count.min((task + 1) * TASK) {
                give(row, &|numbers| {
                    // SAFETY: no other task has this row, or these halves of it.
                    let words = unsafe { words.part(row * halves * groups, halves * groups) };
                    if precision == Precision::Bf16 {
                        return math::to_bf16(numbers, words, cpu);
                    }
                    // SAFETY: as above.
                    let scales = unsafe { scales.part(row * halves, halves) };
                    if halves > 1 {
                        let (high, low) = words.split_at_mut(groups);
                        scales[1] = isa::to_int8_twice(numbers, high, low, cpu);
                        scales[0] = 256.0 * scales[1];
                    } else {
                        scales[0] = isa::to_int8(numbers, words, cpu);
                    }
                    if precision == Precision::Int4 {
                        // SAFETY: as above.
                        let sums = unsafe { sums.part(row * halves * blocks, halves * blocks) };
                        for (words, sums) in words.chunks_exact_mut(groups).zip(sums.chunks_exact_mut(blocks)) {
                            math::sign_and_sum(words, sums, cpu);
                        }
                    }
                });
            }
        });
    }

    /// Becomes the rows of `x`, each `width` long.
    pub fn convert(&mut self, precision: Precision, x: &[f32], width: usize, cpu: Cpu) {
        self.pack(precision, (x.len() / width, width), cpu, |row, pack| pack(&x[row * width..][..width]));
    }

    /// LayerNorm of rows of `x` as long as `weight` and `bias`.
    pub fn layer_norm(
        &mut self,
        precision: Precision,
        x: &[f32],
        (weight, bias): (&[f32], &[f32]),
        eps: f32,
        cpu: Cpu,
    ) {
        let width = weight.len();
        assert_eq!(bias.len(), width);
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::layer_norm(&x[row * width..][..width], weight, bias, eps, out, cpu);
        });
    }

    /// RMSNorm of rows of `x` as long as `weight`.
    pub fn rms_norm(&mut self, precision: Precision, x: &[f32], weight: &[f32], eps: f32, cpu: Cpu) {
        let width = weight.len();
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::rms_norm(&x[row * width..][..width], weight, eps, out, cpu.narrow());
        });
    }

    /// GELU, by its tanh approximation, of rows of `x`; spread in blocks of `block`, see [`spread`].
    pub fn gelu(&mut self, precision: Precision, x: &[f32], (width, block): (usize, usize), cpu: Cpu) {
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::gelu(&x[row * width..][..width], out, cpu.narrow());
            spread(out, block, cpu.narrow());
        });
    }

    /// From rows of gates and as many numbers that they gate: silu(gate) * number; spread in blocks
    /// of `block`, see [`spread`].
    pub fn silu_mul(&mut self, precision: Precision, x: &[f32], (width, block): (usize, usize), cpu: Cpu) {
        self.set(precision, (x.len() / (2 * width), width), cpu, |row, out| {
            let (gates, numbers) = x[row * 2 * width..][..2 * width].split_at(width);
            math::silu_mul(gates, numbers, out, cpu.narrow());
            spread(out, block, cpu.narrow());
        });
    }
}

/// A row of weights becomes what their 8 bits leave of it.
pub fn take_off_int8(row: &mut [f32], cpu: Cpu) {
    let mut words = vec![0u32; row.len().div_ceil(QUAD)];
    let scale = isa::to_int8(row, &mut words, cpu);
    for (x, &byte) in row.iter_mut().zip(bytemuck::cast_slice::<_, u8>(&words)) {
        *x -= (i32::from(byte) - OFFSET) as f32 * scale;
    }
}

/// LayerNorm of a row; on this thread.
pub fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32], cpu: Cpu) {
    math::layer_norm(x, weight, bias, eps, out, cpu);
}

/// RMSNorm of a row; on this thread.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], cpu: Cpu) {
    math::rms_norm(x, weight, eps, out, cpu.narrow());
}
