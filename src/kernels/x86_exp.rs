//! AVX-512's softmax numerators.

use std::arch::x86_64::*;

use half::bf16;

use super::block::{LANES, PAIR};
use super::x86::as_bf16;

/// 2 to the power of -0.5 to 0.5, within 2e-7 of it relatively: the polynomial through 2^x at six Chebyshev nodes, highest power first.
const EXP2: [f32; 6] = [1.339_086_3e-3, 9.676_032e-3, 5.550_357e-2, 0.240_221_07, std::f32::consts::LN_2, 1.0];

/// What [`super::math::exp_row`] says.
///
/// # Safety
/// The processor has AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn exp_row(scores: &[f32], words: &mut [u32]) -> (f32, f32) {
    const PAIRS: usize = LANES;
    assert!(words.len() == scores.len().div_ceil(PAIR));
    let largest = largest(scores);
    let log2_e = _mm512_set1_ps(std::f32::consts::LOG2_E);
    let offset = _mm512_set1_ps(-largest * std::f32::consts::LOG2_E);
    let power = |x: __m512| {
        // Without a floor, minus infinity less its nearest integer is no number.
        let x = _mm512_max_ps(_mm512_fmadd_ps(x, log2_e, offset), _mm512_set1_ps(-127.0));
        let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        let r = _mm512_sub_ps(x, n);
        let mut p = _mm512_set1_ps(EXP2[0]);
        for coefficient in &EXP2[1..] {
            p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*coefficient));
        }
        _mm512_scalef_ps(p, n)
    };
    let ones = as_bf16(_mm512_set1_epi16(bf16::ONE.to_bits() as i16));
    let mut sum = _mm512_setzero_ps();
    for (words, scores) in words.chunks_mut(PAIRS).zip(scores.chunks(2 * PAIRS)) {
        let all = u32::MAX >> (2 * PAIRS - scores.len());
        let half = |first: usize| {
            let lanes = (all >> first) as __mmask16;
            // SAFETY: the mask leaves out what lies beyond the scores, also where they end before `first`.
            let x = unsafe { _mm512_maskz_loadu_ps(lanes, scores.as_ptr().wrapping_add(first)) };
            _mm512_maskz_mov_ps(lanes, power(x))
        };
        let (low, high) = (half(0), half(LANES));
        let powers = _mm512_cvtne2ps_pbh(high, low);
        sum = _mm512_dpbf16_ps(sum, powers, ones);
        // SAFETY: 512 bits either way.
        let bits = unsafe { std::mem::transmute::<__m512bh, __m512i>(powers) };
        let lanes = ((1u32 << words.len()) - 1) as __mmask16;
        // SAFETY: the mask leaves out what lies beyond the words.
        unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), lanes, bits) };
    }
    (largest, _mm512_reduce_add_ps(sum))
}

/// The largest number, or minus infinity of none.
#[target_feature(enable = "avx512f")]
fn largest(x: &[f32]) -> f32 {
    const AT_ONCE: usize = 4;
    let least = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = [least; AT_ONCE];
    let chunks = x.chunks_exact(AT_ONCE * LANES);
    for rest in chunks.remainder().chunks(LANES) {
        let lanes = ((1u32 << rest.len()) - 1) as __mmask16;
        // SAFETY: the mask leaves out what lies beyond the numbers.
        largest[0] = _mm512_max_ps(largest[0], unsafe { _mm512_mask_loadu_ps(least, lanes, rest.as_ptr()) });
    }
    for chunk in chunks {
        for (largest, x) in largest.iter_mut().zip(chunk.chunks_exact(LANES)) {
            // SAFETY: it has LANES numbers.
            *largest = _mm512_max_ps(*largest, unsafe { _mm512_loadu_ps(x.as_ptr()) });
        }
    }
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])))
}
