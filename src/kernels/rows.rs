//! Rows of activations in a product's precision.

use super::layout::{BLOCK, OFFSET, PAIR, QUAD};
use super::precision::Precision;
use super::scratch::grow;
use super::team::{self, Split};

/// From as many rows on, they are made for 8-bit weights where weights have 4: those become such,
/// for a moment, since that is done once for all rows.
const MANY: usize = 16;

/// As many rows have 16 bits: their products still wait for weights.
pub(super) const FEW: usize = 6;

/// As many halves has a row of 16 bits.
pub(super) const HALVES: usize = 2;

/// Rows that one task makes.
pub(super) const TASK: usize = 8;

/// Activations as the packed products take them; the memory is used again and again.
#[derive(Default)]
pub struct Rows {
    /// [rows, groups]: a 32-bit word has the numbers of a group.
    pub(super) words: Vec<u32>,
    pub(super) groups: usize,
    /// [rows], of no use in bf16. Like the others it may be longer than it is used.
    pub(super) scales: Vec<f32>,
    /// [rows, blocks] for int4 weights, else empty: the sum of a block's 8-bit numbers, which are
    /// signed there.
    pub(super) sums: Vec<i32>,
    pub(super) precision: Precision,
    pub(super) count: usize,
    /// Whether up to [`FEW`] rows have 16 bits; linear layers take both.
    pub fine: bool,
    /// Whether rows have 16 bits: the upper halves of each come first, then its lower ones, as if
    /// they were two rows, whose products are to be added up.
    pub(super) halved: bool,
    pub(super) width: usize,
}

impl Rows {
    /// Becomes `count` rows of `width` for 8-bit weights; `make` writes the bytes of the row that it
    /// is given, each of which stands for itself less [`OFFSET`].
    pub fn set_bytes(&mut self, (count, width): (usize, usize), make: impl Fn(usize, &mut [u8]) + Sync) {
        self.shape(Precision::Int8, (count, width));
        let groups = self.groups;
        self.scales[..count].fill(1.0);
        let words = Split::new(&mut self.words);
        team::share(count.div_ceil(TASK), |task| {
            for row in task * TASK..count.min((task + 1) * TASK) {
                // SAFETY: no other task has this row.
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(unsafe { words.part(row * groups, groups) });
                make(row, &mut bytes[..width]);
                bytes[width..].fill(OFFSET as u8);
            }
        });
    }

    /// Becomes `count` rows of `width` in bf16 or 8 bits without offset, whose words `make` writes;
    /// it says what 8-bit numbers have to be multiplied by. On this thread.
    pub(super) fn set_words(
        &mut self,
        precision: Precision,
        (count, width): (usize, usize),
        mut make: impl FnMut(usize, &mut [u32]) -> f32,
    ) {
        self.shape(precision, (count, width));
        for row in 0..count {
            let (words, scale) = self.row_mut(row);
            *scale = make(row, words);
        }
    }

    /// A row's words, and what its numbers have to be multiplied by.
    pub(super) fn row_mut(&mut self, row: usize) -> (&mut [u32], &mut f32) {
        (&mut self.words[row * self.groups..][..self.groups], &mut self.scales[row])
    }

    /// Makes room for `count` rows of `width`.
    pub(super) fn shape(&mut self, precision: Precision, (count, width): (usize, usize)) {
        let precision = match precision.of_rows() {
            Precision::Int4 if count >= MANY => Precision::Int8,
            of_rows => of_rows,
        };
        (self.precision, self.count, self.halved, self.width) = (precision, count, false, width);
        self.groups = width.div_ceil(if precision == Precision::Bf16 { PAIR } else { QUAD });
        grow(&mut self.words, count * self.groups);
        grow(&mut self.scales, count);
        grow(&mut self.sums, if precision == Precision::Int4 { count * width.div_ceil(BLOCK) } else { 0 });
    }

    /// The numbers of one of many rows in 8 bits, but for their rounding.
    pub(super) fn restore(&self, row: usize, out: &mut [f32]) {
        assert!(self.precision == Precision::Int8 && !self.halved);
        for (x, byte) in out.iter_mut().zip(bytemuck::cast_slice::<_, u8>(self.row(row))) {
            *x = (i32::from(*byte) - OFFSET) as f32 * self.scales[row];
        }
    }

    pub(super) fn row(&self, row: usize) -> &[u32] {
        &self.words[row * self.groups..][..self.groups]
    }

    /// A row for int4 weights: words, and the sums of its blocks.
    pub(super) fn int4_row(&self, row: usize) -> (&[u32], &[i32]) {
        (self.row(row), &self.sums[row * self.blocks()..][..self.blocks()])
    }

    pub(super) fn blocks(&self) -> usize {
        self.width.div_ceil(BLOCK)
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}
