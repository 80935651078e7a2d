//! The stages of a Hadamard transform that stay within a register. Compilers gather them from memory.

use std::arch::x86_64::*;

use crate::kernels::layout::LANES;

const HALF: usize = LANES / 2;

/// Of each stage: which numbers are subtracted from those they meet.
const SIGNS: [[f32; LANES]; 4] = {
    let mut signs = [[1.0; LANES]; 4];
    let mut at = 0;
    while at < 4 * LANES {
        if (at % LANES) >> (at / LANES) & 1 == 1 {
            signs[at / LANES][at % LANES] = -1.0;
        }
        at += 1;
    }
    signs
};

/// Every LANES numbers times a Hadamard matrix and `scale`; what is left over is not touched.
///
/// # Safety
/// The processor has AVX-512 F and DQ.
#[target_feature(enable = "avx512f,avx512dq")]
pub(in crate::kernels) unsafe fn hadamard_lanes(x: &mut [f32], scale: f32) {
    // SAFETY: a register each.
    let [one, two, four, eight] = unsafe {
        [
            _mm512_loadu_ps(SIGNS[0].as_ptr()),
            _mm512_loadu_ps(SIGNS[1].as_ptr()),
            _mm512_loadu_ps(SIGNS[2].as_ptr()),
            _mm512_loadu_ps(SIGNS[3].as_ptr()),
        ]
    };
    let (scale, eight) = (_mm512_set1_ps(scale), _mm512_mul_ps(eight, _mm512_set1_ps(scale)));
    for x in x.as_chunks_mut::<LANES>().0 {
        let at = x.as_mut_ptr();
        // SAFETY: one register.
        let x = unsafe { _mm512_loadu_ps(at) };
        let x = _mm512_fmadd_ps(x, one, _mm512_permute_ps::<0b10_11_00_01>(x));
        let x = _mm512_fmadd_ps(x, two, _mm512_permute_ps::<0b01_00_11_10>(x));
        let x = _mm512_fmadd_ps(x, four, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
        let swapped = _mm512_mul_ps(_mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), scale);
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(at, _mm512_fmadd_ps(x, eight, swapped)) };
    }
}

/// The same.
///
/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(in crate::kernels) unsafe fn hadamard_halves(x: &mut [f32], scale: f32) {
    // SAFETY: a register each.
    let [one, two, four] = unsafe {
        [_mm256_loadu_ps(SIGNS[0].as_ptr()), _mm256_loadu_ps(SIGNS[1].as_ptr()), _mm256_loadu_ps(SIGNS[2].as_ptr())]
    };
    let (scale, four) = (_mm256_set1_ps(scale), _mm256_mul_ps(four, _mm256_set1_ps(scale)));
    for x in x.as_chunks_mut::<LANES>().0 {
        let at = x.as_mut_ptr();
        // SAFETY: two registers.
        let halves = unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(HALF))] };
        let [low, high] = halves.map(|x| {
            let x = _mm256_fmadd_ps(x, one, _mm256_permute_ps::<0b10_11_00_01>(x));
            let x = _mm256_fmadd_ps(x, two, _mm256_permute_ps::<0b01_00_11_10>(x));
            _mm256_fmadd_ps(x, four, _mm256_mul_ps(_mm256_permute2f128_ps::<1>(x, x), scale))
        });
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(at, _mm256_add_ps(low, high));
            _mm256_storeu_ps(at.add(HALF), _mm256_sub_ps(low, high));
        }
    }
}
