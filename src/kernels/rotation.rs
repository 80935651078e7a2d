//! Orthogonal matrices that spread a few large numbers of a row over all of it, so that 8 bits of
//! one scale are enough for them.
//!
//! For an orthogonal R, (x R)(Rᵀ W) = x W: what a product takes is turned once for all at load, and
//! what it gives comes out turned where the rows of W are. The idea is of QuaRot (arXiv 2404.00456)
//! and SpinQuant (arXiv 2405.16406).

use rayon::prelude::*;

use super::cpu::Cpu;
use super::isa::{self, BAND};
use super::layout::LANES;
use super::math;
use super::scratch::scratch;
use super::team::{self, Split};

/// Rows that one task turns.
const TASK: usize = 8;

/// Numbers that are spread over each other where it is done for every row of activations.
const SPREAD: usize = 512;

/// A rotation of rows: signs, then a Hadamard matrix within blocks, then orthogonal matrices across
/// them.
#[derive(Debug)]
pub struct Rotation {
    signs: Vec<f32>,
    block: usize,
    across: Vec<Across>,
    centred: bool,
}

/// A matrix [parts, parts] across as many parts, each of `len` numbers.
#[derive(Debug)]
struct Across {
    parts: usize,
    len: usize,
    /// A cosine transform; empty for 3 parts, for which a reflection does as well.
    matrix: Vec<f32>,
}

impl Across {
    fn new(parts: usize, len: usize) -> Self {
        let number = |(k, i): (usize, usize)| {
            let angle = std::f64::consts::PI * k as f64 * (2 * i + 1) as f64 / (2 * parts) as f64;
            ((if k == 0 { 1.0 } else { 2.0 } / parts as f64).sqrt() * angle.cos()) as f32
        };
        let numbers = if parts == 3 { 0 } else { parts * parts };
        Self { parts, len, matrix: (0..numbers).map(|at| number((at / parts, at % parts))).collect() }
    }

    /// Of rows in which a number is `width` numbers wide.
    fn turn(&self, x: &mut [f32], width: usize, cpu: Cpu) {
        let len = self.len * width;
        if self.matrix.is_empty() {
            return isa::thirds(x, len, cpu);
        }
        scratch(self.parts * len, |before| {
            for x in x.chunks_exact_mut(self.parts * len) {
                before.copy_from_slice(x);
                isa::mix(before, &self.matrix, x, cpu);
            }
        });
    }

    /// Undoes [`Self::turn`].
    fn turn_back(&self, x: &mut [f32], cpu: Cpu) {
        if self.matrix.is_empty() {
            return self.turn(x, 1, cpu);
        }
        // Orthogonal: its inverse is itself with rows for columns.
        let parts = self.parts;
        let matrix = (0..parts * parts).map(|at| self.matrix[at % parts * parts + at / parts]).collect();
        Self { matrix, ..*self }.turn(x, 1, cpu);
    }
}

impl Rotation {
    /// Of rows of `size`.
    pub fn new(size: usize) -> Self {
        let block = 1 << size.trailing_zeros();
        let (mut across, mut rest, mut len) = (Vec::new(), size / block, block);
        // A power of 3 goes in steps; other numbers are spread more evenly at once.
        while rest > 1 {
            let parts = if 3usize.pow(rest.ilog(3)) == rest { 3 } else { rest };
            across.push(Across::new(parts, len));
            (rest, len) = (rest / parts, len * parts);
        }
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
        math::multiply(row, &self.signs, cpu);
        isa::hadamard(row, self.block, cpu);
        self.across.iter().for_each(|across| across.turn(row, 1, cpu));
    }

    /// Undoes [`Self::turn`]; a mean that was taken off stays away.
    pub fn turn_back(&self, row: &mut [f32], cpu: Cpu) {
        assert_eq!(row.len(), self.size());
        self.across.iter().rev().for_each(|across| across.turn_back(row, cpu));
        isa::hadamard(row, self.block, cpu);
        math::multiply(row, &self.signs, cpu);
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

    /// A matrix [size, width] whose columns are turned, on the caller's rayon pool. `read` writes
    /// some numbers of a row, from a column on.
    pub fn turn_columns(
        &self,
        read: impl Fn(usize, usize, &mut [f32]) + Sync,
        matrix: &mut [f32],
        width: usize,
        cpu: Cpu,
    ) {
        let size = self.size();
        assert_eq!(matrix.len(), size * width);
        let matrix = Split::new(matrix);
        (0..width.div_ceil(BAND)).into_par_iter().for_each_init(
            || vec![0.0; size * BAND],
            |band, number| {
                let (first, count) = (number * BAND, BAND.min(width - number * BAND));
                for (row, to) in band.chunks_exact_mut(BAND).enumerate() {
                    read(row, first, &mut to[..count]);
                }
                if self.centred {
                    isa::centre_columns(band, cpu);
                }
                isa::hadamard_columns(band, &self.signs, self.block, cpu);
                self.across.iter().for_each(|across| across.turn(band, BAND, cpu));
                for (row, from) in band.chunks_exact(BAND).enumerate() {
                    // SAFETY: no other task has these columns.
                    unsafe { matrix.part(row * width + first, count) }.copy_from_slice(&from[..count]);
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
        isa::hadamard(row, block, cpu);
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

    const SIZES: [usize; 10] = [1, 3, 8, 12, 45, 64, 77, 96, 576, 960];

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
        for (size, width) in [(1, 1), (3, 5), (12, 16), (64, 33), (70, 3), (576, 40)] {
            for (cpu, rotation) in Cpu::available()
                .into_iter()
                .flat_map(|cpu| [Rotation::new, Rotation::centred].map(|new| (cpu, new(size))))
            {
                let rows = numbers(size * width, 5);
                let mut columns = vec![0.0; size * width];
                let read = |row: usize, first: usize, out: &mut [f32]| {
                    (first..).zip(out).for_each(|(column, x)| *x = rows[column * size + row]);
                };
                rotation.turn_columns(read, &mut columns, width, cpu);
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
