//! The packed product, as data: rows of activations times panels of weights, some of each at a time.

use half::{bf16, f16};

use super::layout::{High, LANES, PAIR, PANELS, QUAD, Strides};
use super::precision::Precision;
use super::rows::{HALVES, Rows};

/// Panels of weights.
#[derive(Clone, Copy)]
pub(super) enum Panels<'a> {
    Bf16(&'a [bf16]),
    /// `scales` and `corrections` (the sum of an output's weights, times OFFSET) have LANES values
    /// a panel. There are no corrections where activations have no offset.
    Int8 {
        values: &'a [i8],
        scales: &'a [f32],
        corrections: Option<&'a [i32]>,
    },
    /// [panels, blocks, the bytes of one] and [panels, blocks, LANES].
    Int4 {
        values: &'a [u8],
        high: High,
        scales: &'a [f16],
    },
}

impl<'a> Panels<'a> {
    /// What rows must be in.
    pub(super) fn precision(&self) -> Precision {
        match self {
            Panels::Bf16(_) => Precision::Bf16,
            Panels::Int8 { .. } => Precision::Int8,
            Panels::Int4 { .. } => Precision::Int4,
        }
    }

    /// What may be fetched ahead.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Panels::Int8 { values, .. } => bytemuck::cast_slice(values),
            _ => &[],
        }
    }

    /// Those that are left without the first so many vectors and outputs; not in int4.
    pub(super) fn skip(self, vectors: usize, outputs: usize) -> Self {
        match self {
            Panels::Bf16(values) => Panels::Bf16(&values[vectors * LANES * PAIR..]),
            Panels::Int8 { values, scales, corrections } => Panels::Int8 {
                values: &values[vectors * LANES * QUAD..],
                scales: &scales[outputs..],
                corrections: corrections.map(|corrections| &corrections[outputs..]),
            },
            Panels::Int4 { .. } => unreachable!("attention has no int4"),
        }
    }
}

/// Some rows times up to [`PANELS`] panels.
pub(super) struct Block<'a> {
    pub(super) rows: &'a Rows,
    pub(super) first_row: usize,
    pub(super) row_count: usize,
    pub(super) panels: Panels<'a>,
    pub(super) panel_count: usize,
    pub(super) strides: Strides,
    /// Weights that are wanted next, if there are any: they are fetched meanwhile.
    pub(super) ahead: &'a [u8],
}

/// A block's results: [row_count] rows of `columns` floats, `stride` apart.
///
/// Tasks share out one matrix between them, which no slice can say; whoever makes one promises that
/// its rows and columns are valid, and nobody else's while it lives.
pub(super) struct Out<'a> {
    start: *mut f32,
    stride: usize,
    pub(super) columns: usize,
    /// Added to every row; LANES numbers a panel.
    bias: &'a [f32],
    /// Whether results are added to what is there.
    add: bool,
    /// Whether the block's rows are halves, two of each row, whose results are added up.
    halved: bool,
}

static NO_BIAS: [f32; PANELS * LANES] = [0.0; PANELS * LANES];

impl<'a> Out<'a> {
    /// `bias`: as many numbers as the block's panels have lanes, or none.
    ///
    /// # Safety
    /// See the type.
    pub(super) unsafe fn new(start: *mut f32, stride: usize, columns: usize, bias: &'a [f32], add: bool) -> Self {
        let bias = if bias.is_empty() { &NO_BIAS } else { bias };
        assert!(columns <= NO_BIAS.len() && bias.len() >= columns.next_multiple_of(LANES));
        Self { start, stride, columns, bias, add, halved: false }
    }

    /// The same for a block whose rows may be halves.
    pub(super) fn of_halves(self, halved: bool) -> Self {
        Self { halved, ..self }
    }

    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn halved(&self) -> bool {
        self.halved
    }

    /// Where a row's results begin.
    ///
    /// # Safety
    /// The block has this row.
    #[inline(always)]
    unsafe fn at(&self, row: usize) -> *mut f32 {
        let row = if self.halved { row / HALVES } else { row };
        // SAFETY: as whoever made this promised.
        unsafe { self.start.add(row * self.stride) }
    }

    /// Whether a row is the second half of one, whose first half's results are there already.
    #[inline(always)]
    fn is_second(&self, row: usize) -> bool {
        self.halved && !row.is_multiple_of(HALVES)
    }

    /// Whether a row's results are added to what is there.
    #[inline(always)]
    pub(super) fn adds(&self, row: usize) -> bool {
        self.add || self.is_second(row)
    }

    /// LANES numbers that are added to a panel's results of one row.
    ///
    /// # Safety
    /// The block has this panel.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn bias(&self, row: usize, panel: usize) -> *const f32 {
        let bias = if self.is_second(row) { &NO_BIAS } else { self.bias };
        // SAFETY: there are as many as the panels have lanes.
        unsafe { bias.as_ptr().add(panel * LANES) }
    }

    /// # Safety
    /// The block has this row.
    pub(super) unsafe fn row(&mut self, row: usize) -> &mut [f32] {
        // SAFETY: as whoever made this promised.
        unsafe { std::slice::from_raw_parts_mut(self.at(row), self.columns) }
    }

    /// From a row to the next one.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Where a panel's results of one row go, and how many of its lanes.
    ///
    /// # Safety
    /// The block has this row and this panel.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn lanes(&mut self, row: usize, panel: usize) -> (*mut f32, usize) {
        // SAFETY: as the caller promises, and whoever made this did.
        (unsafe { self.at(row).add(panel * LANES) }, LANES.min(self.columns - panel * LANES))
    }

    /// Stores or adds a panel's results of one row; what lies beyond the columns is dropped.
    ///
    /// # Safety
    /// The block has this row and this panel.
    #[inline(always)]
    pub(super) unsafe fn store(&mut self, row: usize, panel: usize, values: &[f32; LANES]) {
        let add = self.adds(row);
        let bias = if self.is_second(row) { &NO_BIAS } else { self.bias };
        let bias = &bias[panel * LANES..][..LANES];
        // SAFETY: as the caller promises.
        let out = &mut unsafe { self.row(row) }[panel * LANES..];
        for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
            *out = value + bias + if add { *out } else { 0.0 };
        }
    }
}

impl Block<'_> {
    /// Vectors from the block's first to its last.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn vectors(&self) -> usize {
        let last = self.rows.groups.checked_sub(1).map(|group| self.strides.at(self.panel_count - 1, group));
        last.map_or(0, |last| last + 1)
    }
}
