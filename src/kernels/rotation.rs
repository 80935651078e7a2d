//! Orthogonal matrices that spread a few large numbers of a row over all of it, so that 8 bits of
//! one scale are enough for them.
//!
//! For an orthogonal R, (x R)(Rᵀ W) = x W: what a product takes is turned once for all at load, and
//! what it gives comes out turned where the rows of W are. The idea is of QuaRot (arXiv 2404.00456)
//! and SpinQuant (arXiv 2405.16406).

use rayon::prelude::*;

use super::block::LANES;
use super::math::BAND;
use super::rows::scratch;
use super::team::{self, Split};
use super::{Cpu, math};

/// Rows that one task turns.
const TASK: usize = 8;

/// Numbers that are spread over each other where it is done for every row of activations.
const SPREAD: usize = 512;

/// A rotation of rows: signs, then a Hadamard matrix within blocks, then a cosine transform across
/// them.
#[derive(Debug)]
pub struct Rotation {
    signs: Vec<f32>,
    block: usize,
    /// [blocks, blocks], orthogonal; empty for one block.
    across: Vec<f32>,
    centred: bool,
}

impl Rotation {
    /// Of rows of `size`.
    pub fn new(size: usize) -> Self {
        let block = 1 << size.trailing_zeros();
        let parts = size / block;
        let across = |(k, i): (usize, usize)| {
            let angle = std::f64::consts::PI * k as f64 * (2 * i + 1) as f64 / (2 * parts) as f64;
            ((if k == 0 { 1.0 } else { 2.0 } / parts as f64).sqrt() * angle.cos()) as f32
        };
        let across = if parts == 1 {
            Vec::new()
        } else {
            (0..parts * parts).map(|at| across((at / parts, at % parts))).collect()
        };
        // In no order; which they are does not matter.
        let sign = |i: u32| if i.wrapping_mul(2_654_435_761) >> 31 == 0 { 1.0 } else { -1.0 };
        Self { signs: (0..size as u32).map(sign).collect(), block, across, centred: false }
    }

    /// Of rows that lose their mean first. Their LayerNorm is the RMSNorm of what they become.
    pub fn centred(size: usize) -> Self {
        Self { centred: true, ..Self::new(size) }
    }

    pub fn size(&self) -> usize {
        self.signs.len()
    }

    /// Turns a row.
    pub fn turn(&self, row: &mut [f32], cpu: Cpu) {
        assert_eq!(row.len(), self.size());
        if self.centred {
            math::centre(row, cpu);
        }
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        math::hadamard(row, self.block, cpu);
        if !self.across.is_empty() {
            scratch(row.len(), |before| {
                before.copy_from_slice(row);
                math::mix(before, &self.across, row, cpu);
            });
        }
    }

    /// Undoes [`Self::turn`]; a mean that was taken off stays away.
    pub fn turn_back(&self, row: &mut [f32], cpu: Cpu) {
        assert_eq!(row.len(), self.size());
        if !self.across.is_empty() {
            // Orthogonal: its inverse is itself with rows for columns.
            let parts = self.size() / self.block;
            let back: Vec<_> = (0..parts * parts).map(|at| self.across[at % parts * parts + at / parts]).collect();
            scratch(row.len(), |before| {
                before.copy_from_slice(row);
                math::mix(before, &back, row, cpu);
            });
        }
        math::hadamard(row, self.block, cpu);
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
    }

    /// Turns all rows, which the team of the caller's pass shares.
    pub fn turn_rows(&self, rows: &mut [f32], cpu: Cpu) {
        let (size, count) = (self.size(), rows.len() / self.size());
        assert_eq!(rows.len(), count * size);
        let rows = Split::new(rows);
        team::share(count.div_ceil(TASK), |task| {
            let first = task * TASK;
            // SAFETY: no other task has these rows.
            let part = unsafe { rows.part(first * size, (count - first).min(TASK) * size) };
            part.chunks_exact_mut(size).for_each(|row| self.turn(row, cpu));
        });
    }

    /// Turns the columns of a matrix [size, width], on the caller's rayon pool.
    pub fn turn_columns(&self, matrix: &mut [f32], width: usize, cpu: Cpu) {
        let size = self.size();
        assert_eq!(matrix.len(), size * width);
        let matrix = Split::new(matrix);
        (0..width.div_ceil(BAND)).into_par_iter().for_each_init(
            || (vec![0.0; size * BAND], vec![0.0; size * BAND]),
            |(band, mixed), number| {
                let (first, count) = (number * BAND, BAND.min(width - number * BAND));
                // SAFETY: no other task has these columns.
                let column = |row: usize| unsafe { matrix.part(row * width + first, count) };
                let mut means = [0.0; BAND];
                if self.centred {
                    for row in 0..size {
                        means.iter_mut().zip(&*column(row)).for_each(|(mean, x)| *mean += x / size as f32);
                    }
                }
                for ((row, sign), to) in self.signs.iter().enumerate().zip(band.chunks_exact_mut(BAND)) {
                    to.iter_mut().zip(&*column(row)).zip(means).for_each(|((to, x), mean)| *to = (x - mean) * sign);
                }
                math::hadamard_columns(band, self.block, cpu);
                if !self.across.is_empty() {
                    math::mix(band, &self.across, mixed, cpu);
                    std::mem::swap(band, mixed);
                }
                for (row, from) in band.chunks_exact(BAND).enumerate() {
                    column(row).copy_from_slice(&from[..count]);
                }
            },
        );
    }
}

/// The blocks in which rows of `width` activations are spread, for [`spread`]; 1: they are not.
pub fn spread_of(width: usize) -> usize {
    let block = SPREAD.min(1 << width.trailing_zeros());
    if block < LANES { 1 } else { block }
}

/// Multiplies each block of a row by an orthogonal matrix that is its own inverse. Weights and
/// activations that are both spread have the same product.
pub fn spread(row: &mut [f32], block: usize, cpu: Cpu) {
    if block > 1 {
        math::hadamard(row, block, cpu);
    }
}

/// [`spread`] of the first `width` numbers of every row of `stride`, which the team of the caller's pass shares.
pub fn spread_rows(rows: &mut [f32], stride: usize, width: usize, block: usize, cpu: Cpu) {
    if block <= 1 {
        return;
    }
    let count = rows.len() / stride;
    assert!(width <= stride && rows.len() == count * stride);
    let rows = Split::new(rows);
    team::share(count.div_ceil(TASK), |task| {
        for row in task * TASK..count.min((task + 1) * TASK) {
            // SAFETY: no other task has this row.
            spread(unsafe { rows.part(row * stride, width) }, block, cpu);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::math::tests::{largest_difference, numbers};
    use super::*;

    const SIZES: [usize; 9] = [1, 3, 8, 12, 45, 64, 96, 576, 960];

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn products_of_turned_rows_are_the_same() {
        for size in SIZES {
            let rotation = Rotation::new(size);
            for cpu in Cpu::available() {
                let (a, b) = (numbers(size, 1), numbers(size, 2));
                let (mut turned_a, mut turned_b) = (a.clone(), b.clone());
                rotation.turn(&mut turned_a, cpu);
                rotation.turn_rows(&mut turned_b, cpu);
                assert!((dot(&a, &b) - dot(&turned_a, &turned_b)).abs() < 1e-5 * size as f64, "{size} {cpu:?}");
                assert!(size < 12 || largest_difference(&a, &turned_a) > 0.1, "{size} {cpu:?}");
            }
        }
    }

    #[test]
    fn rows_that_are_turned_back_are_as_before_but_for_their_mean() {
        for size in SIZES {
            for cpu in Cpu::available() {
                let before = numbers(size, 4);
                let mean = before.iter().sum::<f32>() / size as f32;
                for (rotation, mean) in [(Rotation::new(size), 0.0), (Rotation::centred(size), mean)] {
                    let mut row = before.clone();
                    rotation.turn(&mut row, cpu);
                    rotation.turn_back(&mut row, cpu);
                    let expected: Vec<_> = before.iter().map(|x| x - mean).collect();
                    assert!(largest_difference(&row, &expected) < 1e-5, "{size} {cpu:?}");
                }
            }
        }
    }

    #[test]
    fn one_large_number_is_spread_over_all() {
        for size in [64, 576, 960, 2048] {
            for at in [0, 7, size - 1] {
                let mut row = vec![0.0; size];
                row[at] = 1.0;
                Rotation::new(size).turn(&mut row, Cpu::detect());
                let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                assert!(largest < 1.5 / (size as f32).sqrt(), "{size} {at}: {largest}");
            }
        }
    }

    #[test]
    fn columns_are_turned_as_rows_are() {
        for (size, width) in [(1, 1), (3, 5), (12, 16), (64, 33), (576, 40)] {
            for (cpu, rotation) in Cpu::available()
                .into_iter()
                .flat_map(|cpu| [Rotation::new, Rotation::centred].map(|new| (cpu, new(size))))
            {
                let rows = numbers(size * width, 5);
                let mut columns: Vec<f32> = (0..size * width).map(|at| rows[at % width * size + at / width]).collect();
                rotation.turn_columns(&mut columns, width, cpu);
                let mut turned = rows.clone();
                rotation.turn_rows(&mut turned, cpu);
                let back: Vec<f32> = (0..size * width).map(|at| columns[at % size * width + at / size]).collect();
                assert!(largest_difference(&back, &turned) < 1e-5, "{size} {width} {cpu:?}");
            }
        }
    }

    #[test]
    fn spread_twice_is_not_spread() {
        for (width, block) in [(1536, 512), (8192, 512), (96, 32), (48, 16), (40, 1), (7, 1)] {
            assert_eq!(spread_of(width), block);
            for cpu in Cpu::available() {
                let before = numbers(width, 9);
                let mut row = before.clone();
                spread(&mut row, block, cpu);
                assert!((dot(&row, &row) - dot(&before, &before)).abs() < 1e-3);
                assert_eq!(block > 1, largest_difference(&row, &before) > 0.1);
                spread(&mut row, block, cpu);
                assert!(largest_difference(&row, &before) < 1e-5, "{width} {cpu:?}");
            }
        }
    }
}
