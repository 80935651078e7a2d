//! Which errors of rounded weights matter: the directions in which activations are large.
//!
//! A trained model's activations have most of their energy in a few directions, the mean of all
//! tokens first of all. A weight's rounding error is made good, as far as it lies in them, by the
//! weights that are rounded after it: GPTQ (arXiv 2210.17323), whose Hessian is the activations'
//! second moment. Here that is a multiple of the identity plus a matrix of low rank, so that a
//! weight costs two products with as many numbers as there are directions.

use super::cpu::Cpu;
use super::isa::{self, Step};
use super::layout::Grid;
use super::math;
use super::precision::Precision;
use super::rows::Rows;

/// The least part of the mean eigenvalue that is counted on in directions not seen.
const FLOOR: f32 = 1e-3;

/// Second moments of what comes into a matrix: for each input, what it has to do with the
/// directions.
pub enum Hessian {
    /// Enough of them for 8 bits.
    Few(Vec<Step<8>>),
    /// Each is worth more where errors are larger.
    Many(Vec<Step<16>>),
}

impl Hessian {
    /// Of `rows` in 8 bits, with one scale each, for weights in `precision`; none where they are
    /// not finite, or all zero.
    pub fn new(rows: &Rows, precision: Precision, cpu: Cpu) -> Option<Self> {
        Some(match precision {
            Precision::Int4 => Self::Many(steps(rows, cpu)?),
            _ => Self::Few(steps(rows, cpu)?),
        })
    }

    /// Inputs that it is of.
    pub(super) fn inputs(&self) -> usize {
        match self {
            Self::Few(steps) => steps.len(),
            Self::Many(steps) => steps.len(),
        }
    }

    /// See [`isa::round_with_feedback`].
    pub(super) fn round(&self, rows: &[f32], grid: &Grid<'_>, words: &mut [u32], sums: &mut [i32], cpu: Cpu) {
        match self {
            Self::Few(steps) => isa::round_with_feedback(rows, grid, steps, (words, sums), cpu),
            Self::Many(steps) => isa::round_with_feedback(rows, grid, steps, (words, sums), cpu),
        }
    }
}

fn steps<const RANK: usize>(rows: &Rows, cpu: Cpu) -> Option<Vec<Step<RANK>>> {
    let (count, width) = (rows.count(), rows.width());
    let mut x = vec![0.0; count * width];
    x.chunks_exact_mut(width).enumerate().for_each(|(row, out)| rows.restore(row, out));
    let total = x.chunks_exact(width).map(|row| math::dot(row, row, cpu)).sum::<f32>() / count as f32;
    if !(total.is_finite() && total > 0.0) {
        return None;
    }
    // [RANK, width]: any will do to begin with, if they are not alike.
    let mut directions = vec![0.0; RANK * width];
    for (k, direction) in directions.chunks_exact_mut(width).enumerate() {
        for (t, row) in x.chunks_exact(width).enumerate() {
            let sign = if ((k * count + t) as u32).wrapping_mul(2_654_435_761) >> 31 == 0 { 1.0 } else { -1.0 };
            math::add_scaled(row, sign, direction, cpu);
        }
    }
    orthonormalise(&mut directions, width, cpu);
    // Each becomes longer by its eigenvalue. Once is enough to tell large ones from the others.
    let along = project::<RANK>(&x, &directions, width, cpu);
    directions.fill(0.0);
    for (row, along) in x.chunks_exact(width).zip(&along) {
        for (direction, along) in directions.chunks_exact_mut(width).zip(along) {
            math::add_scaled(row, *along, direction, cpu);
        }
    }
    orthonormalise(&mut directions, width, cpu);
    let mut moments = [[0.0; RANK]; RANK];
    for along in project::<RANK>(&x, &directions, width, cpu) {
        for (row, a) in moments.iter_mut().zip(&along) {
            row.iter_mut().zip(&along).for_each(|(moment, b)| *moment += a * b / count as f32);
        }
    }
    let seen = (0..RANK).map(|k| moments[k][k]).sum::<f32>();
    let rest = (total - seen).max(FLOOR * total) / width as f32;
    let root = cholesky(&moments);
    let mut steps = vec![[[0.0; RANK]; 2]; width];
    for (direction, factors) in directions.chunks_exact(width).zip(&root) {
        for ([_, along], x) in steps.iter_mut().zip(direction) {
            along.iter_mut().zip(factors).for_each(|(along, factor)| *along += x * factor);
        }
    }
    isa::look_ahead(&mut steps, rest);
    steps.as_flattened().as_flattened().iter().all(|x| x.is_finite()).then_some(steps)
}

/// Of every row, how far it goes along each direction.
fn project<const RANK: usize>(x: &[f32], directions: &[f32], width: usize, cpu: Cpu) -> Vec<[f32; RANK]> {
    let along = |row: &[f32]| std::array::from_fn(|k| math::dot(row, &directions[k * width..][..width], cpu));
    x.chunks_exact(width).map(along).collect()
}

/// Makes rows of `width` orthogonal to each other, and of length 1; what lies in those before it
/// becomes 0.
fn orthonormalise(rows: &mut [f32], width: usize, cpu: Cpu) {
    for k in 0..rows.len() / width {
        let (before, row) = rows.split_at_mut(k * width);
        let row = &mut row[..width];
        let length = math::dot(row, row, cpu);
        for other in before.chunks_exact(width) {
            let along = math::dot(row, other, cpu);
            math::add_scaled(other, -along, row, cpu);
        }
        let left = math::dot(row, row, cpu);
        // Less than that of it is rounding.
        let scale = if left > 1e-6 * length { left.sqrt().recip() } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

/// A lower triangle whose product with its transpose is `matrix`, which is positive
/// semidefinite.
fn cholesky<const RANK: usize>(matrix: &[[f32; RANK]; RANK]) -> [[f32; RANK]; RANK] {
    let mut root = [[0f32; RANK]; RANK];
    for row in 0..RANK {
        for column in 0..=row {
            let dot: f32 = (0..column).map(|k| root[row][k] * root[column][k]).sum();
            let rest = matrix[row][column] - dot;
            root[row][column] = if row == column {
                rest.max(0.0).sqrt()
            } else if root[column][column] > 0.0 {
                rest / root[column][column]
            } else {
                0.0
            };
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use super::super::math::tests::numbers;
    use super::super::{PackedLinear, Then};
    use super::*;

    /// Rows that have much in common: what most of them have in one direction, and a little of
    /// their own.
    fn rows(count: usize, width: usize, seed: u32) -> Vec<f32> {
        let mean = numbers(width, 1);
        let mut rows = numbers(count * width, seed);
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x = 0.2 * *x + 3.0 * mean);
        }
        rows
    }

    /// The mean square of a product's errors.
    fn error(precision: Precision, (outputs, inputs): (usize, usize), feedback: bool, cpu: Cpu) -> f64 {
        let w = numbers(outputs * inputs, 7);
        let mut seen = Rows::default();
        seen.convert(Precision::Int8, &rows(40, inputs, 3), inputs, cpu);
        let hessian = Hessian::new(&seen, precision, cpu).filter(|_| feedback);
        let read = |output: usize, row: &mut [f32]| row.copy_from_slice(&w[output * inputs..][..inputs]);
        let packed = PackedLinear::new((outputs, inputs), read, Vec::new(), precision, hessian.as_ref(), cpu);
        // Rows that were not among those seen.
        let x = rows(30, inputs, 99);
        let mut sum = 0.0;
        for x in x.chunks_exact(inputs) {
            let (mut row, mut out) = (Rows { fine: true, ..Rows::default() }, vec![0.0; outputs]);
            row.convert(precision, x, inputs, cpu);
            packed.multiply(&row, &mut out, Then::Store);
            for (output, out) in out.iter().enumerate() {
                let exact: f64 = x.iter().zip(&w[output * inputs..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                sum += (f64::from(*out) - exact).powi(2);
            }
        }
        sum
    }

    #[test]
    fn errors_in_common_directions_are_made_good() {
        for cpu in Cpu::available() {
            for precision in [Precision::Int8, Precision::Int4] {
                for shape in [(17, 64), (48, 576), (5, 33)] {
                    let (with, without) = (error(precision, shape, true, cpu), error(precision, shape, false, cpu));
                    assert!(with < 0.35 * without, "{cpu:?} {precision:?} {shape:?}: {with} of {without}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_nothing_says_nothing() {
        for bad in [0.0, f32::INFINITY, f32::NAN] {
            let mut seen = Rows::default();
            seen.convert(Precision::Int8, &[bad; 4 * 20], 20, Cpu::detect());
            assert!(Hessian::new(&seen, Precision::Int8, Cpu::detect()).is_none(), "{bad}");
        }
    }
}
