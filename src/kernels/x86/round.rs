//! Weights rounded with feedback; see [`math::round_with_feedback`](super::super::math::round_with_feedback).

use std::arch::x86_64::*;

use super::super::block::{LANES, QUAD};
use super::super::math::Grid;

const HALF: usize = LANES / 2;

/// Where numbers of this size lose what lies behind the point.
const ROUND: f32 = 12_582_912.0;

/// # Safety
/// The processor has AVX-512 F and DQ. There are LANES rows, as long as the steps, words for all
/// groups of inputs and scales for all blocks.
#[target_feature(enable = "avx512f,avx512dq")]
pub(in super::super) unsafe fn round_with_feedback<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[[[f32; RANK]; 2]],
    words: &mut [u32],
) -> [i32; LANES] {
    let (least, most, round) = (_mm512_set1_ps(grid.least), _mm512_set1_ps(grid.most), _mm512_set1_ps(ROUND));
    let (first, low) = (_mm512_castps_si512(round), _mm512_set1_epi32(0xff));
    let (mut left, mut sums) = ([_mm512_setzero_ps(); RANK], _mm512_setzero_si512());
    let (mut scale, mut inverse) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    let inputs = steps.len();
    for start in (0..inputs).step_by(LANES) {
        let count = LANES.min(inputs - start);
        // SAFETY: the rows have so many numbers from here on.
        let weights = transposed(unsafe { columns(rows, inputs, (start, count)) });
        let mut word = _mm512_setzero_si512();
        for (i, (weight, [ahead, along])) in weights.into_iter().zip(&steps[start..start + count]).enumerate() {
            if (start + i).is_multiple_of(grid.block) {
                // SAFETY: there are scales for all blocks.
                scale = unsafe { _mm512_loadu_ps(grid.scales.as_ptr().add((start + i) / grid.block * LANES)) };
                let there = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(scale, _mm512_setzero_ps());
                inverse = _mm512_maskz_div_ps(there, _mm512_set1_ps(1.0), scale);
            }
            // Four sums, so that none waits for the one before it.
            let mut moved = [weight, _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()];
            for k in 0..RANK {
                moved[k % 4] = _mm512_fnmadd_ps(_mm512_set1_ps(ahead[k]), left[k], moved[k % 4]);
            }
            let moved = _mm512_add_ps(_mm512_add_ps(moved[0], moved[1]), _mm512_add_ps(moved[2], moved[3]));
            let scaled = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(moved, inverse), least), most);
            let rounded = _mm512_add_ps(scaled, round);
            let error = _mm512_fmsub_ps(_mm512_sub_ps(rounded, round), scale, weight);
            for k in 0..RANK {
                left[k] = _mm512_fmadd_ps(_mm512_set1_ps(along[k]), error, left[k]);
            }
            let number = _mm512_sub_epi32(_mm512_castps_si512(rounded), first);
            sums = _mm512_add_epi32(sums, number);
            let place = _mm_cvtsi32_si128(8 * (i % QUAD) as i32);
            word = _mm512_or_si512(word, _mm512_sll_epi32(_mm512_and_si512(number, low), place));
            if i % QUAD == QUAD - 1 || i + 1 == count {
                // SAFETY: there are words for all groups.
                unsafe { _mm512_storeu_si512(words.as_mut_ptr().add((start + i) / QUAD * LANES).cast(), word) };
                word = _mm512_setzero_si512();
            }
        }
    }
    let mut all = [0; LANES];
    // SAFETY: one register.
    unsafe { _mm512_storeu_si512(all.as_mut_ptr().cast(), sums) };
    all
}

/// `count` numbers of each of LANES rows of `len`, from `start` on; the rest is 0.
///
/// # Safety
/// The processor has AVX-512 F; the rows have them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn columns(rows: &[f32], len: usize, (start, count): (usize, usize)) -> [__m512; LANES] {
    let mask = (u32::MAX >> (32 - count)) as __mmask16;
    // SAFETY: the mask lets through what is there.
    std::array::from_fn(|lane| unsafe { _mm512_maskz_loadu_ps(mask, rows.as_ptr().add(lane * len + start)) })
}

/// A square of numbers, its rows made columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let zero = _mm512_setzero_ps();
    let (mut a, mut b) = ([zero; LANES], [zero; LANES]);
    for i in (0..LANES).step_by(2) {
        a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let pairs = |x: __m512, y: __m512| (_mm512_castps_pd(x), _mm512_castps_pd(y));
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (x, y) = pairs(a[i + half], a[i + 2 + half]);
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    // Quarters of a register have columns 4 apart; now those of rows 4 apart come together.
    for i in 0..4 {
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(b[i], b[i + 4]), _mm512_shuffle_f32x4::<0xdd>(b[i], b[i + 4]));
        let (more_low, more_high) =
            (_mm512_shuffle_f32x4::<0x88>(b[i + 8], b[i + 12]), _mm512_shuffle_f32x4::<0xdd>(b[i + 8], b[i + 12]));
        a[i] = _mm512_shuffle_f32x4::<0x88>(low, more_low);
        a[i + 8] = _mm512_shuffle_f32x4::<0xdd>(low, more_low);
        a[i + 4] = _mm512_shuffle_f32x4::<0x88>(high, more_high);
        a[i + 12] = _mm512_shuffle_f32x4::<0xdd>(high, more_high);
    }
    a
}

/// The same.
///
/// # Safety
/// The processor has AVX2 and FMA, and the rest as above.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) unsafe fn round_with_feedback_in_halves<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[[[f32; RANK]; 2]],
    words: &mut [u32],
) -> [i32; LANES] {
    let (least, most, round) = (_mm256_set1_ps(grid.least), _mm256_set1_ps(grid.most), _mm256_set1_ps(ROUND));
    let (before, low) = (_mm256_castps_si256(round), _mm256_set1_epi32(0xff));
    let inputs = steps.len();
    let halves = [0, HALF].map(|first| {
        let (mut left, mut sums) = ([_mm256_setzero_ps(); RANK], _mm256_setzero_si256());
        let (mut scale, mut inverse) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let mut word = _mm256_setzero_si256();
        for (i, [ahead, along]) in steps.iter().enumerate() {
            if i.is_multiple_of(grid.block) {
                // SAFETY: there are scales for all blocks.
                scale = unsafe { _mm256_loadu_ps(grid.scales.as_ptr().add(i / grid.block * LANES + first)) };
                let there = _mm256_cmp_ps::<_CMP_NEQ_UQ>(scale, _mm256_setzero_ps());
                inverse = _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0), scale), there);
            }
            let weights: [f32; HALF] = std::array::from_fn(|lane| rows[(first + lane) * inputs + i]);
            // SAFETY: one register.
            let weight = unsafe { _mm256_loadu_ps(weights.as_ptr()) };
            let mut moved = [weight, _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()];
            for k in 0..RANK {
                moved[k % 4] = _mm256_fnmadd_ps(_mm256_set1_ps(ahead[k]), left[k], moved[k % 4]);
            }
            let moved = _mm256_add_ps(_mm256_add_ps(moved[0], moved[1]), _mm256_add_ps(moved[2], moved[3]));
            let scaled = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(moved, inverse), least), most);
            let rounded = _mm256_add_ps(scaled, round);
            let error = _mm256_fmsub_ps(_mm256_sub_ps(rounded, round), scale, weight);
            for k in 0..RANK {
                left[k] = _mm256_fmadd_ps(_mm256_set1_ps(along[k]), error, left[k]);
            }
            let number = _mm256_sub_epi32(_mm256_castps_si256(rounded), before);
            sums = _mm256_add_epi32(sums, number);
            let place = _mm_cvtsi32_si128(8 * (i % QUAD) as i32);
            word = _mm256_or_si256(word, _mm256_sll_epi32(_mm256_and_si256(number, low), place));
            if i % QUAD == QUAD - 1 || i + 1 == inputs {
                // SAFETY: there are words for all groups.
                unsafe { _mm256_storeu_si256(words.as_mut_ptr().add(i / QUAD * LANES + first).cast(), word) };
                word = _mm256_setzero_si256();
            }
        }
        bytemuck::cast::<_, [i32; HALF]>(sums)
    });
    bytemuck::cast(halves)
}
