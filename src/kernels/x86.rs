//! AVX-512's products: a tile of rows and panels is held in registers while the inputs stream by.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::block::{BLOCK, BLOCK_BYTES, Block, INT4_OFFSET, LANES, Out, PAIR, QUAD};
use super::math;
use super::rows::scratch;

/// Rows of a register tile: 6 rows by 4 panels are 24 accumulators of the 32 registers.
const TILE_ROWS: usize = 6;

/// Rows of a tile of bf16 in f32, by 2 panels: what is read of a panel has to be taken apart, and more rows share that.
const TALL_ROWS: usize = 12;
const TALL_PANELS: usize = 2;

/// Calls `$kernel::<ROWS, PANELS>` for the constants out of the lists that `$rows` and `$panels` are.
macro_rules! dispatch {
    ($kernel:ident, [$($count:literal)*] $list:tt, ($rows:expr, $panels:expr), $arguments:tt) => {
        match $rows {
            $($count => dispatch!(@panels $kernel, $count, $list, $panels, $arguments),)*
            rows => unreachable!("{rows} rows of a tile"),
        }
    };
    (@panels $kernel:ident, $rows:literal, [$($count:literal)*], $panels:expr, $arguments:tt) => {
        match $panels {
            $($count => $kernel::<$rows, $count> $arguments,)*
            panels => unreachable!("{panels} panels of a tile"),
        }
    };
}

pub(super) use dispatch;

/// # Safety
/// The processor has AVX-512 F, BW and BF16. `values` starts at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn bf16_block(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
    assert!(values.len() >= block.vectors() * LANES * PAIR);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        // SAFETY: as this function; the tile lies in the block.
        unsafe {
            dispatch!(bf16_tile, [1 2 3 4 5 6] [1 2 3 4], (rows, block.panel_count), (values.as_ptr(), block, row, out))
        };
    }
}

/// Where a panel's results go.
struct Column {
    start: *mut f32,
    stride: usize,
    /// The lanes that have columns.
    mask: __mmask16,
    bias: __m512,
    add: bool,
}

impl Column {
    /// # Safety
    /// The processor has AVX-512 F; the block has this row and this panel.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn new(out: &mut Out<'_>, row: usize, panel: usize) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let (start, lanes) = out.lanes(row, panel);
            let mask = ((1u32 << lanes) - 1) as __mmask16;
            Self { start, stride: out.stride(), mask, bias: _mm512_loadu_ps(out.bias(panel)), add: out.add }
        }
    }

    /// Stores or adds as many lanes as there are columns.
    ///
    /// # Safety
    /// The processor has AVX-512 F; the block has as many rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, row: usize, values: __m512) {
        let values = _mm512_add_ps(values, self.bias);
        // SAFETY: as the caller promises; the mask leaves out what is not the block's.
        unsafe {
            let at = self.start.add(row * self.stride);
            let values = if self.add { _mm512_add_ps(values, _mm512_maskz_loadu_ps(self.mask, at)) } else { values };
            _mm512_mask_storeu_ps(at, self.mask, values);
        }
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
pub(super) unsafe fn bf16_block_in_f32(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
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
/// As [`bf16_block_in_f32`]; the block has `ROWS` rows and `PANELS` panels from `first` on. `numbers` are the rows' lower halves and upper
/// halves, in turn.
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
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for group in 0..groups {
        // SAFETY: the block's panels lie in the slice, as the caller has checked.
        let pairs: [_; PANELS] = std::array::from_fn(|p| unsafe {
            _mm512_loadu_si512(values.add(block.strides.at(first.1 + p, group) * LANES * PAIR).cast())
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
                let x = _mm512_set1_ps(unsafe { *numbers.get_unchecked((r * PAIR + half) * groups + group) });
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

/// Bytes that a tall tile of int8 fetches for each group: half a line, so that a block of a few dozen rows fetches as much as it has
/// itself. Fewer rows read faster than that.
const AHEAD: usize = 32;

/// How far on in a panel a single row fetches, in bytes: the processor's own prefetching ends with a page of 4 KiB, and a panel has two or
/// three. From 1 to 4 KiB did, 2 did best.
const ON: usize = 2048;

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values`, `scales` and `corrections` start at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn int8_block(
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
    let tile_rows = block.row_count.div_ceil(block.row_count.div_ceil(TALL_ROWS));
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
            if ROWS == 1 {
                _mm_prefetch::<_MM_HINT_T0>(vector.wrapping_add(ON));
            }
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            *panel = unsafe { _mm512_loadu_si512(vector.cast()) };
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `words` holds ROWS * groups words.
            let word = unsafe { _mm512_set1_epi32(*words.add(r * groups + group) as i32) };
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

/// # Safety
/// The processor has AVX-512 F, BW and VNNI. `values` and `scales` start at the block's first panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn int4_block(values: &[u8], scales: &[f16], block: &Block<'_>, out: &mut Out<'_>) {
    let blocks = block.panel_count * block.rows.blocks();
    assert!(values.len() >= blocks * BLOCK_BYTES && scales.len() >= blocks * LANES);
    for row in (0..block.row_count).step_by(TILE_ROWS) {
        let rows = TILE_ROWS.min(block.row_count - row);
        for panel in (0..block.panel_count).step_by(INT4_PANELS) {
            let panels = INT4_PANELS.min(block.panel_count - panel);
            // SAFETY: as this function; the tile lies in the block.
            unsafe {
                dispatch!(int4_tile, [1 2 3 4 5 6] [1 2], (rows, panels), (values, scales, block, (row, panel), out))
            };
        }
    }
}

/// Panels of a register tile in int4: the sums of a block's integers and the sums of all blocks share the registers.
const INT4_PANELS: usize = 2;

/// # Safety
/// As [`int4_block`]; the block has `ROWS` rows and `PANELS` panels from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn int4_tile<const ROWS: usize, const PANELS: usize>(
    values: &[u8],
    scales: &[f16],
    block: &Block<'_>,
    first: (usize, usize),
    out: &mut Out<'_>,
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
                let vector = values.as_ptr().wrapping_add(at * BLOCK_BYTES + vector * VECTOR);
                if ROWS == 1 {
                    _mm_prefetch::<_MM_HINT_T0>(vector.wrapping_add(ON).cast());
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
