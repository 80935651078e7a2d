//! Weights of 4 to 6 bits times 8-bit activations.

use std::arch::x86_64::*;

use half::f16;

use super::tile::{Column, ON, TILE_ROWS, dispatch};
use crate::kernels::layout::{BLOCK, BLOCK_BYTES, High, Known, LANES, QUAD};
use crate::kernels::product::{Block, Out};
use crate::kernels::rows::HALVES;

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values` and `scales` start at the block's first
/// panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::kernels) unsafe fn int4_block(
    (values, high): (&[u8], High),
    scales: &[f16],
    block: &Block<'_>,
    out: &mut Out<'_>,
) {
    // SAFETY: as this function.
    unsafe {
        match high.bits() {
            0 => int4_tiles(values, [(); 0], scales, block, out),
            1 => int4_tiles(values, [(); 1], scales, block, out),
            _ => int4_tiles(values, [(); 2], scales, block, out),
        }
    }
}

/// # Safety
/// As [`int4_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int4_tiles(values: &[u8], known: impl Known, scales: &[f16], block: &Block<'_>, out: &mut Out<'_>) {
    let (blocks, high) = (block.panel_count * block.rows.blocks(), known.high());
    assert!(values.len() >= blocks * high.block_bytes() && scales.len() >= blocks * LANES);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        for panel in (0..block.panel_count).step_by(INT4_PANELS) {
            let panels = INT4_PANELS.min(block.panel_count - panel);
            // SAFETY: as this function; the tile lies in the block.
            unsafe {
                dispatch!(
                    int4_tile,
                    [1 2 3 4 5 6] [1 2],
                    (rows, panels),
                    (values, known, scales, block, (row, panel), out)
                )
            };
        }
    }
}

/// Panels of a register tile in int4: the sums of a block's integers and the sums of all blocks
/// share the registers.
const INT4_PANELS: usize = 2;

/// # Safety
/// As [`int4_block`]; the block has `ROWS` rows and `PANELS` panels from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int4_tile<const ROWS: usize, const PANELS: usize>(
    values: &[u8],
    known: impl Known,
    scales: &[f16],
    block: &Block<'_>,
    first: (usize, usize),
    out: &mut Out<'_>,
) {
    const VECTOR: usize = LANES * QUAD;
    let blocks = block.rows.blocks();
    let rows: [_; ROWS] = std::array::from_fn(|r| block.rows.int4_row(block.first_row + first.0 + r));
    let groups = block.rows.groups;
    let high = known.high();
    let low = _mm512_set1_epi8(0xf);
    let beyond = _mm512_set1_epi8(high.mask() as i8);
    let mut results = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for b in 0..blocks {
        let mut sums = [[_mm512_setzero_si512(); PANELS]; ROWS];
        for (sums, row) in sums.iter_mut().zip(&rows) {
            // SAFETY: a row has as many sums as blocks.
            *sums = [_mm512_set1_epi32(-high.offset() * unsafe { *row.1.get_unchecked(b) }); PANELS];
        }
        let mut others = [_mm512_setzero_si512(); PANELS];
        let mut at = [0; PANELS];
        at.iter_mut().enumerate().for_each(|(p, at)| *at = (first.1 + p) * blocks + b);
        for vector in 0..BLOCK_BYTES / VECTOR {
            let mut pairs = [_mm512_setzero_si512(); PANELS];
            for (pair, at) in pairs.iter_mut().zip(at) {
                let vector = values.as_ptr().wrapping_add(at * high.block_bytes() + vector * VECTOR);
                if ROWS <= HALVES {
                    _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_add(ON).cast());
                }
                // SAFETY: the block's panels lie in the slice, as the caller has checked.
                *pair = unsafe { _mm512_loadu_si512(vector.cast()) };
            }
            for half in 0..2 {
                let group = b * (BLOCK / QUAD) + vector * 2 + half;
                if group >= groups {
                    break;
                }
                let mut weights = [_mm512_setzero_si512(); PANELS];
                for (p, (weights, pair)) in weights.iter_mut().zip(pairs).enumerate() {
                    *weights = _mm512_and_si512(if half == 0 { pair } else { _mm512_srli_epi16::<4>(pair) }, low);
                    if high.bits() > 0 {
                        let (place, shift) = high.place(vector * 2 + half);
                        // What is wanted of a byte stays in it: its lower half goes to the left, and
                        // either half is then gone through to the right.
                        if shift % 4 == 0 {
                            let start = values.as_ptr().wrapping_add(at[p] * high.block_bytes() + place);
                            // SAFETY: as above.
                            let bits = unsafe { _mm512_loadu_si512(start.cast()) };
                            others[p] = if shift == 0 { _mm512_slli_epi16::<4>(bits) } else { bits };
                        }
                        // a | b & c
                        *weights = _mm512_ternarylogic_epi32::<0xf8>(*weights, others[p], beyond);
                        others[p] = if high.bits() == 1 {
                            _mm512_srli_epi16::<1>(others[p])
                        } else {
                            _mm512_srli_epi16::<2>(others[p])
                        };
                    }
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
    let row_scales = &block.rows.scales[block.first_row + first.0..][..ROWS];
    for p in 0..PANELS {
        // SAFETY: rows and panel are the block's.
        unsafe {
            let column = Column::new(out, first.0, first.1 + p);
            for (r, results) in results.iter().enumerate() {
                column.store(r, _mm512_mul_ps(results[p], _mm512_set1_ps(row_scales[r])));
            }
        }
    }
}
