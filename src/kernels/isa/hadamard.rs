//! The Walsh-Hadamard transform.

#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::kernels::cpu::Cpu;
use crate::kernels::math::lanes::{LANES, fma};
use crate::kernels::math::vectorised::vectorised;

/// Columns that are transformed together: a few cache lines of each row.
pub(in crate::kernels) const BAND: usize = 64;

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

/// All stages from one to another, each from `LANES` on; two at a time, as far as there are.
#[inline(always)]
fn stages(x: &mut [f32], from: usize, to: usize) {
    let mut step = from;
    while 2 * step < to {
        for four in x.chunks_exact_mut(4 * step) {
            let (low, high) = four.split_at_mut(2 * step);
            let ((a, b), (c, d)) = (low.split_at_mut(step), high.split_at_mut(step));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (ab, a_b, cd, c_d) = (*a + *b, *a - *b, *c + *d, *c - *d);
                (*a, *b, *c, *d) = (ab + cd, a_b + c_d, ab - cd, a_b - c_d);
            }
        }
        step *= 4;
    }
    if step < to {
        for pair in x.chunks_exact_mut(2 * step) {
            let (first, second) = pair.split_at_mut(step);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

/// Each block of so many numbers, a power of 2 that `x` has whole ones of, times an orthogonal
/// matrix: every number of a block is in every other one, with the same weight.
pub(in crate::kernels) fn hadamard(x: &mut [f32], block: usize, cpu: Cpu) {
    let scale = 1.0 / (block as f32).sqrt();
    if block < LANES {
        return small(x, block, scale);
    }
    match cpu {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these sets exist only where the processor has AVX-512 F and DQ.
        Cpu::Avx512F | Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx => unsafe { x86::hadamard_lanes(x, scale) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: these exist only where the processor has AVX2 and FMA.
        Cpu::Avx2 | Cpu::AvxVnni => unsafe { x86::hadamard_halves(x, scale) },
        _ => within_lanes(x, scale),
    }
    if block > LANES {
        across_lanes(x, block, cpu);
    }
}

/// The same of blocks that are smaller than a register.
fn small(x: &mut [f32], block: usize, scale: f32) {
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
}

/// The stages within a register, and the scale.
fn within_lanes(x: &mut [f32], scale: f32) {
    for x in x.as_chunks_mut::<LANES>().0 {
        stage::<1>(x);
        stage::<2>(x);
        stage::<4>(x);
        stage::<8>(x);
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

vectorised! {
    /// All other stages.
    across_lanes(x: &mut [f32], block: usize) {
        for x in x.chunks_exact_mut(block) {
            stages(x, LANES, block);
        }
    }
}

vectorised! {
    /// Takes the mean off columns: `x` has rows of BAND numbers.
    centre_columns(x: &mut [f32]) {
        let rows = x.as_chunks_mut::<BAND>().0;
        let mut means = [0f32; BAND];
        for row in &*rows {
            means.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
        }
        let count = rows.len() as f32;
        for row in rows {
            row.iter_mut().zip(&means).for_each(|(x, mean)| *x -= mean / count);
        }
    }
}

vectorised! {
    /// [`hadamard`] of columns: `x` has rows of BAND numbers, `block` of them in a block, and each is
    /// multiplied by its sign first.
    hadamard_columns(x: &mut [f32], signs: &[f32], block: usize) {
        let scale = 1.0 / (block as f32).sqrt();
        for (row, sign) in x.chunks_exact_mut(BAND).zip(signs) {
            let by = sign * scale;
            row.iter_mut().for_each(|x| *x *= by);
        }
        for x in x.chunks_exact_mut(block * BAND) {
            stages(x, BAND, block * BAND);
        }
    }
}

vectorised! {
    /// Reflects three parts of `len` numbers across each other, as if each were a number: all of
    /// them come to have some of the others.
    thirds(x: &mut [f32], len: usize) {
        for x in x.chunks_exact_mut(3 * len) {
            let (first, rest) = x.split_at_mut(len);
            let (second, third) = rest.split_at_mut(len);
            for ((a, b), c) in first.iter_mut().zip(second).zip(third) {
                let shared = (*a + *b + *c) * (2.0 / 3.0);
                (*a, *b, *c) = (shared - *a, shared - *b, shared - *c);
            }
        }
    }
}

vectorised! {
    /// A matrix [parts, parts] times parts of `x` as if each were a number.
    mix(x: &[f32], matrix: &[f32], out: &mut [f32]) {
        let parts = matrix.len().isqrt();
        let len = x.len() / parts;
        let whole = len / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            for (out, weights) in out.chunks_exact_mut(len).zip(matrix.chunks_exact(parts)) {
                let mut sums = [0.0; LANES];
                for (x, weight) in x.chunks_exact(len).zip(weights) {
                    for (sum, x) in sums.iter_mut().zip(&x[start..start + LANES]) {
                        *sum = fma::<FUSED>(*x, *weight, *sum);
                    }
                }
                out[start..start + LANES].copy_from_slice(&sums);
            }
        }
        for at in whole..len {
            for (out, weights) in out.chunks_exact_mut(len).zip(matrix.chunks_exact(parts)) {
                out[at] = x.chunks_exact(len).zip(weights).map(|(x, weight)| x[at] * weight).sum();
            }
        }
    }
}
