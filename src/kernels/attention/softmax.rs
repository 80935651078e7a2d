//! Online softmax: what a block of positions weighs, and what the blocks before it weigh beside it.

use super::super::aligned::Aligned;
use super::super::block::{PAIR, Panels, Strides};
use super::super::{Cpu, Precision, Rows, math};
#[cfg(target_arch = "x86_64")]
use super::levels;
use super::product;

/// Units of a score in 8 bits from one to that which weighs twice as much.
pub(super) const OCTAVE: usize = 32;

/// A row's largest score so far, as a power of 2, and the sum of its weights relative to that.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    pub(super) largest: f32,
    pub(super) sum: f32,
    /// What everything before the last block has to be multiplied by, to be relative to the largest too.
    pub(super) kept: f32,
}

impl Softmax {
    pub(super) const NONE: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0, kept: 0.0 };

    /// Takes in a block by its largest score and the sum of its weights relative to that; what these have to be multiplied by.
    pub(super) fn join(&mut self, largest: f32, sum: f32) -> f32 {
        // One of the two is the largest, most often.
        let power = |x: f32| if x < 0.0 { math::power_of_two(x) } else { 1.0 };
        let all = self.largest.max(largest);
        let (kept, scale) = (power(self.largest - all), power(largest - all));
        *self = Self { largest: all, sum: self.sum * kept + sum * scale, kept };
        scale
    }
}

/// How softmax's weights are kept where keys have 8 bits: in 8, or in 16, as two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weights {
    Bytes,
    Fine,
}

/// What a task's rows and a block of positions have; the memory is used again and again.
#[derive(Default)]
pub(super) struct Scores {
    numbers: Aligned<f32>,
    #[cfg(target_arch = "x86_64")]
    levels: Aligned<i16>,
    /// What the scores weigh [rows, positions], or a few more positions.
    pub(super) weights: Rows,
    /// The lower bytes of those that have two.
    pub(super) low: Rows,
}

impl Scores {
    /// `weights` become those of `positions` for each of `queries`, relative to the row's largest score so far in bf16, to that of the
    /// block in 8 bits; `rows` take them in. What a row does not see, from position `seen(row)` on, has no weight. On this thread;
    /// `ahead` is fetched meanwhile.
    pub(super) fn weigh(
        &mut self,
        queries: &Rows,
        (keys, positions): (Panels<'_>, usize),
        seen: impl Fn(usize) -> usize,
        (kind, cpu): (Weights, Cpu),
        rows: &mut [Softmax],
        ahead: &[u8],
    ) {
        let count = queries.count();
        let Self { weights, low, .. } = self;
        #[cfg(target_arch = "x86_64")]
        if let Panels::Int8 { values, scales, corrections: Some(corrections) } = keys
            && matches!(cpu, Cpu::Avx512 | Cpu::Avx512Bf16 | Cpu::Amx)
        {
            let padded = positions.next_multiple_of(levels::VECTOR);
            let scores = self.levels.grow(count * padded);
            let keys = levels::Keys { values, scales, corrections, positions: padded };
            // SAFETY: the processor has what these sets need, which is more than that.
            unsafe { levels::scores(queries, keys, scores, ahead, cpu) };
            set_int8(kind, weights, low, (count, padded), |row, words, low| {
                // SAFETY: as above.
                let (largest, sum) =
                    unsafe { levels::weigh(&mut scores[row * padded..][..padded], seen(row), words, low) };
                rows[row].join_int8(kind, largest.into(), sum)
            });
            return;
        }

        let scores = self.numbers.grow(count * positions);
        let strides = Strides { panel: queries.groups, group: 1 };
        product(queries, keys, (positions, strides), &[], cpu, scores, false);
        let scores = |row: usize| &scores[row * positions..][..seen(row)];
        if keys.precision() == Precision::Bf16 {
            weights.set_words(Precision::Bf16, (count, positions), |row, words| {
                let (used, unused) = words.split_at_mut(scores(row).len().div_ceil(PAIR));
                unused.fill(0);
                let (largest, sum) = math::exp2_row(scores(row), rows[row].largest, used, cpu);
                rows[row].join(largest, sum)
            });
            return;
        }
        set_int8(kind, weights, low, (count, positions), |row, words, low| {
            let bytes = |words| {
                let (used, unused) = bytemuck::cast_slice_mut::<_, u8>(words).split_at_mut(scores(row).len());
                unused.fill(0);
                used
            };
            let by = 1.0 / OCTAVE as f32;
            let (largest, sum) = match low {
                Some(low) => math::exp2_row_int16(scores(row), by, bytes(words), bytes(low), cpu),
                None => math::exp2_row_int8(scores(row), by, bytes(words), cpu),
            };
            rows[row].join_int8(kind, largest, sum)
        });
    }
}

/// `weights`, and `low` if that is wanted, become rows of bytes whose words `make` writes; it says what a unit of the weights is.
fn set_int8(
    kind: Weights,
    weights: &mut Rows,
    low: &mut Rows,
    shape: (usize, usize),
    mut make: impl FnMut(usize, &mut [u32], Option<&mut [u32]>) -> f32,
) {
    match kind {
        Weights::Bytes => weights.set_words(Precision::Int8, shape, |row, words| make(row, words, None)),
        Weights::Fine => {
            low.shape(Precision::Int8, shape);
            weights.set_words(Precision::Int8, shape, |row, words| {
                let (low, unit) = low.row_mut(row);
                *unit = make(row, words, Some(low));
                *unit * 256.0
            });
        }
    }
}

impl Softmax {
    /// [`Softmax::join`] of a largest score in units, and a sum of whole weights; what a unit of these is.
    fn join_int8(&mut self, kind: Weights, largest: f32, sum: u32) -> f32 {
        let unit = match kind {
            Weights::Bytes => 1.0 / 255.0,
            Weights::Fine => 1.0 / 65535.0,
        };
        self.join(largest / OCTAVE as f32, sum as f32 * unit) * unit
    }
}
