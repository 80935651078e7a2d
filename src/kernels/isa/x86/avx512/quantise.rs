//! Activations in 8 bits.

use std::arch::x86_64::*;

use crate::kernels::layout::{LANES, QUAD};

/// Numbers that are rounded at a time: as many bytes as a register has.
const CHUNK: usize = LANES * QUAD;

/// See [`isa::to_int8`](crate::kernels::isa::to_int8).
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernels) unsafe fn to_int8(x: &[f32], words: &mut [u32]) -> f32 {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    assert!(bytes.len() == x.len().next_multiple_of(QUAD));
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
    let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });

    let (full, rest) = bytes.split_at_mut(chunks.len() * CHUNK);
    for (chunk, bytes) in chunks.iter().zip(full.chunks_exact_mut(CHUNK)) {
        // SAFETY: four registers of numbers, one of bytes.
        unsafe {
            let start = chunk.as_ptr();
            let x = [
                _mm512_loadu_ps(start),
                _mm512_loadu_ps(start.add(LANES)),
                _mm512_loadu_ps(start.add(2 * LANES)),
                _mm512_loadu_ps(start.add(3 * LANES)),
            ];
            _mm512_storeu_si512(bytes.as_mut_ptr().cast(), rounded(x, inverse));
        }
    }
    if !rest.is_empty() {
        let mask = u64::MAX >> (CHUNK - rest.len());
        // SAFETY: as many bytes as the mask lets through.
        unsafe { _mm512_mask_storeu_epi8(rest.as_mut_ptr().cast(), mask, rounded(last, inverse)) };
    }
    largest / 127.0
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

/// A chunk times `inverse`, as bytes plus OFFSET.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rounded(x: [__m512; 4], inverse: __m512) -> __m512i {
    let [a, b, c, d] = x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
    // Each quarter of a register is packed on its own.
    let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_xor_si512(_mm512_permutexvar_epi32(in_order, bytes), _mm512_set1_epi8(i8::MIN))
}
