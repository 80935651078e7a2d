//! Activations, softmax and norms.

use super::lanes::{LANES, ROUND, fma, fold, larger, largest};
use super::quantise::bf16_bits;
use super::vectorised::vectorised;
use crate::kernels::cpu::Cpu;

/// 2 to the power of `x`, which is not above 126, times `by`, within 8e-5 of it relatively; of what
/// lies below -126, of that. Its results are rounded to 8 bits.
///
/// 2^n times a polynomial on an octave, whose coefficients make the largest relative error smallest
/// (by reweighted least squares).
#[inline(always)]
pub(super) fn exp2<const FUSED: bool>(x: f32, by: f32) -> f32 {
    let x = larger(x, -126.0);
    let rounded = x + ROUND;
    let r = x - (rounded - ROUND);
    let mut p = 0.055_171_67 * by;
    for coefficient in [0.242_611_13, 0.693_261, 0.999_928_06] {
        p = fma::<FUSED>(p, r, coefficient * by);
    }
    f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// 1 / `x` for an `x` of 1 to 2^125, within 7e-6 of it relatively.
///
/// The difference of bits has a ninth of error at most (H. S. Warren, Hacker's Delight, on its
/// inverse square root, has the idea), and each of Newton's steps squares that: together they take
/// less time than one division.
#[inline(always)]
pub(super) fn reciprocal<const FUSED: bool>(x: f32) -> f32 {
    let mut y = f32::from_bits(0x7ef3_0000 - x.to_bits());
    for _ in 0..2 {
        y *= fma::<FUSED>(-x, y, 2.0);
    }
    y
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(super) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    let power = -std::f32::consts::LOG2_E * x;
    reciprocal::<FUSED>(1.0 + exp2::<FUSED>(if power < 124.0 { power } else { 124.0 }, 1.0))
}

vectorised! {
    /// GELU by its tanh approximation, within 2e-4 of it from -12 to 12, and beyond within a
    /// millionth of `x`: its results are rounded to 8 bits, or to 8 significant ones.
    ///
    /// That is x times a half more than an odd function: a polynomial up to 3.8, whose coefficients
    /// make the largest error smallest (by reweighted least squares), and half of one from there
    /// on.
    gelu(x: &[f32], out: &mut [f32]) {
        const REACH: f32 = 3.8;
        const COEFFICIENTS: [f32; 6] =
            [-2.078_385e-6, 5.707_075_3e-5, -8.981_312e-4, 9.151_529e-3, -6.527_664e-2, 0.398_165_82];
        for (out, x) in out.iter_mut().zip(x) {
            let near = larger(if *x < REACH { *x } else { REACH }, -REACH);
            let square = near * near;
            let mut p = 3.259_987e-8;
            for coefficient in COEFFICIENTS {
                p = fma::<FUSED>(p, square, coefficient);
            }
            *out = x * fma::<FUSED>(near, p, 0.5);
        }
    }
}

vectorised! {
    /// silu(gate) * up.
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * up * sigmoid::<FUSED>(*gate);
        }
    }
}

/// The same for one number; of what lies below -126, 0.
#[inline]
pub(in crate::kernels) fn power_of_two(x: f32) -> f32 {
    if x > -126.0 { exp2::<false>(x, 1.0) } else { 0.0 }
}

vectorised! {
    /// 2 to the power of each score less the largest one, or `least`, rounded to bf16, two to a
    /// word; the largest, and the sum of the powers.
    exp2_row(scores: &[f32], least: f32, words: &mut [u32]) -> (f32, f32) {
        const PAIRS: usize = LANES;
        let largest = largest(scores, least, |x| x);
        let power = |x: f32| bf16_bits(exp2::<FUSED>(x - largest, 1.0)) << 16;
        let mut sums = [0f32; 2 * PAIRS];
        let whole = scores.len() / (2 * PAIRS);
        for (words, scores) in words.chunks_exact_mut(PAIRS).zip(scores.chunks_exact(2 * PAIRS)) {
            let mut powers = [0u32; 2 * PAIRS];
            for ((power_bits, sum), &x) in powers.iter_mut().zip(&mut sums).zip(scores) {
                *power_bits = power(x);
                *sum += f32::from_bits(*power_bits);
            }
            for (word, pair) in words.iter_mut().zip(powers.chunks_exact(2)) {
                *word = pair[0] >> 16 | pair[1];
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for (word, pair) in words[whole * PAIRS..].iter_mut().zip(scores[whole * 2 * PAIRS..].chunks(2)) {
            let (first, second) = (power(pair[0]), pair.get(1).map_or(0, |&x| power(x)));
            sum += f32::from_bits(first) + f32::from_bits(second);
            *word = first >> 16 | second;
        }
        (largest, sum)
    }
}

/// Positions after which [`dither`] begins again.
pub(in crate::kernels) const DITHERED: usize = 256;

/// From where on a softmax weight in 8 bits is rounded up, in 256ths, by its position: as often as
/// it lies above the integer below it. Rounded to the nearest, all that weigh less than a 510th of
/// the largest would be 0, which of a thousand is much of what they all weigh.
///
/// Multiples of an odd number are spread evenly over neighbours, and over rows of patches.
pub(in crate::kernels) const fn dither(position: usize) -> u8 {
    (position * 157 % DITHERED) as u8
}

/// The same as something to be added before rounding to the nearest.
const DITHER: [f32; DITHERED] = {
    let (mut all, mut position) = ([0.0; DITHERED], 0);
    while position < DITHERED {
        all[position] = (dither(position) as f32 + 0.5) / DITHERED as f32 - 0.5;
        position += 1;
    }
    all
};

vectorised! {
    /// 2 to the power of `by` times each score less the largest one, in unsigned numbers of 8 bits,
    /// of which 255 is 1, rounded as [`dither`] says; the largest, and the sum of these. `bytes`
    /// has as many as there are scores.
    exp2_row_int8(scores: &[f32], by: f32, bytes: &mut [u8]) -> (f32, u32) {
        let largest = largest(scores, f32::NEG_INFINITY, |x| x);
        let power = |x: f32, dither: f32| (exp2::<FUSED>((x - largest) * by, 255.0) + dither + ROUND).to_bits();
        // Of all bits: those of ROUND are taken off at the end.
        let mut sums = [0u32; LANES];
        let (chunks, mut rest) = (scores.chunks_exact(LANES), bytes.chunks_exact_mut(LANES));
        let last = chunks.remainder();
        let mut dithers = DITHER.chunks_exact(LANES).cycle();
        for ((bytes, scores), dithers) in rest.by_ref().zip(chunks).zip(dithers.by_ref()) {
            for (((byte, sum), &x), &dither) in bytes.iter_mut().zip(&mut sums).zip(scores).zip(dithers) {
                let power = power(x, dither);
                *byte = power as u8;
                *sum = sum.wrapping_add(power);
            }
        }
        let dithers = &DITHER[(scores.len() - last.len()) % DITHERED..];
        for (((byte, sum), &x), &dither) in rest.into_remainder().iter_mut().zip(&mut sums).zip(last).zip(dithers) {
            let power = power(x, dither);
            *byte = power as u8;
            *sum = sum.wrapping_add(power);
        }
        let sum = sums.iter().fold(0, |a: u32, &b| a.wrapping_add(b));
        (largest, sum.wrapping_sub(ROUND.to_bits().wrapping_mul(scores.len() as u32)))
    }
}

vectorised! {
    /// The same in 16 bits, of which 65535 is 1, each of them times its factor, which is at most 1:
    /// the upper and the lower `bytes`. The sum is without factors.
    exp2_row_int16(scores: &[f32], by: f32, factors: &[f32], bytes: [&mut [u8]; 2]) -> (f32, u32) {
        let largest = largest(scores, f32::NEG_INFINITY, |x| x);
        let mut sum = 0u32;
        let [high, low] = bytes;
        for (((high, low), x), factor) in high.iter_mut().zip(low).zip(scores).zip(factors) {
            let power = exp2::<FUSED>((x - largest) * by, 65535.0);
            let weight = (power * factor + ROUND).to_bits();
            (*high, *low) = ((weight >> 8) as u8, weight as u8);
            sum = sum.wrapping_add((power + ROUND).to_bits() & 0xffff);
        }
        (largest, sum)
    }
}

/// Sums of what `term` makes of each number.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut last = [0f32; LANES];
    last.iter_mut().zip(chunks.remainder()).for_each(|(last, x)| *last = term(*x));
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    sums.iter_mut().zip(last).for_each(|(sum, x)| *sum += x);
    fold(sums, |a, b| a + b)
}

vectorised! {
    /// Takes the mean off.
    centre(x: &mut [f32]) {
        let mean = sum(x, |x| x) / x.len() as f32;
        x.iter_mut().for_each(|x| *x -= mean);
    }
}

vectorised! {
    /// `x` less its mean, divided by its spread, times `weight`, plus `bias`.
    layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let count = x.len() as f32;
        let mean = sum(x, |x| x) / count;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
        let scale = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = fma::<FUSED>((x - mean) * scale, *weight, *bias);
        }
    }
}

vectorised! {
    /// `x` divided by its root mean square, times `weight`.
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let scale = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}
