//! Sums and products of rows of numbers.

use super::lanes::{LANES, fma, fold};
use super::vectorised::vectorised;
use crate::kernels::cpu::Cpu;

vectorised! {
    /// `x` times `by`, plus `rest`, as far as there is any.
    scale_and_add(x: &[f32], by: f32, rest: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * by);
        out.iter_mut().zip(rest).for_each(|(out, rest)| *out += rest);
    }
}

vectorised! {
    /// Each number times another one.
    multiply(x: &mut [f32], by: &[f32]) {
        x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
    }
}

vectorised! {
    /// `x` times `by`.
    scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
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
        fold(sums, |a, b| a + b)
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
