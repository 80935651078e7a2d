//! AVX-512 kernels: a tile of rows and panels is held in registers while the inputs stream by.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::block::{BLOCK, BLOCK_BYTES, Block, INT4_OFFSET, LANES, Out, PAIR, QUAD};

/// Rows of a register tile: 6 rows by 4 panels are 24 accumulators of the 32 registers.
const TILE_ROWS: usize = 6;

/// Calls `$kernel::<ROWS, PANELS>` for the constants that fit.
macro_rules! dispatch {
    ($kernel:ident, $rows:expr, $panels:expr, $($argument:expr),*) => {
        match ($rows, $panels) {
            (1, 1) => $kernel::<1, 1>($($argument),*), (1, 2) => $kernel::<1, 2>($($argument),*),
            (1, 3) => $kernel::<1, 3>($($argument),*), (1, _) => $kernel::<1, 4>($($argument),*),
            (2, 1) => $kernel::<2, 1>($($argument),*), (2, 2) => $kernel::<2, 2>($($argument),*),
            (2, 3) => $kernel::<2, 3>($($argument),*), (2, _) => $kernel::<2, 4>($($argument),*),
            (3, 1) => $kernel::<3, 1>($($argument),*), (3, 2) => $kernel::<3, 2>($($argument),*),
            (3, 3) => $kernel::<3, 3>($($argument),*), (3, _) => $kernel::<3, 4>($($argument),*),
            (4, 1) => $kernel::<4, 1>($($argument),*), (4, 2) => $kernel::<4, 2>($($argument),*),
            (4, 3) => $kernel::<4, 3>($($argument),*), (4, _) => $kernel::<4, 4>($($argument),*),
            (5, 1) => $kernel::<5, 1>($($argument),*), (5, 2) => $kernel::<5, 2>($($argument),*),
            (5, 3) => $kernel::<5, 3>($($argument),*), (5, _) => $kernel::<5, 4>($($argument),*),
            (_, 1) => $kernel::<6, 1>($($argument),*), (_, 2) => $kernel::<6, 2>($($argument),*),
            (_, 3) => $kernel::<6, 3>($($argument),*), (_, _) => $kernel::<6, 4>($($argument),*),
        }
    };
}

/// # Safety
/// The processor has AVX-512 F, BW and BF16. `values` starts at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn bf16_block(values: &[bf16], block: &Block<'_>, out: &mut Out) {
    assert!(values.len() >= block.vectors() * LANES * PAIR);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        // SAFETY: as this function; the tile lies in the block.
        unsafe { dispatch!(bf16_tile, rows, block.panel_count, values.as_ptr(), block, row, out) };
    }
}

/// Stores or adds as many lanes as the result has columns there.
///
/// # Safety
/// The processor has AVX-512 F; the block has this row and this panel.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(out: &mut Out, row: usize, panel: usize, values: __m512) {
    // SAFETY: as the caller promises; the mask leaves out what is not the block's.
    unsafe {
        let (at, lanes) = out.lanes(row, panel);
        let mask = ((1u32 << lanes) - 1) as __mmask16;
        let values = if out.add { _mm512_add_ps(values, _mm512_maskz_loadu_ps(mask, at)) } else { values };
        _mm512_mask_storeu_ps(at, mask, values);
    }
}

fn as_bf16(vector: __m512i) -> __m512bh {
    // SAFETY: 512 bits either way.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(vector) }
}

/// # Safety
/// As [`bf16_block`]; the block has `ROWS` rows from `row` on, and `PANELS` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize, const PANELS: usize>(
    values: *const bf16,
    block: &Block<'_>,
    row: usize,
    out: &mut Out,
) {
    let groups = block.rows.groups;
    let words = block.rows.words[(block.first_row + row) * groups..][..ROWS * groups].as_ptr();
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for group in 0..groups {
        let mut panels = [_mm512_setzero_si512(); PANELS];
        for (p, panel) in panels.iter_mut().enumerate() {
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            *panel = unsafe { _mm512_loadu_si512(values.add(block.strides.at(p, group) * LANES * PAIR).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `words` holds ROWS * groups words.
            let word = unsafe { _mm512_set1_epi32(*words.add(r * groups + group) as i32) };
            for (sum, panel) in sums.iter_mut().zip(panels) {
                *sum = _mm512_dpbf16_ps(*sum, as_bf16(panel), as_bf16(word));
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sum) in sums.iter().enumerate() {
            // SAFETY: row and panel are the block's.
            unsafe { store(out, row + r, p, *sum) };
        }
    }
}

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values`, `scales` and `corrections` start at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn int8_block(values: &[i8], scales: &[f32], corrections: &[i32], block: &Block<'_>, out: &mut Out) {
    assert!(values.len() >= block.vectors() * LANES * QUAD);
    assert!(scales.len().min(corrections.len()) >= block.panel_count * LANES);
    assert!(block.rows.scales.len() >= block.first_row + block.row_count);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        // SAFETY: as this function; the tile lies in the block.
        unsafe { dispatch!(int8_tile, rows, block.panel_count, values.as_ptr(), scales, corrections, block, row, out) };
    }
}

/// # Safety
/// As [`int8_block`]; the block has `ROWS` rows from `row` on, and `PANELS` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int8_tile<const ROWS: usize, const PANELS: usize>(
    values: *const i8,
    scales: &[f32],
    corrections: &[i32],
    block: &Block<'_>,
    row: usize,
    out: &mut Out,
) {
    let groups = block.rows.groups;
    let words = block.rows.words[(block.first_row + row) * groups..][..ROWS * groups].as_ptr();
    let row_scales = &block.rows.scales[block.first_row + row..][..ROWS];
    let mut sums = [[_mm512_setzero_si512(); PANELS]; ROWS];
    for group in 0..groups {
        let mut panels = [_mm512_setzero_si512(); PANELS];
        for (p, panel) in panels.iter_mut().enumerate() {
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            *panel = unsafe { _mm512_loadu_si512(values.add(block.strides.at(p, group) * LANES * QUAD).cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `words` holds ROWS * groups words.
            let word = unsafe { _mm512_set1_epi32(*words.add(r * groups + group) as i32) };
            for (sum, panel) in sums.iter_mut().zip(panels) {
                *sum = _mm512_dpbusd_epi32(*sum, word, panel);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sum) in sums.iter().enumerate() {
            // SAFETY: the slices hold PANELS * LANES values; the row is the block's.
            unsafe {
                let correction = _mm512_loadu_si512(corrections.as_ptr().add(p * LANES).cast());
                let scale =
                    _mm512_mul_ps(_mm512_loadu_ps(scales.as_ptr().add(p * LANES)), _mm512_set1_ps(row_scales[r]));
                let result = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(*sum, correction)), scale);
                store(out, row + r, p, result);
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values` and `scales` start at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn int4_block(values: &[u8], scales: &[f16], block: &Block<'_>, out: &mut Out) {
    let blocks = block.panel_count * block.rows.blocks();
    assert!(values.len() >= blocks * BLOCK_BYTES && scales.len() >= blocks * LANES);
    // Sums of a block's integers and sums of all share the registers: fewer panels at once.
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        for panel in (0..block.panel_count).step_by(INT4_PANELS) {
            let panels = INT4_PANELS.min(block.panel_count - panel);
            // SAFETY: as this function; the tile lies in the block.
            unsafe { dispatch!(int4_tile, rows, panels, values, scales, block, (row, panel), out) };
        }
    }
}

/// Panels of a register tile in int4.
const INT4_PANELS: usize = 2;

/// # Safety
/// As [`int4_block`]; the block has `ROWS` rows and `PANELS` panels from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int4_tile<const ROWS: usize, const PANELS: usize>(
    values: &[u8],
    scales: &[f16],
    block: &Block<'_>,
    first: (usize, usize),
    out: &mut Out,
) {
    const VECTOR: usize = LANES * QUAD;
    let blocks = block.rows.blocks();
    let rows: [_; ROWS] = std::array::from_fn(|r| block.rows.int4_row(block.first_row + first.0 + r));
    let groups = block.rows.groups;
    let low = _mm512_set1_epi8(0xf);
    let mut results = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for b in 0..blocks {
        let mut sums = [[_mm512_setzero_si512(); PANELS]; ROWS];
        for (sums, row) in sums.iter_mut().zip(&rows) {
            // SAFETY: a row has as many sums as blocks.
            *sums = [_mm512_set1_epi32(-INT4_OFFSET * unsafe { *row.1.get_unchecked(b) }); PANELS];
        }
        let mut at = [0; PANELS];
        at.iter_mut().enumerate().for_each(|(p, at)| *at = (first.1 + p) * blocks + b);
        for vector in 0..BLOCK_BYTES / VECTOR {
            let mut pairs = [_mm512_setzero_si512(); PANELS];
            for (pair, at) in pairs.iter_mut().zip(at) {
                // SAFETY: the block's panels lie in the slice, as the caller has checked.
                *pair = unsafe { _mm512_loadu_si512(values.as_ptr().add(at * BLOCK_BYTES + vector * VECTOR).cast()) };
            }
            for half in 0..2 {
                let group = b * (BLOCK / QUAD) + vector * 2 + half;
                if group >= groups {
                    break;
                }
                let mut weights = [_mm512_setzero_si512(); PANELS];
                for (weights, pair) in weights.iter_mut().zip(pairs) {
                    *weights = _mm512_and_si512(if half == 0 { pair } else { _mm512_srli_epi16::<4>(pair) }, low);
                }
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    // SAFETY: a row has `groups` words.
                    let word = _mm512_set1_epi32(unsafe { *row.0.get_unchecked(group) } as i32);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbusd_epi32(*sum, weights, word);
                    }
                }
            }
        }
        for p in 0..PANELS {
            // SAFETY: the slice holds the block's scales, as the caller has checked.
            let scale = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().add(at[p] * LANES).cast())) };
            for (results, sums) in results.iter_mut().zip(&sums) {
                results[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[p]), scale, results[p]);
            }
        }
    }
    for (r, results) in results.iter().enumerate() {
        let scale = _mm512_set1_ps(block.rows.scales[block.first_row + first.0 + r]);
        for (p, result) in results.iter().enumerate() {
            // SAFETY: row and panel are the block's.
            unsafe { store(out, first.0 + r, first.1 + p, _mm512_mul_ps(*result, scale)) };
        }
    }
}
