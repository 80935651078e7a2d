//! Activations in 8 bits.

use std::arch::x86_64::*;

use crate::kernels::layout::{LANES, QUAD};
use crate::kernels::math::TWICE;

/// Numbers that are rounded at a time: as many bytes as a register has.
const CHUNK: usize = LANES * QUAD;

/// See [`isa::to_int8`](crate::kernels::isa::to_int8).
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernels) unsafe fn to_int8(x: &[f32], words: &mut [u32]) -> f32 {
    // SAFETY: as this function.
    unsafe {
        quantise(x, [words], 127.0, |x, inverse| [as_bytes(x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse))))])
    }
}

/// See [`isa::to_int8_twice`](crate::kernels::isa::to_int8_twice).
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernels) unsafe fn to_int8_twice(x: &[f32], high: &mut [u32], low: &mut [u32]) -> f32 {
    // SAFETY: as this function.
    unsafe {
        quantise(x, [high, low], TWICE, |x, inverse| {
            let x = x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
            let high = x.map(|x| _mm512_srai_epi32::<8>(_mm512_add_epi32(x, _mm512_set1_epi32(128))));
            let low = std::array::from_fn(|i| _mm512_sub_epi32(x[i], _mm512_slli_epi32::<8>(high[i])));
            [as_bytes(high), as_bytes(low)]
        })
    }
}

/// Numbers in as many bytes each as there are `words`, `round`ed a chunk at a time; `most` is what
/// becomes of the largest one. What they have to be multiplied by.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn quantise<const N: usize>(
    x: &[f32],
    words: [&mut [u32]; N],
    most: f32,
    round: impl Fn([__m512; 4], __m512) -> [__m512i; N],
) -> f32 {
    let mut bytes = words.map(bytemuck::cast_slice_mut::<_, u8>);
    assert!(bytes.iter().all(|bytes| bytes.len() == x.len().next_multiple_of(QUAD)));
    let (chunks, rest) = x.as_chunks::<CHUNK>();
    // SAFETY: registers of the slice, and as many lanes as there are.
    let last = unsafe { masked(rest) };

    let mut largest = last.map(|x| _mm512_abs_ps(x));
    for chunk in chunks {
        for (i, largest) in largest.iter_mut().enumerate() {
            // SAFETY: four registers.
            let x = unsafe { _mm512_loadu_ps(chunk.as_ptr().add(i * LANES)) };
            *largest = _mm512_max_ps(_mm512_abs_ps(x), *largest);
        }
    }
    let [a, b, c, d] = largest;
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
    let inverse = _mm512_set1_ps(if largest > 0.0 { most / largest } else { 0.0 });

    for (i, chunk) in chunks.iter().enumerate() {
        // SAFETY: four registers of numbers, and one of each's bytes.
        unsafe {
            let start = chunk.as_ptr();
            let x = [
                _mm512_loadu_ps(start),
                _mm512_loadu_ps(start.add(LANES)),
                _mm512_loadu_ps(start.add(2 * LANES)),
                _mm512_loadu_ps(start.add(3 * LANES)),
            ];
            for (bytes, rounded) in bytes.iter_mut().zip(round(x, inverse)) {
                _mm512_storeu_si512(bytes.as_mut_ptr().add(i * CHUNK).cast(), rounded);
            }
        }
    }
    if !rest.is_empty() {
        for (bytes, rounded) in bytes.iter_mut().zip(round(last, inverse)) {
            let bytes = &mut bytes[chunks.len() * CHUNK..];
            let mask = u64::MAX >> (CHUNK - bytes.len());
            // SAFETY: as many bytes as the mask lets through.
            unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask, rounded) };
        }
    }
    largest / most
}

/// Less than a chunk, filled up with zeros.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn masked(x: &[f32]) -> [__m512; 4] {
    [0, 1, 2, 3].map(|i| {
        let lanes = x.len().saturating_sub(i * LANES).min(LANES);
        // SAFETY: the mask lets through what is there.
        unsafe { _mm512_maskz_loadu_ps(((1u32 << lanes) - 1) as __mmask16, x.as_ptr().wrapping_add(i * LANES)) }
    })
}

/// A chunk's integers as bytes plus OFFSET.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn as_bytes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // Each quarter of a register is packed on its own.
    let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_xor_si512(_mm512_permutexvar_epi32(in_order, bytes), _mm512_set1_epi8(i8::MIN))
}
