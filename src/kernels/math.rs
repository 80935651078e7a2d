//! Element-wise arithmetic in a form that compilers vectorise: the same source, compiled again for wider registers.

use half::bf16;

use super::Cpu;
use super::block::{BLOCK, INT4_OFFSET, OFFSET, QUAD};

/// Partial sums and maxima of a reduction: as many as the widest register has lanes.
const LANES: usize = 16;

/// Adding it rounds a number of no more than 22 bits to an integer, ties to even, which the low bits of the sum then hold.
const ROUND: f32 = 12_582_912.0;

/// Defines `$name`, which runs `$body` compiled for the processor at hand. `FUSED` in it: whether that has fused multiply-adds.
macro_rules! vectorised {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        pub(super) fn $name($($argument: $type,)* cpu: Cpu) $(-> $result)? {
            #[allow(clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn generic<const FUSED: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn wide($($argument: $type),*) $(-> $result)? {
                generic::<true>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn half_as_wide($($argument: $type),*) $(-> $result)? {
                generic::<true>($($argument),*)
            }

            match cpu {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these sets exist only where the processor has these instructions.
                Cpu::Avx512 | Cpu::Avx512Bf16 => unsafe { wide($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these exist only where the processor has AVX2 and FMA.
                Cpu::Avx2 | Cpu::AvxVnni => unsafe { half_as_wide($($argument),*) },
                _ => generic::<false>($($argument),*),
            }
        }
    };
}

pub(super) fn low_half(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

pub(super) fn high_half(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_0000)
}

/// The nearest bf16, ties to even. Infinities and NaN, which no activation should be, stay what they are or become NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

/// The larger one, without what `f32::max` promises for NaN: one instruction.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// All lanes as one, in a few steps of halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low = of(*low, *high));
        half /= 2;
    }
    lanes[0]
}

/// The largest, at least `least`.
#[inline(always)]
fn largest(x: &[f32], least: f32, of: impl Fn(f32) -> f32) -> f32 {
    let mut largest = [least; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut last = [least; LANES];
    last.iter_mut().zip(chunks.remainder()).for_each(|(last, x)| *last = of(*x));
    for chunk in chunks {
        for (m, x) in largest.iter_mut().zip(chunk) {
            *m = larger(of(*x), *m);
        }
    }
    for (m, x) in largest.iter_mut().zip(last) {
        *m = larger(x, *m);
    }
    fold(largest, larger)
}

/// a * b + c, rounded once where the processor does so.
#[inline(always)]
fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// 2 to the power of `x`, which is not above 126, times `by`, within 8e-5 of it relatively; of what lies below -126, of that. Its results
/// are rounded to 8 bits.
///
/// 2^n times a polynomial on an octave, whose coefficients make the largest relative error smallest (by reweighted least squares).
#[inline(always)]
fn exp2<const FUSED: bool>(x: f32, by: f32) -> f32 {
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
/// The difference of bits has a ninth of error at most (H. S. Warren, Hacker's Delight, on its inverse square root, has the idea), and each
/// of Newton's steps squares that: together they take less time than one division.
#[inline(always)]
fn reciprocal<const FUSED: bool>(x: f32) -> f32 {
    let mut y = f32::from_bits(0x7ef3_0000 - x.to_bits());
    for _ in 0..2 {
        y *= fma::<FUSED>(-x, y, 2.0);
    }
    y
}

/// 1 / (1 + e^-x)
#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    let power = -std::f32::consts::LOG2_E * x;
    reciprocal::<FUSED>(1.0 + exp2::<FUSED>(if power < 124.0 { power } else { 124.0 }, 1.0))
}

vectorised! {
    /// GELU by its tanh approximation, in place.
    gelu(row: &mut [f32]) {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        for x in row {
            // (1 + tanh z) / 2 = sigmoid(2 z)
            *x *= sigmoid::<FUSED>(2.0 * SQRT_2_OVER_PI * *x * fma::<FUSED>(0.044_715 * *x, *x, 1.0));
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

vectorised! {
    /// Two numbers to a word, rounded to bf16; a missing second one is 0.
    to_bf16(x: &[f32], words: &mut [u32]) {
        for (word, pair) in words.iter_mut().zip(x.chunks_exact(2)) {
            *word = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
        }
        if let (Some(last), [x]) = (words.get_mut(x.len() / 2), x.chunks_exact(2).remainder()) {
            *last = bf16_bits(*x);
        }
    }
}

vectorised! {
    /// A number to the lower half of each word, rounded to bf16; the upper one becomes 0.
    set_low(x: &[f32], words: &mut [u32]) {
        for (word, x) in words.iter_mut().zip(x) {
            *word = bf16_bits(*x);
        }
    }
}

vectorised! {
    /// A number to the upper half of each word, rounded to bf16.
    set_high(x: &[f32], words: &mut [u32]) {
        for (word, x) in words.iter_mut().zip(x) {
            *word = *word & 0xffff | bf16_bits(*x) << 16;
        }
    }
}

vectorised! {
    /// Four numbers to a word, in 8 bits plus OFFSET; missing ones are 0. What they have to be multiplied by.
    to_int8(x: &[f32], words: &mut [u32]) -> f32 {
        let largest = largest(x, 0.0, f32::abs);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        // The first of a word's numbers is lowest: machines are little-endian.
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
        bytes[x.len()..].fill(OFFSET as u8);
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = (x * inverse + ROUND).to_bits().wrapping_add(OFFSET as u32) as u8;
        }
        largest / 127.0
    }
}

vectorised! {
    /// Numbers divided by `scale`, rounded to 4 bits, plus INT4_OFFSET; the sum of the squares of the errors.
    to_int4(x: &[f32], scale: f32, integers: &mut [u8; BLOCK]) -> f32 {
        let inverse = scale.recip();
        let mut errors = [0f32; BLOCK];
        for ((error, integer), x) in errors.iter_mut().zip(integers).zip(x) {
            let shifted = x * inverse + INT4_OFFSET as f32;
            let rounded = larger(if shifted < 15.0 { shifted } else { 15.0 }, 0.0) + ROUND;
            *integer = rounded.to_bits() as u8;
            let difference = (rounded - ROUND - INT4_OFFSET as f32) * scale - x;
            *error = difference * difference;
        }
        errors.iter().sum()
    }
}

vectorised! {
    /// Takes OFFSET off the numbers in `words`, which [`to_int8`] made; the sums of every BLOCK of them.
    sign_and_sum(words: &mut [u32], sums: &mut [i32]) {
        for (sum, words) in sums.iter_mut().zip(words.chunks_mut(BLOCK / QUAD)) {
            *sum = 0;
            for word in words {
                *word ^= 0x8080_8080;
                *sum += word.to_le_bytes().iter().map(|&b| i32::from(b as i8)).sum::<i32>();
            }
        }
    }
}

/// The same for one number; of what lies below -126, 0.
#[inline]
pub(super) fn power_of_two(x: f32) -> f32 {
    if x > -126.0 { exp2::<false>(x, 1.0) } else { 0.0 }
}

vectorised! {
    /// 2 to the power of each score less the largest one, or `least`, rounded to bf16, two to a word; the largest, and the sum of the powers.
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

vectorised! {
    /// The same in unsigned numbers of 8 bits, of which 255 is 1, and the sum of these; `bytes` has as many as there are scores.
    exp2_row_int8(scores: &[f32], bytes: &mut [u8]) -> (f32, u32) {
        let largest = largest(scores, f32::NEG_INFINITY, |x| x);
        let power = |x: f32| (exp2::<FUSED>(x - largest, 255.0) + ROUND).to_bits();
        // Of all bits: those of ROUND are taken off at the end.
        let mut sums = [0u32; LANES];
        let (chunks, mut rest) = (scores.chunks_exact(LANES), bytes.chunks_exact_mut(LANES));
        let last = chunks.remainder();
        for (bytes, scores) in rest.by_ref().zip(chunks) {
            for ((byte, sum), &x) in bytes.iter_mut().zip(&mut sums).zip(scores) {
                let power = power(x);
                *byte = power as u8;
                *sum = sum.wrapping_add(power);
            }
        }
        for ((byte, sum), &x) in rest.into_remainder().iter_mut().zip(&mut sums).zip(last) {
            let power = power(x);
            *byte = power as u8;
            *sum = sum.wrapping_add(power);
        }
        let sum = sums.iter().fold(0, |a: u32, &b| a.wrapping_add(b));
        (largest, sum.wrapping_sub(ROUND.to_bits().wrapping_mul(scores.len() as u32)))
    }
}

vectorised! {
    /// `sums` plus `x`.
    add(sums: &mut [f32], x: &[f32]) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

vectorised! {
    /// `x` less `y`.
    subtract(x: &[f32], y: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| *out = x - y);
    }
}

vectorised! {
    /// `x` times `by`, plus `rest`, as far as there is any.
    scale_and_add(x: &[f32], by: f32, rest: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x * by);
        out.iter_mut().zip(rest).for_each(|(out, rest)| *out += rest);
    }
}

vectorised! {
    /// `x` times `by`.
    scale(x: &mut [f32], by: f32) {
        x.iter_mut().for_each(|x| *x *= by);
    }
}

vectorised! {
    /// `reach` becomes the distance of `x` from `mean`, where that is larger.
    reach(x: &[f32], mean: &[f32], reach: &mut [f32]) {
        for ((reach, x), mean) in reach.iter_mut().zip(x).zip(mean) {
            *reach = larger((x - mean).abs(), *reach);
        }
    }
}

vectorised! {
    /// `x` less `mean` times `inverse`, rounded to 8 bits, to byte `byte` of each word, which must be 0.
    set_byte(x: &[f32], mean: &[f32], inverse: &[f32], byte: usize, words: &mut [u32]) {
        for (((word, x), mean), inverse) in words.iter_mut().zip(x).zip(mean).zip(inverse) {
            *word |= (((x - mean) * inverse + ROUND).to_bits() & 0xff) << (8 * byte);
        }
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

/// One number, rounded.
pub(super) fn round_bf16(x: f32) -> bf16 {
    bf16::from_bits(bf16_bits(x) as u16)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers from -1 to 1 in no order.
    pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0;
        (0..count as u32).map(number).collect()
    }

    pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let difference = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        a.iter().zip(b).map(difference).fold(0.0, f32::max)
    }

    #[test]
    fn powers_and_reciprocals_are_within_their_bounds() {
        for i in -12_599..=12_600 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2::<false>(x, 1.0)) - exact).abs() / exact;
            assert!(error < 8e-5, "{x}: {error}");
            let x = x.abs().min(125.0).exp2();
            let error = (f64::from(reciprocal::<false>(x)) * f64::from(x) - 1.0).abs();
            assert!(error < 7e-6, "{x}: {error}");
        }
        assert_eq!(exp2::<false>(f32::NEG_INFINITY, 1.0), exp2::<false>(-126.0, 1.0));
        let far = [f32::NEG_INFINITY, -1e30, -100.0, 100.0, 1e30, f32::INFINITY].map(sigmoid::<false>);
        assert!(
            far[..3].iter().all(|x| (0.0..1e-30).contains(x)) && far[3..].iter().all(|x| (x - 1.0).abs() < 1e-5),
            "{far:?}"
        );
    }

    #[test]
    fn functions_are_what_they_say_on_every_processor() {
        for count in [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100] {
            let x: Vec<f32> = numbers(count, 3).iter().map(|x| x * 6.0).collect();
            for cpu in Cpu::available() {
                let mut ours = x.clone();
                gelu(&mut ours, cpu);
                let tanh = |x: f32| 0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x.powi(3))).tanh());
                assert!(largest_difference(&ours, &x.iter().map(|&x| tanh(x)).collect::<Vec<_>>()) < 6e-4);

                let mut ours = vec![0.0; count];
                silu_mul(&x, &numbers(count, 9), &mut ours, cpu);
                let silu = |(x, up): (&f32, f32)| x / (1.0 + (-x).exp()) * up;
                assert!(
                    largest_difference(&ours, &x.iter().zip(numbers(count, 9)).map(silu).collect::<Vec<_>>()) < 6e-4
                );

                let mut far = x.clone();
                far.iter_mut().skip(1).step_by(3).zip([-90.0, -1e4, f32::NEG_INFINITY]).for_each(|(x, y)| *x = y);
                for x in [&x, &far] {
                    let mut words = vec![0; count.div_ceil(2)];
                    let (largest, sum) = exp2_row(x, f32::NEG_INFINITY, &mut words, cpu);
                    assert_eq!(largest, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    let ours: Vec<f32> = words.iter().flat_map(|&w| [low_half(w), high_half(w)]).collect();
                    let exact: Vec<f32> = x.iter().map(|x| (x - largest).exp2()).collect();
                    assert!(largest_difference(&ours[..count], &exact) < 2f32.powi(-9) + 8e-5);
                    assert!((sum - ours.iter().sum::<f32>()).abs() < 1e-5 * count as f32);
                    let (above, less) = exp2_row(x, largest + 1.0, &mut words, cpu);
                    assert!(above == largest + 1.0 && (less - sum / 2.0).abs() < 1e-5 * count as f32);

                    let mut bytes = vec![0; count];
                    let (same, sum) = exp2_row_int8(x, &mut bytes, cpu);
                    assert!(same == largest && sum == bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>());
                    let ours: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
                    assert!(largest_difference(&ours, &exact) < 0.5 / 255.0 + 8e-5);
                }

                let (weight, bias) = (numbers(count, 11), numbers(count, 12));
                let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64;
                let squares =
                    |x: &[f32], mean: f64| x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count as f64;
                let normed = |mean: f64, bias: &[f32]| -> Vec<f32> {
                    let scale = (squares(&x, mean) + 1e-3).sqrt();
                    let all = x.iter().zip(&weight).zip(bias);
                    all.map(|((&x, &w), &b)| ((f64::from(x) - mean) / scale * f64::from(w) + f64::from(b)) as f32)
                        .collect()
                };
                layer_norm(&x, &weight, &bias, 1e-3, &mut ours, cpu);
                assert!(largest_difference(&ours, &normed(mean(&x), &bias)) < 1e-5);
                rms_norm(&x, &weight, 1e-3, &mut ours, cpu);
                assert!(largest_difference(&ours, &normed(0.0, &vec![0.0; count])) < 1e-5);

                let mut words = vec![0; count.div_ceil(2)];
                to_bf16(&x, &mut words, cpu);
                let halves: Vec<f32> = words.iter().flat_map(|&w| [low_half(w), high_half(w)]).collect();
                let exact: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
                assert_eq!(halves[..count], exact);

                let mut words = vec![0; count.div_ceil(4)];
                let scale = to_int8(&x, &mut words, cpu);
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                let back: Vec<f32> = bytes.iter().map(|&b| (i32::from(b) - OFFSET) as f32 * scale).collect();
                assert!(largest_difference(&back[..count], &x) <= scale / 2.0 * 1.001);
                assert!(back[count..].iter().all(|&x| x == 0.0));
            }
        }
    }
}
