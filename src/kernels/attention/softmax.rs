//! Online softmax: what a block of positions weighs, and what the blocks before it weigh beside it.

use super::product::product;
use crate::kernels::aligned::Aligned;
use crate::kernels::cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::kernels::isa::x86::avx512::softmax as levels;
use crate::kernels::layout::{OCTAVE, PAIR, Strides};
use crate::kernels::math;
use crate::kernels::precision::Precision;
use crate::kernels::product::Panels;
use crate::kernels::rows::Rows;
use crate::kernels::scratch::grow;

/// A row's largest score so far, as a power of 2, and the sum of its weights relative to that.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    pub(super) largest: f32,
    pub(super) sum: f32,
    /// What everything before the last block has to be multiplied by, to be relative to the largest
    /// too.
    pub(super) kept: f32,
}

impl Softmax {
    pub(super) const NONE: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, kept: 0.0 };

    /// Takes in a block by its largest score and the sum of its weights relative to that; what
    /// these have to be multiplied by.
    pub(super) fn join(&mut self, largest: f32, sum: f32) -> f32 {
        // One of the two is the largest, most often.
        let power = |x: f32| if x < 0.0 { math::power_of_two(x) } else { 1.0 };
        let all = self.largest.max(largest);
        let (kept, scale) = (power(self.largest - all), power(largest - all));
        *self = Self { largest: all, sum: self.sum * kept + sum * scale, kept };
        scale
    }
}

/// A block of positions: their keys, and what each one's value has to be multiplied by; if that is
/// there, weights have it in them, and 16 bits instead of 8.
pub(super) struct Positions<'a> {
    pub(super) keys: Panels<'a>,
    pub(super) count: usize,
    pub(super) value_scales: &'a [f32],
}

/// What a task's rows and a block of positions have; the memory is used again and again.
#[derive(Default)]
pub(super) struct Scores {
    numbers: Aligned<f32>,
    /// Of the values' scales, what each is of the largest.
    factors: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    levels: Aligned<i16>,
    #[cfg(target_arch = "x86_64")]
    level_factors: Aligned<u16>,
    /// What the scores weigh [rows, positions], or a few more positions.
    pub(super) weights: Rows,
    /// The lower bytes of those that have two.
    pub(super) low: Rows,
}

impl Scores {
    /// `weights` become those of all positions for each of `queries`, relative to the row's largest
    /// score so far in bf16, to that of the block in 8 bits; `rows` take them in. What a row does
    /// not see, from position `seen(row)` on, has no weight. On this thread; `ahead` is fetched
    /// meanwhile.
    pub(super) fn weigh(
        &mut self,
        queries: &Rows,
        block: Positions<'_>,
        seen: impl Fn(usize) -> usize,
        cpu: Cpu,
        rows: &mut [Softmax],
        ahead: &[u8],
    ) {
        let count = queries.count();
        let Self { weights, low, .. } = self;
        let Positions { keys: panels, count: positions, value_scales } = block;
        let fine = !value_scales.is_empty();
        let one = if fine { 65535.0 } else { 255.0 };
        assert!(!fine || value_scales.len() == positions);
        #[cfg(target_arch = "x86_64")]
        if let Panels::Int8 { values, scales, corrections: Some(corrections) } = panels
            && matches!(cpu, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx)
        {
            let padded = positions.next_multiple_of(levels::VECTOR);
            let scores = self.levels.grow(count * padded);
            let factors = self.level_factors.grow(padded);
            // SAFETY: the processor has what these sets need, which is more than that.
            let largest_value = if fine { unsafe { levels::factors(value_scales, factors) } } else { 1.0 };
            let keys = levels::Keys { values, scales, corrections, positions: padded };
            // SAFETY: the processor has what these sets need, which is more than that.
            unsafe { levels::scores(queries, keys, scores, ahead, cpu) };
            set_int8(fine.then_some(low), weights, (count, padded), |row, words, low| {
                let fine = low.map(|low| levels::Fine { low, factors });
                // SAFETY: as above.
                let (largest, sum) =
                    unsafe { levels::weigh(&mut scores[row * padded..][..padded], seen(row), words, fine) };
                rows[row].join_int8(one, largest.into(), sum) * largest_value
            });
            return;
        }

        let scores = self.numbers.grow(count * positions);
        let strides = Strides { panel: queries.groups, group: 1 };
        product(queries, panels, (positions, strides), &[], cpu, scores, false);
        let scores = |row: usize| &scores[row * positions..][..seen(row)];
        if panels.precision() == Precision::Bf16 {
            weights.set_words(Precision::Bf16, (count, positions), |row, words| {
                let (used, unused) = words.split_at_mut(scores(row).len().div_ceil(PAIR));
                unused.fill(0);
                let (largest, sum) = math::exp2_row(scores(row), rows[row].largest, used, cpu);
                rows[row].join(largest, sum)
            });
            return;
        }
        let largest_value = value_scales.iter().copied().fold(0f32, f32::max);
        let factors = grow(&mut self.factors, value_scales.len());
        let inverse = if largest_value > 0.0 { largest_value.recip() } else { 0.0 };
        factors.iter_mut().zip(value_scales).for_each(|(factor, scale)| *factor = scale * inverse);
        set_int8(fine.then_some(low), weights, (count, positions), |row, words, low| {
            let bytes = |words| {
                let (used, unused) = bytemuck::cast_slice_mut::<_, u8>(words).split_at_mut(scores(row).len());
                unused.fill(0);
                used
            };
            let by = 1.0 / OCTAVE as f32;
            let Some(low) = low else {
                let (largest, sum) = math::exp2_row_int8(scores(row), by, bytes(words), cpu);
                return rows[row].join_int8(one, largest, sum);
            };
            let (largest, sum) = math::exp2_row_int16(scores(row), by, factors, [bytes(words), bytes(low)], cpu);
            rows[row].join_int8(one, largest, sum) * largest_value
        });
    }
}

/// `weights`, and `low` if it is there, become rows of bytes whose words `make` writes; it says
/// what a unit of the weights is.
fn set_int8(
    low: Option<&mut Rows>,
    weights: &mut Rows,
    shape: (usize, usize),
    mut make: impl FnMut(usize, &mut [u32], Option<&mut [u32]>) -> f32,
) {
    let Some(low) = low else {
        return weights.set_words(Precision::Int8, shape, |row, words| make(row, words, None));
    };
    low.shape(Precision::Int8, shape);
    weights.set_words(Precision::Int8, shape, |row, words| {
        let (low, unit) = low.row_mut(row);
        *unit = make(row, words, Some(low));
        *unit * 256.0
    });
}

impl Softmax {
    /// [`Softmax::join`] of a largest score in units, and a sum of weights of which `one` is 1;
    /// what a unit of these is.
    fn join_int8(&mut self, one: f32, largest: f32, sum: u32) -> f32 {
        self.join(largest / OCTAVE as f32, sum as f32 / one) / one
    }
}
