//! A tile of rows and panels, held in registers while the inputs stream by.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::kernels::product::Out;
use crate::kernels::rows::HALVES;

/// Rows of a register tile: 6 rows by 4 panels are 24 accumulators of the 32 registers.
pub(in crate::kernels) const TILE_ROWS: usize = 6;

/// Rows of a tall tile, by 2 panels: more rows share what is read of a panel, and what taking it
/// apart costs.
pub(in crate::kernels) const TALL_ROWS: usize = 12;
pub(in crate::kernels) const TALL_PANELS: usize = 2;

/// How far on in panels of 8 or 4 bits a few rows fetch, in bytes: the processor's own prefetching
/// ends with a page of 4 KiB, and a panel has two or three. From 1 to 4 KiB did, 2 did best. All few
/// rows fetch into the second-level cache: the first waits for few lines at a time, and a decode step
/// on an EPYC of the fourth generation took a fifth to a third longer.
pub(in crate::kernels) const ON: usize = 2048;

/// Rows of each of as many tall tiles as `rows` need: a last one of few rows would read all of the
/// panels for little work.
pub(in crate::kernels) fn even_rows(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TALL_ROWS))
}

/// Multiples of a stride, from a tile's first row to each of the others, in bytes.
///
/// The odd ones are kept in registers, and addresses have these times 2, 4 or 8 for the others.
/// Compilers are not to see what they are: they add one row to the other in the innermost loop
/// instead, on the ports that products need.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct RowOffsets([usize; TALL_ROWS / 2]);

impl RowOffsets {
    #[inline(always)]
    pub(in crate::kernels) fn new(stride: usize) -> Self {
        let mut odd = [0; TALL_ROWS / 2];
        for (i, offset) in odd.iter_mut().enumerate() {
            let mut multiple = stride * (2 * i + 1);
            // SAFETY: nothing is done.
            unsafe { asm!("/* {} */", inout(reg) multiple, options(pure, nomem, nostack, preserves_flags)) };
            *offset = multiple;
        }
        Self(odd)
    }

    /// What a row has where the first one has `first`.
    ///
    /// # Safety
    /// The tile has this row, and it has a number there.
    #[inline(always)]
    pub(in crate::kernels) unsafe fn read<T: Copy>(self, first: *const T, row: usize) -> T {
        let offset = match row {
            0 => 0,
            _ => self.0[(row >> row.trailing_zeros()) / 2] << row.trailing_zeros(),
        };
        // SAFETY: as the caller promises.
        unsafe { *first.byte_add(offset) }
    }
}

/// Calls `$kernel::<ROWS, PANELS>` for the constants out of the lists that `$rows` and `$panels`
/// are.
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

pub(in crate::kernels) use dispatch;

/// Where a panel's results go.
pub(in crate::kernels) struct Column {
    start: *mut f32,
    stride: usize,
    /// The lanes that have columns.
    mask: __mmask16,
    bias: __m512,
    add: bool,
    /// See [`Out::of_halves`].
    halved: bool,
}

impl Column {
    /// # Safety
    /// The processor has AVX-512 F; the block has this row and this panel.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn new(out: &mut Out<'_>, row: usize, panel: usize) -> Self {
        assert!(!out.halved() || row.is_multiple_of(HALVES));
        // SAFETY: as the caller promises.
        unsafe {
            let (start, lanes) = out.lanes(row, panel);
            Self {
                start,
                stride: out.stride(),
                mask: ((1u32 << lanes) - 1) as __mmask16,
                bias: _mm512_loadu_ps(out.bias(row, panel)),
                add: out.adds(row),
                halved: out.halved(),
            }
        }
    }

    /// Stores or adds as many lanes as there are columns.
    ///
    /// # Safety
    /// The processor has AVX-512 F; the block has as many rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels) unsafe fn store(&self, row: usize, values: __m512) {
        let (line, onto) = if self.halved { (row / HALVES, !row.is_multiple_of(HALVES)) } else { (row, false) };
        let values = if onto { values } else { _mm512_add_ps(values, self.bias) };
        // SAFETY: as the caller promises; the mask leaves out what is not the block's.
        unsafe {
            let at = self.start.add(line * self.stride);
            let there = self.add || onto;
            let values = if there { _mm512_add_ps(values, _mm512_maskz_loadu_ps(self.mask, at)) } else { values };
            _mm512_mask_storeu_ps(at, self.mask, values);
        }
    }
}
