//! Keys and values between the product that makes them and attention: to 16 bits, and from there to
//! 8.

use std::arch::x86_64::*;

use crate::kernels::layout::{KeyPanel, LANES, QUAD};

/// Numbers of a key that are rounded at a time: as many bytes as a register has.
pub(in crate::kernels) const KEY_BLOCK: usize = LANES * QUAD;

/// The first so many lanes of LANES.
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

/// See [`isa::to_int16`](crate::kernels::isa::to_int16).
///
/// # Safety
/// The processor has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(in crate::kernels) unsafe fn to_int16(x: &[f32], numbers: &mut [i16]) -> f32 {
    assert_eq!(x.len(), numbers.len());
    let mut largest = _mm512_setzero_ps();
    for part in x.chunks(LANES) {
        // SAFETY: as many lanes as there are.
        let x = unsafe { _mm512_maskz_loadu_ps(lanes(part.len()), part.as_ptr()) };
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
    }
    let largest = _mm512_reduce_max_ps(largest);
    let inverse = _mm512_set1_ps(if largest > 0.0 { 32767.0 / largest } else { 0.0 });
    for (part, numbers) in x.chunks(LANES).zip(numbers.chunks_mut(LANES)) {
        // SAFETY: as above.
        unsafe {
            let mask = lanes(part.len());
            let x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, part.as_ptr()), inverse);
            _mm256_mask_storeu_epi16(numbers.as_mut_ptr(), mask, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
        }
    }
    largest / 32767.0
}

/// See [`isa::keys_to_int8`](crate::kernels::isa::keys_to_int8), of BLOCKS times KEY_BLOCK numbers
/// a key at most.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(in crate::kernels) unsafe fn keys_to_int8<const BLOCKS: usize>(
    (keys, key_scales): (&[i16], &[f32]),
    mean: &[f32],
    KeyPanel { words, scales, sums }: KeyPanel<'_>,
) {
    let (head_dim, count) = (mean.len(), key_scales.len());
    let groups = head_dim.div_ceil(QUAD);
    assert!(head_dim <= BLOCKS * KEY_BLOCK && count <= LANES && keys.len() == count * head_dim);
    assert!(words.len() == groups * LANES && scales.len() == LANES && sums.len() == LANES);
    let mask = |part: usize| lanes(head_dim.saturating_sub(part * LANES));
    let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut rows = [[_mm512_setzero_si512(); LANES]; BLOCKS];
    for (r, (key, scale)) in keys.chunks_exact(head_dim).zip(key_scales).enumerate() {
        let mut x = [[_mm512_setzero_ps(); QUAD]; BLOCKS];
        let mut largest = _mm512_setzero_ps();
        for (part, x) in x.as_flattened_mut().iter_mut().enumerate() {
            // SAFETY: the masks let through what is there.
            unsafe {
                let number = _mm256_maskz_loadu_epi16(mask(part), key.as_ptr().wrapping_add(part * LANES));
                let mean = _mm512_maskz_loadu_ps(mask(part), mean.as_ptr().wrapping_add(part * LANES));
                *x = _mm512_fmsub_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(number)), _mm512_set1_ps(*scale), mean);
            }
            largest = _mm512_max_ps(_mm512_abs_ps(*x), largest);
        }
        let largest = _mm512_reduce_max_ps(largest);
        scales[r] = largest / 127.0;
        let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        for (x, rows) in x.iter().zip(&mut rows) {
            let [a, b, c, d] = x.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
            // Each quarter of a register is packed on its own.
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            rows[r] = _mm512_permutexvar_epi32(in_order, bytes);
        }
    }
    let mut all = _mm512_setzero_si512();
    for (rows, words) in rows.into_iter().zip(words.chunks_mut(LANES * LANES)) {
        for (vector, words) in transposed(rows).iter().zip(words.chunks_exact_mut(LANES)) {
            all = _mm512_dpbusd_epi32(all, _mm512_set1_epi8(1), *vector);
            // SAFETY: a register of them.
            unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), *vector) };
        }
    }
    // SAFETY: a register of them.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), all) };
}

/// Lane i of register j becomes lane j of register i.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // Within each quarter of a register: 4 x 4 words of four rows each.
    let mut quarters = [_mm512_setzero_si512(); LANES];
    for (four, quarters) in rows.chunks_exact(4).zip(quarters.chunks_exact_mut(4)) {
        let [a, b, c, d] = [four[0], four[1], four[2], four[3]];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quarters[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quarters[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quarters[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quarters[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    // Then quarters: those of register i, of each four rows, make registers i, i + 4, i + 8 and i +
    // 12.
    let mut all = [_mm512_setzero_si512(); LANES];
    for i in 0..4 {
        let [a, b, c, d] = [quarters[i], quarters[4 + i], quarters[8 + i], quarters[12 + i]];
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        all[i] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        all[8 + i] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        all[4 + i] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        all[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
    all
}
