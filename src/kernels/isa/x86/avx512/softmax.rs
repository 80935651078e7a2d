//! Scores in 16 bits and what they weigh, in AVX-512, for attention in 8 bits.
//!
//! A score is a whole number of levels, [`OCTAVE`] to a doubling of its weight, which rounds off
//! 1.1 % of a weight at most. 32 scores fit a register then, and a weight is a number of a table,
//! shifted.

use std::arch::x86_64::*;

use super::tile::{ON, RowOffsets, TALL_PANELS, TILE_ROWS, dispatch, even_rows};
use crate::kernels::cpu::Cpu;
#[cfg(target_os = "linux")]
use crate::kernels::isa::x86::amx;
#[cfg(target_os = "linux")]
use crate::kernels::layout::Strides;
use crate::kernels::layout::{LANES, OCTAVE, QUAD};
use crate::kernels::math;
use crate::kernels::rows::Rows;

/// Positions of a vector of weights. Blocks of positions are multiples of it.
pub(in crate::kernels) const VECTOR: usize = LANES * QUAD;

/// Bytes that a tile of scores fetches of what is wanted after them, and of a cache line.
const AHEAD: usize = 512;
const LINE: usize = 64;

/// Of 8 bits, which are the upper ones of 16: the lower ones say how to round.
const POWERS: [u16; OCTAVE] = powers(255 << 8);
/// Of 16 bits: nothing is rounded, a unit is little.
const FINE_POWERS: [u16; OCTAVE] = powers(65535);

/// Weights as numbers of a table that are shifted: `one` times 2 to the power of minus each level of
/// an octave.
const fn powers(one: u16) -> [u16; OCTAVE] {
    // 2^(-1/32), whose powers stay as exact as f64 is.
    const STEP: f64 = 0.978_572_062_087_700_1;
    let (mut numbers, mut power, mut level) = ([0; OCTAVE], one as f64, 0);
    while level < OCTAVE {
        numbers[level] = (power + 0.5) as u16;
        power *= STEP;
        level += 1;
    }
    numbers
}

/// [`math::dither`] of vectors of positions, in the order of scores.
const DITHERS: [[[u16; OCTAVE]; 2]; math::DITHERED / VECTOR] = {
    let (mut all, mut at) = ([[[0; OCTAVE]; 2]; math::DITHERED / VECTOR], 0);
    while at < math::DITHERED {
        let (vector, half, number) = (at / VECTOR, at / OCTAVE % 2, at % OCTAVE);
        let position = (2 * half + number / 4 % 2) * LANES + number / 8 * 4 + number % 4;
        all[vector][half][number] = math::dither(vector * VECTOR + position) as u16;
        at += 1;
    }
    all
};

/// Keys of a block of positions: [position panels, groups] vectors, and for each position what its
/// sums have to be multiplied by, and what is taken off them.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Keys<'a> {
    pub(in crate::kernels) values: &'a [i8],
    pub(in crate::kernels) scales: &'a [f32],
    pub(in crate::kernels) corrections: &'a [i32],
    /// A multiple of VECTOR.
    pub(in crate::kernels) positions: usize,
}

/// Scores of `queries` with `keys` [rows, positions], panels of a pair in turn, as packing two
/// registers leaves them. Those beyond the i16 are its ends. `ahead` is fetched meanwhile, but not
/// by AMX.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI, and what `cpu` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::kernels) unsafe fn scores(queries: &Rows, keys: Keys<'_>, out: &mut [i16], ahead: &[u8], cpu: Cpu) {
    let (rows, groups, positions) = (queries.count(), queries.groups, keys.positions);
    assert!(positions.is_multiple_of(VECTOR) && out.len() == rows * positions);
    assert!(keys.values.len() >= positions * groups * QUAD);
    assert!(keys.scales.len() >= positions && keys.corrections.len() >= positions);
    assert!(queries.words.len() >= rows * groups && queries.scales.len() >= rows);
    #[cfg(not(target_os = "linux"))]
    let _ = cpu;
    #[cfg(target_os = "linux")]
    if cpu == Cpu::Amx && rows > TILE_ROWS {
        // SAFETY: as this function; the slices are as long as said.
        return unsafe { scores_in_tiles(queries, keys, out) };
    }
    let tile_rows = even_rows(rows);
    let mut pieces = ahead.chunks(AHEAD);
    for row in (0..rows).step_by(tile_rows) {
        let count = tile_rows.min(rows - row);
        for position in (0..positions).step_by(TALL_PANELS * LANES) {
            for line in pieces.next().unwrap_or_default().chunks(LINE) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
            // SAFETY: as this function; rows and positions are there.
            unsafe {
                dispatch!(
                    tile,
                    [1 2 3 4 5 6 7 8 9 10 11 12] [2],
                    (count, TALL_PANELS),
                    (queries, row, keys, position, out.as_mut_ptr().add(row * positions + position))
                );
            }
        }
    }
}

/// # Safety
/// As [`scores`]; there are `ROWS` rows from `row` on, and `PANELS` panels of positions from
/// `position` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile<const ROWS: usize, const PANELS: usize>(
    queries: &Rows,
    row: usize,
    keys: Keys<'_>,
    position: usize,
    out: *mut i16,
) {
    let groups = queries.groups;
    // SAFETY: the caller has checked that all of it is there.
    unsafe {
        let words = queries.words.as_ptr().add(row * groups);
        let offsets = RowOffsets::new(groups * size_of::<u32>());
        let vectors = keys.values.as_ptr().add(position * groups * QUAD);
        let start: [_; PANELS] = std::array::from_fn(|p| {
            let corrections = _mm512_loadu_si512(keys.corrections.as_ptr().add(position + p * LANES).cast());
            _mm512_sub_epi32(_mm512_setzero_si512(), corrections)
        });
        let mut sums = [start; ROWS];
        for group in 0..groups {
            let panels: [_; PANELS] = std::array::from_fn(|p| {
                let vector = vectors.add((p * groups + group) * LANES * QUAD);
                if ROWS < TILE_ROWS {
                    _mm_prefetch::<_MM_HINT_T1>(vector.wrapping_add(ON));
                }
                _mm512_loadu_si512(vector.cast())
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let word = _mm512_set1_epi32(offsets.read(words.add(group), r) as i32);
                for (sum, panel) in sums.iter_mut().zip(panels) {
                    *sum = _mm512_dpbusd_epi32(*sum, word, panel);
                }
            }
        }
        let scales: [_; PANELS] =
            std::array::from_fn(|p| _mm512_loadu_ps(keys.scales.as_ptr().add(position + p * LANES)));
        for (r, sums) in sums.iter().enumerate() {
            let scale = _mm512_set1_ps(*queries.scales.as_ptr().add(row + r));
            let levels: [_; PANELS] = std::array::from_fn(|p| {
                let score = _mm512_cvtepi32_ps(sums[p]);
                _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(score, scale), scales[p]))
            });
            _mm512_storeu_si512(out.add(r * keys.positions).cast(), _mm512_packs_epi32(levels[0], levels[1]));
        }
    }
}

/// [`scores`] in AMX.
///
/// # Safety
/// As [`scores`], which has checked the slices; the processor has AMX, and the process may use it.
/// There are two rows at least.
#[cfg(target_os = "linux")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn scores_in_tiles(queries: &Rows, keys: Keys<'_>, out: &mut [i16]) {
    let (rows, groups, positions) = (queries.count(), queries.groups, keys.positions);
    let inputs = amx::Inputs {
        words: &queries.words,
        groups,
        rows,
        vectors: amx::vectors(keys.values, QUAD),
        panels: positions / LANES,
        strides: Strides { panel: groups, group: 1 },
    };
    // SAFETY: as this function; there are as many numbers of all positions, whose panels are even.
    unsafe {
        amx::multiply(amx::Numbers::Bytes, &inputs, |place, sums| {
            let position = place.panel * LANES;
            let [low, high] = [position, position + LANES];
            let scales = [low, high].map(|at| _mm512_loadu_ps(keys.scales.as_ptr().add(at)));
            let corrections = [low, high].map(|at| _mm512_loadu_si512(keys.corrections.as_ptr().add(at).cast()));
            for r in 0..place.rows {
                let row = place.row + r;
                let scale = _mm512_set1_ps(*queries.scales.as_ptr().add(row));
                let levels = |p: usize| {
                    let score = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums.at(r, p), corrections[p]));
                    _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(score, scale), scales[p]))
                };
                let out = out.as_mut_ptr().add(row * positions + position);
                _mm512_storeu_si512(out.cast(), _mm512_packs_epi32(levels(0), levels(1)));
            }
        });
    }
}

/// What the first `seen` scores of a row from [`scores`] weigh, a byte for each in the order of
/// positions, 255 being what the largest one does; the largest, and the sum of the weights. The
/// others weigh nothing. `fine` ones have 16 bits, of which 65535 is the largest one's, and what is
/// stored of each is its upper byte and its lower byte after the sum has been taken and it has been
/// multiplied by its factor.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(in crate::kernels) unsafe fn weigh(
    scores: &mut [i16],
    seen: usize,
    words: &mut [u32],
    fine: Option<Fine<'_>>,
) -> (i16, u32) {
    assert!(scores.len().is_multiple_of(VECTOR) && words.len() * QUAD == scores.len());
    assert!(fine.as_ref().is_none_or(|fine| fine.low.len() == words.len() && fine.factors.len() >= scores.len()));
    if seen == 0 {
        words.fill(0);
        fine.into_iter().for_each(|fine| fine.low.fill(0));
        return (i16::MIN, 0);
    }
    // Vectors of positions some of which are seen; in the last one, what is not seen is neither the
    // largest nor of any weight.
    let (used, vectors) = (&mut scores[..seen.next_multiple_of(VECTOR)], seen.div_ceil(VECTOR));
    let seen = halves(u64::MAX >> (used.len() - seen));
    for (scores, seen) in used[(vectors - 1) * VECTOR..].chunks_exact_mut(OCTAVE).zip(seen) {
        let unseen = _mm512_andnot_si512(seen, _mm512_set1_epi16(i16::MIN));
        // SAFETY: a register of them.
        unsafe {
            let scores = scores.as_mut_ptr().cast();
            _mm512_storeu_si512(scores, _mm512_or_si512(_mm512_and_si512(_mm512_loadu_si512(scores), seen), unseen));
        }
    }
    let mut lanes = _mm512_set1_epi16(i16::MIN);
    for scores in used.chunks_exact(OCTAVE) {
        // SAFETY: a register of them.
        lanes = _mm512_max_epi16(lanes, unsafe { _mm512_loadu_si512(scores.as_ptr().cast()) });
    }
    let lanes = _mm256_max_epi16(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64::<1>(lanes));
    let lanes = _mm_max_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    // There is an instruction for the smallest unsigned one.
    let flipped = _mm_xor_si128(lanes, _mm_set1_epi16(i16::MAX));
    let largest = _mm_extract_epi16::<0>(_mm_minpos_epu16(flipped)) as i16 ^ i16::MAX;

    let mut sums = _mm512_setzero_si512();
    let (words, unseen) = words.split_at_mut(vectors * LANES);
    unseen.fill(0);
    let scores = used.chunks_exact(VECTOR).zip(words.chunks_exact_mut(LANES)).enumerate();
    let Some(Fine { low, factors }) = fine else {
        // SAFETY: as this function.
        let lookup = unsafe { Lookup::new(&POWERS, largest) };
        for ((vector, (scores, words)), dithers) in scores.zip(DITHERS.iter().cycle()) {
            // SAFETY: two registers of scores and of dithers, one of words.
            unsafe {
                let weights = lookup.weights(scores);
                let mut weights: [_; 2] = std::array::from_fn(|half| {
                    let dither = _mm512_loadu_si512(dithers[half].as_ptr().cast());
                    _mm512_srli_epi16::<8>(_mm512_add_epi16(weights[half], dither))
                });
                if vector + 1 == vectors {
                    weights = [0, 1].map(|half| _mm512_and_si512(weights[half], seen[half]));
                }
                let bytes = store_bytes(weights, words);
                sums = _mm512_dpbusd_epi32(sums, bytes, _mm512_set1_epi8(1));
            }
        }
        return (largest, _mm512_reduce_add_epi32(sums) as u32);
    };
    // SAFETY: as this function.
    let lookup = unsafe { Lookup::new(&FINE_POWERS, largest) };
    let (low, unseen) = low.split_at_mut(vectors * LANES);
    unseen.fill(0);
    let scores = scores.zip(low.chunks_exact_mut(LANES)).zip(factors.chunks_exact(VECTOR));
    for (((vector, (scores, words)), low), factors) in scores {
        // SAFETY: two registers of scores and of factors, one of either words.
        unsafe {
            let mut weights = lookup.weights(scores);
            if vector + 1 == vectors {
                weights = [0, 1].map(|half| _mm512_and_si512(weights[half], seen[half]));
            }
            for weights in weights {
                // They are added in pairs as signed numbers: less half of what they reach, which is
                // added again.
                let signed = _mm512_xor_si512(weights, _mm512_set1_epi16(i16::MIN));
                sums = _mm512_add_epi32(sums, _mm512_madd_epi16(signed, _mm512_set1_epi16(1)));
            }
            let weights: [_; 2] = std::array::from_fn(|i| {
                let factors = _mm512_loadu_si512(factors.as_ptr().add(i * OCTAVE).cast());
                let rest = _mm512_srli_epi16::<15>(_mm512_mullo_epi16(weights[i], factors));
                _mm512_add_epi16(_mm512_mulhi_epu16(weights[i], factors), rest)
            });
            store_bytes(weights.map(|x| _mm512_srli_epi16::<8>(x)), words);
            store_bytes(weights.map(|x| _mm512_and_si512(x, _mm512_set1_epi16(0xff))), low);
        }
    }
    let taken_off = (vectors * VECTOR) as u32 * (1 << 15);
    (largest, (_mm512_reduce_add_epi32(sums) as u32).wrapping_add(taken_off))
}

/// What fine weights have besides the others.
pub(in crate::kernels) struct Fine<'a> {
    pub(in crate::kernels) low: &'a mut [u32],
    /// From [`factors`].
    pub(in crate::kernels) factors: &'a [u16],
}

/// What each number is of the largest of them, in 65535ths, in the order of scores; the largest.
/// `out` has as many to a multiple of VECTOR; the others are 0.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(in crate::kernels) unsafe fn factors(numbers: &[f32], out: &mut [u16]) -> f32 {
    assert!(out.len() == numbers.len().next_multiple_of(VECTOR));
    let lanes = |from: usize| ((1u32 << numbers.len().saturating_sub(from).min(LANES)) - 1) as __mmask16;
    // SAFETY: as many lanes as there are.
    let load = |from: usize| unsafe { _mm512_maskz_loadu_ps(lanes(from), numbers.as_ptr().wrapping_add(from)) };
    let mut largest = _mm512_setzero_ps();
    for from in (0..numbers.len()).step_by(LANES) {
        largest = _mm512_max_ps(load(from), largest);
    }
    let largest = _mm512_reduce_max_ps(largest);
    let inverse = _mm512_set1_ps(if largest > 0.0 { 65535.0 / largest } else { 0.0 });
    for (pair, out) in out.chunks_exact_mut(2 * LANES).enumerate() {
        let [first, second] =
            [0, LANES].map(|panel| _mm512_cvtps_epi32(_mm512_mul_ps(load(pair * 2 * LANES + panel), inverse)));
        // SAFETY: as many numbers as a register has.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_packus_epi32(first, second)) };
    }
    largest
}

/// [`powers`] for a row, whose largest score gets the first of them.
struct Lookup {
    numbers: __m512i,
    top: __m512i,
}

impl Lookup {
    /// # Safety
    /// The processor has AVX-512 F and BW.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn new(powers: &[u16; OCTAVE], largest: i16) -> Self {
        // SAFETY: as many numbers as a register has.
        let numbers = unsafe { _mm512_loadu_si512(powers.as_ptr().cast()) };
        Self { numbers, top: _mm512_set1_epi16(largest) }
    }

    /// What [`VECTOR`] scores weigh, in two halves.
    ///
    /// # Safety
    /// As [`Lookup::new`]; there are as many scores.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn weights(&self, scores: &[i16]) -> [__m512i; 2] {
        [0, 1].map(|half| {
            // SAFETY: two registers of them.
            let scores = unsafe { _mm512_loadu_si512(scores.as_ptr().add(half * OCTAVE).cast()) };
            let below = _mm512_subs_epi16(self.top, scores);
            // The lookup takes the level in its octave, the shift the octaves.
            let power = _mm512_permutexvar_epi16(below, self.numbers);
            _mm512_srlv_epi16(power, _mm512_srli_epi16::<{ OCTAVE.ilog2() }>(below))
        })
    }
}

/// Words of four rows and four columns: what packing twice leaves, in the order of positions, and
/// back.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(words: __m512i) -> __m512i {
    _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), words)
}

/// Which numbers of either half are those of positions that `mask` has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(mask: __mmask64) -> [__m512i; 2] {
    let bytes = transpose(_mm512_movm_epi8(mask));
    [_mm512_unpacklo_epi8(bytes, bytes), _mm512_unpackhi_epi8(bytes, bytes)]
}

/// Stores numbers of 8 bits, of either half, in the order of positions.
///
/// # Safety
/// The processor has AVX-512 F and BW. `words` are LANES.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_bytes([first, second]: [__m512i; 2], words: &mut [u32]) -> __m512i {
    let bytes = transpose(_mm512_packus_epi16(first, second));
    // SAFETY: as many words.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), bytes) };
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_weights_are_those_of_the_portable_kernel() {
        if !Cpu::available().contains(&Cpu::Avx512) {
            return;
        }
        // Some positions as scores lie: a peak, and 9 octaves below it, less a few levels.
        let below = |position: usize| (9 * OCTAVE + position % 5) as i16;
        let count = 5 * VECTOR;
        let mut scores = vec![0; count];
        for (at, score) in scores.iter_mut().enumerate() {
            let (vector, half, number) = (at / VECTOR, at / OCTAVE % 2, at % OCTAVE);
            let panel = 2 * half + number / 4 % 2;
            *score = -below(vector * VECTOR + panel * LANES + number / 8 * 4 + number % 4);
        }
        let peak = scores.iter().position(|&score| score == -below(0)).unwrap_or_default();
        scores[peak] = 0;
        let mut expected: Vec<f32> = (0..count).map(|position| -f32::from(below(position))).collect();
        expected[0] = 0.0;
        let (mut bytes, mut words) = (vec![0; count], vec![0u32; count / QUAD]);
        let (_, sum) = math::exp2_row_int8(&expected, 1.0 / OCTAVE as f32, &mut bytes, Cpu::Portable);
        // SAFETY: the processor has more than that.
        let ours = unsafe { weigh(&mut scores, count, &mut words, None) };
        let different = bytes.iter().zip(bytemuck::cast_slice::<_, u8>(&words)).filter(|(a, b)| a != b).count();
        assert!(different <= 2 && sum.abs_diff(ours.1) <= 2, "{different} {sum} {ours:?}");
    }
}
