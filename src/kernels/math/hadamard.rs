//! The Walsh-Hadamard transform.

use super::super::Cpu;
use super::LANES;

/// One stage within a register.
#[inline(always)]
fn stage<const STEP: usize>(x: &mut [f32; LANES]) {
    let before = *x;
    *x = std::array::from_fn(
        |i| {
            if i & STEP == 0 { before[i] + before[i ^ STEP] } else { before[i ^ STEP] - before[i] }
        },
    );
}

/// All stages from one to another, each from `LANES` on.
#[inline(always)]
fn stages(x: &mut [f32], from: usize, to: usize) {
    let mut step = from;
    while step < to {
        for pair in x.chunks_exact_mut(2 * step) {
            let (first, second) = pair.split_at_mut(step);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        step *= 2;
    }
}

vectorised! {
    /// Each block of so many numbers, a power of 2 that `x` has whole ones of, times an orthogonal
    /// matrix: every number of a block is in every other one, with the same weight.
    hadamard(x: &mut [f32], block: usize) {
        let scale = 1.0 / (block as f32).sqrt();
        if block < LANES {
            let mut step = 1;
            while step < block {
                for pair in x.chunks_exact_mut(2 * step) {
                    for i in 0..step {
                        (pair[i], pair[i + step]) = (pair[i] + pair[i + step], pair[i] - pair[i + step]);
                    }
                }
                step *= 2;
            }
            x.iter_mut().for_each(|x| *x *= scale);
            return;
        }
        for x in x.as_chunks_mut::<LANES>().0 {
            stage::<1>(x);
            stage::<2>(x);
            stage::<4>(x);
            stage::<8>(x);
            x.iter_mut().for_each(|x| *x *= scale);
        }
        for x in x.chunks_exact_mut(block) {
            stages(x, LANES, block);
        }
    }
}

vectorised! {
    /// The same of columns: `x` has rows of LANES numbers, `block` of them in a block.
    hadamard_columns(x: &mut [f32], block: usize) {
        let scale = 1.0 / (block as f32).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
        for x in x.chunks_exact_mut(block * LANES) {
            stages(x, LANES, block * LANES);
        }
    }
}

vectorised! {
    /// A matrix [parts, parts] times parts of `x` as if each were a number.
    mix(x: &[f32], matrix: &[f32], out: &mut [f32]) {
        let parts = matrix.len().isqrt();
        let len = x.len() / parts;
        for (out, weights) in out.chunks_exact_mut(len).zip(matrix.chunks_exact(parts)) {
            out.fill(0.0);
            for (x, weight) in x.chunks_exact(len).zip(weights) {
                for (out, x) in out.iter_mut().zip(x) {
                    *out += x * weight;
                }
            }
        }
    }
}
