//! Weights rounded one after the other, each with what those before it have left.

use super::super::Cpu;
use super::{LANES, ROUND, fma, larger};

/// Directions in which activations are large.
pub(in super::super) const RANK: usize = 16;

/// What an input has to do with the directions; see [`Hessian`](super::super::Hessian).
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Step {
    /// What to take off a weight for the errors of those before it along each direction.
    pub(in super::super) ahead: [f32; RANK],
    /// How far its own error goes along each.
    pub(in super::super) along: [f32; RANK],
}

/// What weights are rounded to: multiples of a scale for each lane and block of inputs.
pub(in super::super) struct Grid<'a> {
    /// [blocks, LANES]
    pub(in super::super) scales: &'a [f32],
    /// Inputs of a block.
    pub(in super::super) block: usize,
    pub(in super::super) least: f32,
    pub(in super::super) most: f32,
}

vectorised! {
    /// Weights [inputs, LANES] as whole numbers, multiples of their scales; `steps` are the inputs'.
    round_with_feedback(weights: &[f32], grid: &Grid<'_>, steps: &[Step], out: &mut [i8]) {
        let (weights, out) = (weights.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
        let mut left = [[0f32; LANES]; RANK];
        let blocks = weights.chunks(grid.block).zip(steps.chunks(grid.block)).zip(out.chunks_mut(grid.block));
        for (((weights, steps), out), scales) in blocks.zip(grid.scales.as_chunks::<LANES>().0) {
            let inverses: [f32; LANES] = std::array::from_fn(|i| if scales[i] == 0.0 { 0.0 } else { scales[i].recip() });
            for ((weights, step), out) in weights.iter().zip(steps).zip(out) {
                // Four sums, so that none waits for the one before it.
                let mut moved = [*weights, [0.0; LANES], [0.0; LANES], [0.0; LANES]];
                for (k, (left, ahead)) in left.iter().zip(&step.ahead).enumerate() {
                    for (moved, left) in moved[k % 4].iter_mut().zip(left) {
                        *moved = fma::<FUSED>(-ahead, *left, *moved);
                    }
                }
                let mut errors = [0f32; LANES];
                for lane in 0..LANES {
                    let moved = (moved[0][lane] + moved[1][lane]) + (moved[2][lane] + moved[3][lane]);
                    let scaled = larger(moved * inverses[lane], grid.least);
                    let rounded = (if scaled < grid.most { scaled } else { grid.most }) + ROUND;
                    out[lane] = rounded.to_bits() as i8;
                    errors[lane] = fma::<FUSED>(rounded - ROUND, scales[lane], -weights[lane]);
                }
                for (left, along) in left.iter_mut().zip(&step.along) {
                    for (left, error) in left.iter_mut().zip(&errors) {
                        *left = fma::<FUSED>(*along, *error, *left);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Says what each step has to look ahead for: what the weights from it on can still make good,
    /// where the Hessian is `rest` times the identity plus the steps' own.
    look_ahead(steps: &mut [Step], rest: f32) {
        // The inverse of `rest` times the identity plus what the steps from here on have.
        let mut inverse = [[0f32; RANK]; RANK];
        (0..RANK).for_each(|k| inverse[k][k] = rest.recip());
        for step in steps.iter_mut().rev() {
            // Sherman and Morrison.
            let mut times = [0f32; RANK];
            for (row, along) in inverse.iter().zip(&step.along) {
                for (times, x) in times.iter_mut().zip(row) {
                    *times = fma::<FUSED>(*along, *x, *times);
                }
            }
            let length = times.iter().zip(&step.along).map(|(a, b)| a * b).sum::<f32>();
            let share = (1.0 + length).recip();
            for (row, a) in inverse.iter_mut().zip(times) {
                for (x, b) in row.iter_mut().zip(&times) {
                    *x = fma::<FUSED>(-a * share, *b, *x);
                }
            }
            step.ahead = times.map(|x| x * share);
        }
    }
}

vectorised! {
    /// The sum of products.
    dot(a: &[f32], b: &[f32]) -> f32 {
        let mut sums = [0f32; 4 * LANES];
        let (a, b) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
        for ((sum, a), b) in sums.iter_mut().zip(a.remainder()).zip(b.remainder()) {
            *sum = a * b;
        }
        for (a, b) in a.zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum = fma::<FUSED>(*a, *b, *sum);
            }
        }
        super::fold(sums, |a, b| a + b)
    }
}

vectorised! {
    /// `x` times `by`, added to `sums`.
    add_scaled(x: &[f32], by: f32, sums: &mut [f32]) {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = fma::<FUSED>(*x, by, *sum);
        }
    }
}
