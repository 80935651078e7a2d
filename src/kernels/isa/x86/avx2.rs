//! AVX2 kernels: what one instruction of AVX-512 does, put together from several; a panel's vector
//! is two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::kernels::layout::{BLOCK, High, Known, LANES, OFFSET, PAIR, QUAD};
use crate::kernels::math;
use crate::kernels::product::{Block, Out};

/// How far on few rows fetch, in bytes; as AVX-512's tiles in bf16.
const ON: usize = 4096;

/// Lanes of a register.
const HALF: usize = LANES / 2;

/// Rows of a register tile: 6 rows by a panel are 12 accumulators of the 16 registers; two hold the
/// weights, one an activation.
const TILE_ROWS: usize = 6;

/// The same where a product takes more registers on its way.
const SMALL_TILE_ROWS: usize = 4;

/// What an exclusive or takes off the bytes of a word that is offset.
const OFFSETS: u32 = u32::from_ne_bytes([OFFSET as u8; QUAD]);

/// Calls `$kernel::<ROWS, PANELS>` for all tiles of a block, with a tile's activations as
/// `$activations` makes them of its rows. The fewer rows a tile has, the more panels, so that
/// enough accumulators are under way.
macro_rules! tiles {
    ($kernel:ident, $tile_rows:expr, $block:expr, $activations:expr, $($argument:expr),*) => {
        for row in (0..$block.row_count).step_by($tile_rows) {
            let rows = $tile_rows.min($block.row_count - row);
            let activations = $activations(row, rows);
            let mut panel = 0;
            while panel < $block.panel_count {
                panel += match (rows, $block.panel_count - panel) {
                    (1, 4..) => { $kernel::<1, 4>($block, row, panel, activations, $($argument),*); 4 }
                    (1, _) => { $kernel::<1, 1>($block, row, panel, activations, $($argument),*); 1 }
                    (2, 2..) => { $kernel::<2, 2>($block, row, panel, activations, $($argument),*); 2 }
                    (2, _) => { $kernel::<2, 1>($block, row, panel, activations, $($argument),*); 1 }
                    (3, _) => { $kernel::<3, 1>($block, row, panel, activations, $($argument),*); 1 }
                    (4, _) => { $kernel::<4, 1>($block, row, panel, activations, $($argument),*); 1 }
                    (5, _) => { $kernel::<5, 1>($block, row, panel, activations, $($argument),*); 1 }
                    (_, _) => { $kernel::<6, 1>($block, row, panel, activations, $($argument),*); 1 }
                }
            }
        }
    };
}

/// Stores or adds as many lanes of a panel's two registers as the result has columns there.
///
/// # Safety
/// The processor has AVX2; the block has this row and this panel.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store(out: &mut Out<'_>, row: usize, panel: usize, values: [__m256; 2]) {
    // SAFETY: as the caller promises.
    let (at, lanes) = unsafe { out.lanes(row, panel) };
    let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (half, values) in values.into_iter().enumerate() {
        let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32 - (half * HALF) as i32), numbers);
        let at = at.wrapping_add(half * HALF);
        // SAFETY: the mask leaves out what is not the block's.
        unsafe {
            let values = _mm256_add_ps(values, _mm256_loadu_ps(out.bias(row, panel).add(half * HALF)));
            let values = if out.adds(row) { _mm256_add_ps(values, _mm256_maskload_ps(at, mask)) } else { values };
            _mm256_maskstore_ps(at, mask, values);
        }
    }
}

/// A panel's vector, of a tile of ROWS rows: few of them read faster than the processor fetches on
/// its own.
///
/// # Safety
/// The processor has AVX2; 64 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const ROWS: usize>(vector: *const u8) -> [__m256i; 2] {
    if ROWS < SMALL_TILE_ROWS {
        _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_add(ON).cast());
    }
    // SAFETY: as the caller promises.
    unsafe { [_mm256_loadu_si256(vector.cast()), _mm256_loadu_si256(vector.add(32).cast())] }
}

/// # Safety
/// The processor has AVX2 and FMA. `values` starts at the block's first panel.
#[target_feature(enable = "avx2,fma")]
pub(in crate::kernels) unsafe fn bf16_block(values: &[bf16], block: &Block<'_>, out: &mut Out<'_>) {
    assert!(values.len() >= block.vectors() * LANES * PAIR);
    let groups = block.rows.groups;
    // A tile's activations as floats, which one instruction loads into all lanes.
    let mut floats = vec![0.0; TILE_ROWS.min(block.row_count) * groups * PAIR];
    let mut widen = |row: usize, rows: usize| {
        let words = &block.rows.words[(block.first_row + row) * groups..][..rows * groups];
        for (pair, &word) in floats.chunks_exact_mut(PAIR).zip(words) {
            (pair[0], pair[1]) = (math::low_half(word), math::high_half(word));
        }
        floats.as_ptr()
    };
    // SAFETY: as this function; the tiles lie in the block, and their rows in `floats`.
    unsafe { tiles!(bf16_tile, TILE_ROWS, block, widen, values.as_ptr(), out) };
}

/// # Safety
/// As [`bf16_block`]; the block has `ROWS` rows from `row` on, which `floats` holds, and `PANELS`
/// panels from `panel` on.
#[target_feature(enable = "avx2,fma")]
unsafe fn bf16_tile<const ROWS: usize, const PANELS: usize>(
    block: &Block<'_>,
    row: usize,
    panel: usize,
    floats: *const f32,
    values: *const bf16,
    out: &mut Out<'_>,
) {
    let groups = block.rows.groups;
    let high_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    let mut sums = [[[_mm256_setzero_ps(); 2]; PANELS]; ROWS];
    for group in 0..groups {
        for p in 0..PANELS {
            // SAFETY: the block's panels lie in the slice, as the caller has checked.
            let pairs = unsafe { load::<ROWS>(values.add(block.strides.at(panel + p, group) * LANES * PAIR).cast()) };
            let low = pairs.map(|x| _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)));
            let high = pairs.map(|x| _mm256_castsi256_ps(_mm256_and_si256(x, high_half)));
            for (i, weights) in [low, high].into_iter().enumerate() {
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `floats` holds ROWS * groups pairs.
                    let x = unsafe { _mm256_broadcast_ss(&*floats.add((r * groups + group) * PAIR + i)) };
                    sums[p][0] = _mm256_fmadd_ps(weights[0], x, sums[p][0]);
                    sums[p][1] = _mm256_fmadd_ps(weights[1], x, sums[p][1]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            // SAFETY: row and panel are the block's.
            unsafe { store(out, row + r, panel + p, *sums) };
        }
    }
}

/// An int8 block and its tiles, for the processors that have `$features`. `$step` adds the products
/// of a word of activations and a panel's vector; `$offset` is what it wants to be added to the
/// activations, OFFSET or 0.
macro_rules! int8 {
    ($block:ident, $tile:ident, $tile_rows:expr, $features:literal, $offset:expr, $step:ident) => {
        /// # Safety
        /// The processor has these features. `values`, `scales` and `corrections` start at the
        /// block's first panel.
        #[target_feature(enable = $features)]
        pub(in crate::kernels) unsafe fn $block(
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
            let groups = block.rows.groups;
            // A tile's activations, with the offset that `$step` wants, so that one instruction
            // loads them into all lanes.
            let mut shifted = vec![0; if $offset == 0 { $tile_rows.min(block.row_count) * groups } else { 0 }];
            let mut words = |row: usize, rows: usize| {
                let words = &block.rows.words[(block.first_row + row) * groups..][..rows * groups];
                if $offset != 0 {
                    return words.as_ptr();
                }
                shifted.iter_mut().zip(words).for_each(|(shifted, word)| *shifted = word ^ OFFSETS);
                shifted.as_ptr()
            };
            // SAFETY: as this function; the tiles lie in the block.
            unsafe { tiles!($tile, $tile_rows, block, words, values.as_ptr(), scales, corrections, out) };
        }

        /// # Safety
        /// As the block's function; the block has `ROWS` rows from `row` on, which `words` holds,
        /// and `PANELS` panels from `panel` on.
        #[target_feature(enable = $features)]
        #[expect(clippy::too_many_arguments)]
        unsafe fn $tile<const ROWS: usize, const PANELS: usize>(
            block: &Block<'_>,
            row: usize,
            panel: usize,
            words: *const u32,
            values: *const i8,
            scales: &[f32],
            corrections: Option<&[i32]>,
            out: &mut Out<'_>,
        ) {
            let groups = block.rows.groups;
            let row_scales = &block.rows.scales[block.first_row + row..][..ROWS];
            let mut sums = [[[_mm256_setzero_si256(); 2]; PANELS]; ROWS];
            for group in 0..groups {
                for p in 0..PANELS {
                    // SAFETY: the block's panels lie in the slice, as the caller has checked.
                    let weights =
                        unsafe { load::<ROWS>(values.add(block.strides.at(panel + p, group) * LANES * QUAD).cast()) };
                    for (r, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: `words` holds ROWS * groups words.
                        let word = unsafe { *words.add(r * groups + group) };
                        sums[p] = $step(sums[p], _mm256_set1_epi32(word as i32), weights);
                    }
                }
            }
            // What is too much in a panel's sums.
            let mut excess = [[_mm256_setzero_si256(); 2]; PANELS];
            for (p, excess) in excess.iter_mut().enumerate() {
                match corrections {
                    Some(corrections) if $offset != 0 => {
                        // SAFETY: the slice holds LANES values of each panel.
                        let halves = unsafe { corrections.as_ptr().add((panel + p) * LANES).cast::<__m256i>() };
                        // SAFETY: as above.
                        *excess = unsafe { [_mm256_loadu_si256(halves), _mm256_loadu_si256(halves.add(1))] };
                    }
                    None if $offset == 0 => {
                        // Activations without offset lack it here, where it has been taken off all:
                        // in two steps, for it is no signed byte.
                        let minus_half = _mm256_set1_epi8((-OFFSET / 2) as i8);
                        for group in (0..groups).chain(0..groups) {
                            let at = block.strides.at(panel + p, group) * LANES * QUAD;
                            // SAFETY: the block's panels lie in the slice, as the caller has
                            // checked.
                            *excess = $step(*excess, minus_half, unsafe { load::<TILE_ROWS>(values.add(at).cast()) });
                        }
                    }
                    _ => {}
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (p, sums) in sums.iter().enumerate() {
                    let half = |h: usize| {
                        // SAFETY: the slice holds LANES values of each panel.
                        let scale = unsafe { _mm256_loadu_ps(scales.as_ptr().add((panel + p) * LANES + h * HALF)) };
                        let sum = _mm256_sub_epi32(sums[h], excess[p][h]);
                        _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, _mm256_set1_ps(row_scales[r])))
                    };
                    // SAFETY: row and panel are the block's.
                    unsafe { store(out, row + r, panel + p, [half(0), half(1)]) };
                }
            }
        }
    };
}

int8!(int8_block, int8_tile, SMALL_TILE_ROWS, "avx2", 0, step_in_pairs);
int8!(int8_vnni_block, int8_vnni_tile, TILE_ROWS, "avx2,avxvnni", OFFSET, step_vnni);

/// Products are added in 16 bits first, where two of 7 bits and sign fit, but not of 8 bits: so the
/// activations come without offset, and give their sign to the weights.
#[inline]
#[target_feature(enable = "avx2")]
fn step_in_pairs(sums: [__m256i; 2], word: __m256i, weights: [__m256i; 2]) -> [__m256i; 2] {
    let magnitude = _mm256_abs_epi8(word);
    let step = |sum, weights| {
        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights, word));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    };
    [step(sums[0], weights[0]), step(sums[1], weights[1])]
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn step_vnni(sums: [__m256i; 2], word: __m256i, weights: [__m256i; 2]) -> [__m256i; 2] {
    let step = |sum, weights| _mm256_dpbusd_avx_epi32(sum, word, weights);
    [step(sums[0], weights[0]), step(sums[1], weights[1])]
}

/// Rows of a register tile in int4, whose sums are of 16 bits within a block of weights, and floats
/// beyond it.
const INT4_TILE_ROWS: usize = 2;

/// # Safety
/// The processor has AVX2, FMA and F16C. `values` and `scales` start at the block's first panel.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernels) unsafe fn int4_block(
    (values, high): (&[u8], High),
    scales: &[f16],
    block: &Block<'_>,
    out: &mut Out<'_>,
) {
    let blocks = block.panel_count * block.rows.blocks();
    assert!(values.len() >= blocks * high.block_bytes() && scales.len() >= blocks * LANES);
    let first = |row, _| block.first_row + row;
    // SAFETY: as this function; the tiles lie in the block.
    unsafe {
        match high.bits() {
            0 => tiles!(int4_tile, INT4_TILE_ROWS, block, first, values, [(); 0], scales, out),
            1 => tiles!(int4_tile, INT4_TILE_ROWS, block, first, values, [(); 1], scales, out),
            _ => tiles!(int4_tile, INT4_TILE_ROWS, block, first, values, [(); 2], scales, out),
        }
    }
}

/// # Safety
/// As [`int4_block`]; the block has `ROWS` rows from `row` on, the first of them being `first` of
/// all rows, and `PANELS` panels from
/// `panel` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[expect(clippy::too_many_arguments)]
unsafe fn int4_tile<const ROWS: usize, const PANELS: usize>(
    block: &Block<'_>,
    row: usize,
    panel: usize,
    first: usize,
    values: &[u8],
    known: impl Known,
    scales: &[f16],
    out: &mut Out<'_>,
) {
    let (blocks, groups) = (block.rows.blocks(), block.rows.groups);
    let rows: [_; ROWS] = std::array::from_fn(|r| block.rows.int4_row(first + r));
    let high = known.high();
    let low = _mm256_set1_epi8(0xf);
    let beyond = _mm256_set1_epi8(high.mask() as i8);
    let mut results = [[[_mm256_setzero_ps(); 2]; PANELS]; ROWS];
    for b in 0..blocks {
        #[expect(clippy::needless_range_loop)]
        for p in 0..PANELS {
            let at = (panel + p) * blocks + b;
            // Twice 8 products of 4 and 7 bits and a sign fit 16 bits, or 4 of 5 bits, or 2 of 6.
            let at_once = (BLOCK / QUAD) >> high.bits();
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            let mut wide = [[_mm256_setzero_si256(); 2]; ROWS];
            let mut others = [_mm256_setzero_si256(); 2];
            let first_group = b * (BLOCK / QUAD);
            for group in first_group..groups.min(first_group + BLOCK / QUAD) {
                let in_block = group - first_group;
                if in_block > 0 && in_block.is_multiple_of(at_once) {
                    for (wide, sums) in wide.iter_mut().zip(&mut sums) {
                        for (wide, sum) in wide.iter_mut().zip(sums) {
                            *wide = _mm256_add_epi32(*wide, _mm256_madd_epi16(*sum, _mm256_set1_epi16(1)));
                            *sum = _mm256_setzero_si256();
                        }
                    }
                }
                let start = at * high.block_bytes();
                let vector = start + in_block / 2 * LANES * QUAD;
                // SAFETY: the block's panels lie in the slice, as the caller has checked.
                let pair = unsafe { load::<ROWS>(values.as_ptr().add(vector)) };
                let shifted = if group % 2 == 0 { pair } else { pair.map(|x| _mm256_srli_epi16(x, 4)) };
                let mut weights = shifted.map(|x| _mm256_and_si256(x, low));
                if high.bits() > 0 {
                    let (place, shift) = high.place(in_block);
                    // As in AVX-512's tile.
                    if shift % 4 == 0 {
                        // SAFETY: as above.
                        let bits = unsafe { load::<ROWS>(values.as_ptr().add(start + place)) };
                        others = if shift == 0 { bits.map(|x| _mm256_slli_epi16(x, 4)) } else { bits };
                    }
                    for (weights, others) in weights.iter_mut().zip(&mut others) {
                        *weights = _mm256_or_si256(*weights, _mm256_and_si256(*others, beyond));
                        *others = _mm256_srl_epi16(*others, _mm_cvtsi32_si128(high.bits() as i32));
                    }
                }
                for (sums, row) in sums.iter_mut().zip(&rows) {
                    let word = _mm256_set1_epi32(row.0[group] as i32);
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(weights, word));
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let offset = _mm256_set1_epi32(-high.offset() * rows[r].1[b]);
                for (half, sum) in sums.iter().enumerate() {
                    // SAFETY: the slice holds the block's scales, as the caller has checked.
                    let scale = unsafe { _mm_loadu_si128(scales.as_ptr().add(at * LANES + half * HALF).cast()) };
                    let sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
                    let sum = _mm256_add_epi32(_mm256_add_epi32(sum, wide[r][half]), offset);
                    results[r][p][half] =
                        _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_cvtph_ps(scale), results[r][p][half]);
                }
            }
        }
    }
    for (r, results) in results.iter().enumerate() {
        let scale = _mm256_set1_ps(block.rows.scales[first + r]);
        for (p, result) in results.iter().enumerate() {
            // SAFETY: row and panel are the block's.
            unsafe { store(out, row + r, panel + p, result.map(|x| _mm256_mul_ps(x, scale))) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;
    use crate::kernels::isa::product;
    use crate::kernels::isa::tests::int8_product;
    use crate::kernels::product::Panels;

    // AVX-VNNI's instruction in the encoding of AVX-512: the tile of processors with AVX-VNNI,
    // where there is none.
    int8!(int8_evex_block, int8_evex_tile, TILE_ROWS, "avx2,avx512vnni,avx512vl", OFFSET, step_evex);

    #[inline]
    #[target_feature(enable = "avx2,avx512vnni,avx512vl")]
    fn step_evex(sums: [__m256i; 2], word: __m256i, weights: [__m256i; 2]) -> [__m256i; 2] {
        let step = |sum, weights| _mm256_dpbusd_epi32(sum, word, weights);
        [step(sums[0], weights[0]), step(sums[1], weights[1])]
    }

    #[test]
    fn the_tile_of_avx_vnni_is_the_portable_one() {
        if !Cpu::available().contains(&Cpu::Avx512) {
            return;
        }
        for (rows, panels) in (1..=7).flat_map(|rows| (1..=4).map(move |panels| (rows, panels))) {
            // SAFETY: AVX-512's set has these features.
            let evex = |values: &[i8],
                        scales: &[f32],
                        corrections: Option<&[i32]>,
                        block: &Block<'_>,
                        out: &mut Out<'_>| unsafe {
                int8_evex_block(values, scales, corrections, block, out);
            };
            let ours = int8_product(rows, panels, |block, out| match block.panels {
                Panels::Int8 { values, scales, corrections } => evex(values, scales, corrections, block, out),
                _ => unreachable!(),
            });
            assert_eq!(ours, int8_product(rows, panels, |block, out| product(block, out, Cpu::Portable)));
        }
    }
}
