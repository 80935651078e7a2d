//! Weights rounded with feedback; see [`isa::round_with_feedback`](crate::kernels::isa::round_with_feedback).

use std::arch::x86_64::*;

use crate::kernels::layout::{Grid, LANES, QUAD};
use crate::kernels::math::lanes::ROUND;

const HALF: usize = LANES / 2;

/// Panels that are rounded at once: one waits for its sums while the other one has its own made.
const AT_ONCE: usize = 2;

/// # Safety
/// The processor has AVX-512 F and DQ. There are rows, words, scales and sums for all panels.
#[target_feature(enable = "avx512f,avx512dq")]
pub(in crate::kernels) unsafe fn round_with_feedback<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[[[f32; RANK]; 2]],
    words: &mut [u32],
    sums: &mut [i32],
) {
    let panels = sums.len() / LANES;
    for first in (0..panels).step_by(AT_ONCE) {
        // SAFETY: as this function; the panels are there.
        unsafe {
            if first + AT_ONCE <= panels {
                some_panels::<RANK, AT_ONCE>(first, rows, grid, steps, words, sums);
            } else {
                some_panels::<RANK, 1>(first, rows, grid, steps, words, sums);
            }
        }
    }
}

/// The same of so many panels from `first` on.
///
/// # Safety
/// As above; they are there.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn some_panels<const RANK: usize, const PANELS: usize>(
    first: usize,
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[[[f32; RANK]; 2]],
    words: &mut [u32],
    sums: &mut [i32],
) {
    let zero = _mm512_setzero_ps();
    let (least, most, round) = (_mm512_set1_ps(grid.least), _mm512_set1_ps(grid.most), _mm512_set1_ps(ROUND));
    let low = _mm512_set1_epi32(0xff);
    let inputs = steps.len();
    let (groups, blocks) = (inputs.div_ceil(QUAD), inputs.div_ceil(grid.block));
    let mut left = [[zero; RANK]; PANELS];
    let (mut scale, mut inverse) = ([zero; PANELS], [zero; PANELS]);
    let (mut word, mut sum) = ([_mm512_setzero_si512(); PANELS], [_mm512_setzero_si512(); PANELS]);
    let mut weights = [[[0f32; LANES]; LANES]; PANELS];
    for start in (0..inputs).step_by(LANES) {
        let count = LANES.min(inputs - start);
        for (p, weights) in weights.iter_mut().enumerate() {
            // SAFETY: the rows have so many numbers from here on.
            unsafe { columns(&rows[(first + p) * LANES * inputs..], inputs, (start, count), weights) };
        }
        for (i, [ahead, along]) in steps[start..start + count].iter().enumerate() {
            let at = start + i;
            if at.is_multiple_of(grid.block) {
                for p in 0..PANELS {
                    let of_block = ((first + p) * blocks + at / grid.block) * LANES;
                    // SAFETY: there are scales for all blocks.
                    scale[p] = unsafe { _mm512_loadu_ps(grid.scales.as_ptr().add(of_block)) };
                    let there = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(scale[p], zero);
                    inverse[p] = _mm512_maskz_div_ps(there, _mm512_set1_ps(1.0), scale[p]);
                }
            }
            let place = _mm_cvtsi32_si128(8 * (at % QUAD) as i32);
            // Four sums, so that none waits for the one before it.
            let mut weight = [zero; PANELS];
            let mut moved = [[zero; 4]; PANELS];
            for p in 0..PANELS {
                // SAFETY: one register.
                weight[p] = unsafe { _mm512_loadu_ps(weights[p][i].as_ptr()) };
                moved[p][0] = weight[p];
            }
            for k in 0..RANK {
                let ahead = _mm512_set1_ps(ahead[k]);
                for p in 0..PANELS {
                    moved[p][k % 4] = _mm512_fnmadd_ps(ahead, left[p][k], moved[p][k % 4]);
                }
            }
            let mut error = [zero; PANELS];
            for p in 0..PANELS {
                let [a, b, c, d] = moved[p];
                let moved = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
                let scaled = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(moved, inverse[p]), least), most);
                let rounded = _mm512_add_ps(scaled, round);
                error[p] = _mm512_fmsub_ps(_mm512_sub_ps(rounded, round), scale[p], weight[p]);
                let number = _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_castps_si512(round));
                sum[p] = _mm512_add_epi32(sum[p], number);
                word[p] = _mm512_or_si512(word[p], _mm512_sll_epi32(_mm512_and_si512(number, low), place));
            }
            for k in 0..RANK {
                let along = _mm512_set1_ps(along[k]);
                for p in 0..PANELS {
                    left[p][k] = _mm512_fmadd_ps(along, error[p], left[p][k]);
                }
            }
            if at % QUAD == QUAD - 1 || at + 1 == inputs {
                for (p, word) in word.iter_mut().enumerate() {
                    let of_group = ((first + p) * groups + at / QUAD) * LANES;
                    // SAFETY: there are words for all groups.
                    unsafe { _mm512_storeu_si512(words.as_mut_ptr().add(of_group).cast(), *word) };
                    *word = _mm512_setzero_si512();
                }
            }
        }
    }
    for (p, sum) in sum.into_iter().enumerate() {
        // SAFETY: there are sums for all panels.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().add((first + p) * LANES).cast(), sum) };
    }
}

/// `count` numbers of each of LANES rows of `len`, from `start` on, the rows made columns; the rest
/// is 0.
///
/// # Safety
/// The processor has AVX-512 F; the rows have them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn columns(rows: &[f32], len: usize, (start, count): (usize, usize), out: &mut [[f32; LANES]; LANES]) {
    let mask = (u32::MAX >> (32 - count)) as __mmask16;
    let zero = _mm512_setzero_ps();
    let (mut a, mut b) = ([zero; LANES], [zero; LANES]);
    for (lane, b) in b.iter_mut().enumerate() {
        // SAFETY: the mask lets through what is there.
        *b = unsafe { _mm512_maskz_loadu_ps(mask, rows.as_ptr().add(lane * len + start)) };
    }
    for i in (0..LANES).step_by(2) {
        a[i] = _mm512_unpacklo_ps(b[i], b[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(b[i], b[i + 1]);
    }
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (x, y) = (_mm512_castps_pd(a[i + half]), _mm512_castps_pd(a[i + 2 + half]));
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    // Quarters of a register have columns 4 apart; now those of rows 4 apart come together.
    for i in 0..4 {
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(b[i], b[i + 4]), _mm512_shuffle_f32x4::<0xdd>(b[i], b[i + 4]));
        let (more_even, more_odd) =
            (_mm512_shuffle_f32x4::<0x88>(b[i + 8], b[i + 12]), _mm512_shuffle_f32x4::<0xdd>(b[i + 8], b[i + 12]));
        a[i] = _mm512_shuffle_f32x4::<0x88>(even, more_even);
        a[i + 8] = _mm512_shuffle_f32x4::<0xdd>(even, more_even);
        a[i + 4] = _mm512_shuffle_f32x4::<0x88>(odd, more_odd);
        a[i + 12] = _mm512_shuffle_f32x4::<0xdd>(odd, more_odd);
    }
    for (out, column) in out.iter_mut().zip(a) {
        // SAFETY: one register.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), column) };
    }
}

/// The same.
///
/// # Safety
/// The processor has AVX2 and FMA, and the rest as above.
#[target_feature(enable = "avx2,fma")]
pub(in crate::kernels) unsafe fn round_with_feedback_in_halves<const RANK: usize>(
    rows: &[f32],
    grid: &Grid<'_>,
    steps: &[[[f32; RANK]; 2]],
    words: &mut [u32],
    sums: &mut [i32],
) {
    let (least, most, round) = (_mm256_set1_ps(grid.least), _mm256_set1_ps(grid.most), _mm256_set1_ps(ROUND));
    let low = _mm256_set1_epi32(0xff);
    let inputs = steps.len();
    let (groups, blocks) = (inputs.div_ceil(QUAD), inputs.div_ceil(grid.block));
    for row in (0..sums.len()).step_by(HALF) {
        let (panel, first) = (row / LANES, row % LANES);
        let (mut left, mut sum) = ([_mm256_setzero_ps(); RANK], _mm256_setzero_si256());
        let (mut scale, mut inverse) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let mut word = _mm256_setzero_si256();
        for (i, [ahead, along]) in steps.iter().enumerate() {
            if i.is_multiple_of(grid.block) {
                let of_block = (panel * blocks + i / grid.block) * LANES + first;
                // SAFETY: there are scales for all blocks.
                scale = unsafe { _mm256_loadu_ps(grid.scales.as_ptr().add(of_block)) };
                let there = _mm256_cmp_ps::<_CMP_NEQ_UQ>(scale, _mm256_setzero_ps());
                inverse = _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0), scale), there);
            }
            let weights: [f32; HALF] = std::array::from_fn(|lane| rows[(row + lane) * inputs + i]);
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
            let number = _mm256_sub_epi32(_mm256_castps_si256(rounded), _mm256_castps_si256(round));
            sum = _mm256_add_epi32(sum, number);
            let place = _mm_cvtsi32_si128(8 * (i % QUAD) as i32);
            word = _mm256_or_si256(word, _mm256_sll_epi32(_mm256_and_si256(number, low), place));
            if i % QUAD == QUAD - 1 || i + 1 == inputs {
                let of_group = (panel * groups + i / QUAD) * LANES + first;
                // SAFETY: there are words for all groups.
                unsafe { _mm256_storeu_si256(words.as_mut_ptr().add(of_group).cast(), word) };
                word = _mm256_setzero_si256();
            }
        }
        // SAFETY: there are sums for all rows.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().add(row).cast(), sum) };
    }
}
