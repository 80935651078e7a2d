//! bf16, with the instruction for it and without.

use std::arch::x86_64::*;

use half::bf16;

use super::tile::{Column, RowOffsets, TALL_PANELS, TALL_ROWS, TILE_ROWS, dispatch};
use crate::kernels::layout::{LANES, PAIR};
use crate::kernels::math;
use crate::kernels::product::{Block, Out};
use crate::kernels::scratch::scratch;

/// How far on a few rows fetch, in bytes: they read faster than the processor's own prefetching,
/// which ends with a page of 4 KiB. Two panels of keys with 64 numbers are 4 KiB; 2 KiB were slower
/// there and the same for weights, 8 KiB the same.
const ON: usize = 4096;

/// # Safety
/// The processor has AVX-512 F, BW and BF16. `values` starts at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::kernels) unsafe fn bf16_block(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
    assert!(values.len() >= block.vectors() * LANES * PAIR);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        // SAFETY: as this function; the tile lies in the block.
        unsafe {
            dispatch!(bf16_tile, [1 2 3 4 5 6] [1 2 3 4], (rows, block.panel_count), (values.as_ptr(), block, row, out))
        };
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
    out: &mut Out<'_>,
) {
    let groups = block.rows.groups;
    let words = block.rows.words[(block.first_row + row) * groups..][..ROWS * groups].as_ptr();
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for group in 0..groups {
        let mut panels = [_mm512_setzero_si512(); PANELS];
        for (p, panel) in panels.iter_mut().enumerate() {
            let vector = values.wrapping_add(block.strides.at(p, group) * LANES * PAIR);
            if ROWS < TILE_ROWS {
                _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_byte_add(ON).cast());
            }
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            *panel = unsafe { _mm512_loadu_si512(vector.cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `words` holds ROWS * groups words.
            let word = unsafe { _mm512_set1_epi32(*words.add(r * groups + group) as i32) };
            for (sum, panel) in sums.iter_mut().zip(panels) {
                *sum = _mm512_dpbf16_ps(*sum, as_bf16(panel), as_bf16(word));
            }
        }
    }
    for p in 0..PANELS {
        // SAFETY: rows and panel are the block's.
        unsafe {
            let column = Column::new(out, row, p);
            for (r, sums) in sums.iter().enumerate() {
                column.store(r, sums[p]);
            }
        }
    }
}

/// [`bf16_block`] without its instruction: bf16 is the upper half of f32.
///
/// # Safety
/// The processor has AVX-512 F and BW. `values` starts at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernels) unsafe fn bf16_block_in_f32(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
    assert!(values.len() >= block.vectors() * LANES * PAIR);
    let groups = block.rows.groups;
    for row in (0..block.row_count).step_by(TALL_ROWS) {
        let rows = TALL_ROWS.min(block.row_count - row);
        let words = &block.rows.words[(block.first_row + row) * groups..][..rows * groups];
        scratch(words.len() * PAIR, |numbers| {
            for (numbers, words) in numbers.chunks_exact_mut(groups * PAIR).zip(words.chunks_exact(groups)) {
                let (low, high) = numbers.split_at_mut(groups);
                low.iter_mut().zip(words).for_each(|(x, &word)| *x = math::low_half(word));
                high.iter_mut().zip(words).for_each(|(x, &word)| *x = math::high_half(word));
            }
            for panel in (0..block.panel_count).step_by(TALL_PANELS) {
                let panels = TALL_PANELS.min(block.panel_count - panel);
                // SAFETY: as this function; the tile lies in the block, and has as many numbers.
                unsafe {
                    dispatch!(
                        f32_tile,
                        [1 2 3 4 5 6 7 8 9 10 11 12] [1 2],
                        (rows, panels),
                        (values.as_ptr(), numbers, block, (row, panel), out)
                    );
                }
            }
        });
    }
}

/// # Safety
/// As [`bf16_block_in_f32`]; the block has `ROWS` rows and `PANELS` panels from `first` on.
/// `numbers` are the rows' lower halves and upper halves, in turn.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn f32_tile<const ROWS: usize, const PANELS: usize>(
    values: *const bf16,
    numbers: &[f32],
    block: &Block<'_>,
    first: (usize, usize),
    out: &mut Out<'_>,
) {
    let groups = block.rows.groups;
    assert!(numbers.len() == ROWS * groups * PAIR);
    let numbers = numbers.as_ptr();
    let offsets = RowOffsets::new(PAIR * groups * size_of::<f32>());
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for group in 0..groups {
        let pairs: [_; PANELS] = std::array::from_fn(|p| {
            let vector = values.wrapping_add(block.strides.at(first.1 + p, group) * LANES * PAIR);
            if ROWS < TILE_ROWS {
                _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_byte_add(ON).cast());
            }
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            unsafe { _mm512_loadu_si512(vector.cast()) }
        });
        for half in 0..PAIR {
            let panels = pairs.map(|pair| {
                _mm512_castsi512_ps(if half == 0 {
                    _mm512_slli_epi32::<16>(pair)
                } else {
                    _mm512_and_si512(pair, upper)
                })
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: each row has `groups` numbers of either half.
                let x = _mm512_set1_ps(unsafe { offsets.read(numbers.add(half * groups + group), r) });
                for (sum, panel) in sums.iter_mut().zip(panels) {
                    *sum = _mm512_fmadd_ps(x, panel, *sum);
                }
            }
        }
    }
    for p in 0..PANELS {
        // SAFETY: rows and panel are the block's.
        unsafe {
            let column = Column::new(out, first.0, first.1 + p);
            for (r, sums) in sums.iter().enumerate() {
                column.store(r, sums[p]);
            }
        }
    }
}
