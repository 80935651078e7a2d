//! 8-bit weights times 8-bit activations.

use std::arch::x86_64::*;

use super::tile::{Column, ON, RowOffsets, TALL_PANELS, TILE_ROWS, dispatch, even_rows};
use crate::kernels::layout::{LANES, QUAD};
use crate::kernels::product::{Block, Out};

/// Bytes that a tall tile of int8 fetches for each group: half a line, so that a block of a few
/// dozen rows fetches as much as it has itself. Fewer rows read faster than that.
const AHEAD: usize = 32;

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values`, `scales` and `corrections` start at the
/// block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::kernels) unsafe fn int8_block(
    values: &[i8],
    scales: &[f32],
    corrections: Option<&[i32]>,
    block: &Block<'_>,
    out: &mut Out<'_>,
) {
    assert!(values.len() >= block.vectors() * LANES * QUAD);
    assert!(scales.len() >= block.panel_count * LANES);
    assert!(corrections.is_none_or(|corrections| corrections.len() >= block.panel_count * LANES));
    assert!(block.rows.scales.len() >= block.first_row + block.row_count);
    // Each tile fetches a piece of what is ahead.
    let piece = block.rows.groups * AHEAD;
    let mut ahead = block.ahead.chunks_exact(piece.max(1));
    if block.row_count <= TILE_ROWS {
        // SAFETY: as this function; the tile lies in the block.
        unsafe {
            dispatch!(
                int8_tile,
                [1 2 3 4 5 6] [1 2 3 4],
                (block.row_count, block.panel_count),
                (values.as_ptr(), scales, corrections, block, (0, 0), ahead.next(), out)
            );
        }
        return;
    }
    let tile_rows = even_rows(block.row_count);
    for panel in (0..block.panel_count).step_by(TALL_PANELS) {
        let panels = TALL_PANELS.min(block.panel_count - panel);
        for row in (0..block.row_count).step_by(tile_rows) {
            let rows = tile_rows.min(block.row_count - row);
            // SAFETY: as above.
            unsafe {
                dispatch!(
                    int8_tile,
                    [1 2 3 4 5 6 7 8 9 10 11 12] [1 2],
                    (rows, panels),
                    (values.as_ptr(), scales, corrections, block, (row, panel), ahead.next(), out)
                );
            }
        }
    }
}

/// # Safety
/// As [`int8_block`]; the block has `ROWS` rows and `PANELS` panels from `first` on.
// On its own: among all others compilers have kept some of the sums in memory.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int8_tile<const ROWS: usize, const PANELS: usize>(
    values: *const i8,
    scales: &[f32],
    corrections: Option<&[i32]>,
    block: &Block<'_>,
    first: (usize, usize),
    ahead: Option<&[u8]>,
    out: &mut Out<'_>,
) {
    let groups = block.rows.groups;
    // Where nothing is ahead, what is at hand is fetched again.
    let ahead: *const i8 = ahead.map_or(values, |ahead| ahead.as_ptr().cast());
    let words = block.rows.words[(block.first_row + first.0) * groups..][..ROWS * groups].as_ptr();
    let offsets = RowOffsets::new(groups * size_of::<u32>());
    let row_scales = &block.rows.scales[block.first_row + first.0..][..ROWS];
    let start: [_; PANELS] = std::array::from_fn(|p| match corrections {
        // SAFETY: the slice holds LANES values of each panel.
        Some(corrections) => unsafe {
            let corrections = _mm512_loadu_si512(corrections.as_ptr().add((first.1 + p) * LANES).cast());
            _mm512_sub_epi32(_mm512_setzero_si512(), corrections)
        },
        None => _mm512_setzero_si512(),
    });
    let mut sums = [start; ROWS];
    for group in 0..groups {
        if ROWS > TILE_ROWS {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(group * AHEAD));
        }
        let mut panels = [_mm512_setzero_si512(); PANELS];
        for (p, panel) in panels.iter_mut().enumerate() {
            let vector = values.wrapping_add(block.strides.at(first.1 + p, group) * LANES * QUAD);
            if ROWS < TILE_ROWS {
                _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_add(ON));
            }
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            *panel = unsafe { _mm512_loadu_si512(vector.cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `words` holds ROWS * groups words.
            let word = unsafe { _mm512_set1_epi32(offsets.read(words.add(group), r) as i32) };
            for (sum, panel) in sums.iter_mut().zip(panels) {
                *sum = _mm512_dpbusd_epi32(*sum, word, panel);
            }
        }
    }
    for p in 0..PANELS {
        // SAFETY: the slices hold LANES values of each panel; the rows are the block's.
        unsafe {
            let scale = _mm512_loadu_ps(scales.as_ptr().add((first.1 + p) * LANES));
            let column = Column::new(out, first.0, first.1 + p);
            for (r, sums) in sums.iter().enumerate() {
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r]));
                column.store(r, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[p]), scale));
            }
        }
    }
}
