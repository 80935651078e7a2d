//! Linear layers: rows of activations times weights in bf16, 8 or 4 bits, packed once, with the
//! bias in the same pass.
//!
//! 8-bit weights have one scale per output, those of 4 to 6 bits a scale for every block of inputs;
//! either way activations have 8 bits and one scale per row. Few rows have 16 bits, as two
//! rows of 8, where a decode step waits for weights and not for products.

mod pack;
mod widen;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use self::pack::{Matrix, Weights};
use self::widen::Widened;
use super::aligned::Mapped;
use super::cpu::Cpu;
use super::hessian::Hessian;
use super::isa;
use super::layout::{LANES, PAIR, PANELS, QUAD, Strides};
use super::precision::Precision;
use super::product::{Block, Out, Panels};
use super::rows::{HALVES, Rows};
use super::team::{self, Split};

/// Rows that one task takes, at most: enough to use a panel's weights again and again from cache,
/// few enough to share out.
const ROWS: usize = 96;

/// Outputs of a block of panels.
const BAND: usize = PANELS * LANES;

/// Chunks of rows are multiples of it: the rows of a register tile, or half of a tall one.
const TILE_ROWS: usize = 6;

/// Tasks a thread should have to choose from, so that a slower one leaves some to the others.
const PIECES: usize = 4;

thread_local! {
    static WIDENED: RefCell<Widened> = RefCell::default();
}

/// How a matrix's weights are kept: the first outputs in one precision, the others in another, which
/// takes the same rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    pub first: Precision,
    /// Outputs that `first` is for, about: a block of panels has one precision.
    pub count: usize,
    pub rest: Precision,
}

impl Mix {
    /// Which outputs are kept how.
    fn bands(self, outputs: usize) -> impl Iterator<Item = (Range<usize>, Precision)> {
        assert_eq!(self.first.of_rows(), self.rest.of_rows());
        let count = if self.first == self.rest { 0 } else { self.count.min(outputs) / BAND * BAND };
        [(0..count, self.first), (count..outputs, self.rest)].into_iter().filter(|(band, _)| !band.is_empty())
    }
}

impl fmt::Debug for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.rest {
            return self.rest.fmt(f);
        }
        write!(f, "{:?} {} {:?}", self.first, self.count, self.rest)
    }
}

impl From<Precision> for Mix {
    fn from(precision: Precision) -> Self {
        Self { first: precision, count: 0, rest: precision }
    }
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Store,
    /// They are added to what is there: a residual connection.
    Add,
}

/// Outputs that are kept the same way.
struct Band {
    /// The first one's.
    panel: usize,
    weights: Weights,
}

/// A weight matrix, ready for products.
pub struct PackedLinear {
    inputs: usize,
    outputs: usize,
    bands: Vec<Band>,
    /// [outputs to a multiple of LANES], or empty.
    bias: Vec<f32>,
    cpu: Cpu,
}

impl PackedLinear {
    /// Packs a matrix [outputs, inputs], whose rows `read` writes, on the caller's rayon pool.
    /// `bias`: [outputs], or empty; `hessian`: of what comes into it, if that is known. Of no use
    /// in bf16.
    pub fn new(
        (outputs, inputs): (usize, usize),
        read: impl Fn(usize, &mut [f32]) + Sync,
        mut bias: Vec<f32>,
        mix: impl Into<Mix>,
        hessian: Option<&Hessian>,
        cpu: Cpu,
    ) -> Self {
        assert!(inputs > 0 && (bias.is_empty() || bias.len() == outputs));
        assert!(hessian.is_none_or(|hessian| hessian.inputs() == inputs));
        bias.resize(bias.len().next_multiple_of(LANES), 0.0);
        let pack = |(band, precision): (Range<usize>, Precision)| {
            let read = |output: usize, row: &mut [f32]| read(band.start + output, row);
            let weights = Matrix { outputs: band.len(), inputs, read, hessian, cpu }.pack(precision);
            Band { panel: band.start / LANES, weights }
        };
        let bands = mix.into().bands(outputs).map(pack).collect();
        Self { inputs, outputs, bands, bias, cpu }
    }

    /// One whose [`Self::arrays`] have been kept: `take` is asked for each of them, by its size in
    /// bytes, in their order. They must begin with a cache line.
    pub fn restore<E>(
        (outputs, inputs): (usize, usize),
        mut bias: Vec<f32>,
        mix: impl Into<Mix>,
        cpu: Cpu,
        mut take: impl FnMut(usize) -> Result<Mapped, E>,
    ) -> Result<Self, E> {
        assert!(inputs > 0 && (bias.is_empty() || bias.len() == outputs));
        bias.resize(bias.len().next_multiple_of(LANES), 0.0);
        let restore = |(band, precision): (Range<usize>, Precision)| {
            let weights = Weights::restore((band.len(), inputs), precision, &mut take)?;
            Ok(Band { panel: band.start / LANES, weights })
        };
        let bands = mix.into().bands(outputs).map(restore).collect::<Result<_, E>>()?;
        Ok(Self { inputs, outputs, bands, bias, cpu })
    }

    /// What packing made: the same on every processor of one byte order. The bias is not among it.
    pub fn arrays(&self) -> Vec<&[u8]> {
        self.bands.iter().flat_map(|band| band.weights.arrays()).collect()
    }

    /// What rows must be in.
    pub fn precision(&self) -> Precision {
        match self.bands[0].weights {
            Weights::Bf16(_) => Precision::Bf16,
            Weights::Int8 { .. } => Precision::Int8,
            Weights::Int4 { .. } => Precision::Int4,
        }
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `rows` [rows, inputs] -> `out` [rows, outputs], shared out to the team of the caller's pass.
    pub fn multiply(&self, rows: &Rows, out: &mut [f32], then: Then) {
        self.multiply_and_fetch(rows, out, then, &[]);
    }

    /// The same; at its end some of `next` is fetched, which a thread wants after that, where
    /// kernels fetch: many rows, in AVX-512 or AMX.
    pub fn multiply_and_fetch(&self, rows: &Rows, out: &mut [f32], then: Then, next: &[u8]) {
        let count = rows.count();
        assert_eq!((rows.width(), out.len()), (self.inputs, count * self.outputs));
        let (panels, out) = (self.outputs.div_ceil(LANES), Split::new(out));
        let blocks = panels.div_ceil(PANELS);
        let tasks = team::size() * PIECES;
        // Chunks of rows follow each other, so that a thread finds its panels in cache again; in a
        // decode step, panels do.
        let at_once = if count == 1 { blocks.div_ceil(tasks) } else { 1 };
        let wanted = count.div_ceil(ROWS).max(tasks.div_ceil(blocks));
        let chunk = count.div_ceil(wanted).next_multiple_of(TILE_ROWS);
        let chunks = count.div_ceil(chunk);
        team::share(blocks.div_ceil(at_once) * chunks, |task| {
            let (first, row) = (task / chunks * at_once, task % chunks * chunk);
            for block in first..blocks.min(first + at_once) {
                self.block(rows, (row, chunk.min(count - row)), block * PANELS, &out, then, next);
            }
        });
    }

    /// The product of one row; `each` is called with parts of it, and the number of a part's first
    /// output, while they are near.
    pub fn multiply_row(&self, row: &Rows, out: &mut [f32], each: impl Fn(usize, &[f32]) + Sync) {
        assert_eq!((row.width(), row.count()), (self.inputs, 1));
        assert_eq!(out.len(), self.outputs);
        let out = Split::new(out);
        let blocks = self.outputs.div_ceil(LANES * PANELS);
        let at_once = blocks.div_ceil(team::size() * PIECES);
        team::share(blocks.div_ceil(at_once), |task| {
            let some = task * at_once..blocks.min((task + 1) * at_once);
            let first = some.start * PANELS * LANES;
            let last = self.outputs.min(some.end * PANELS * LANES);
            some.for_each(|block| self.block(row, (0, 1), block * PANELS, &out, Then::Store, &[]));
            // SAFETY: this task's, which are done.
            each(first, unsafe { out.part(first, last - first) });
        });
    }

    /// The product of some rows and a block of panels from `panel` on.
    fn block(
        &self,
        rows: &Rows,
        (row, count): (usize, usize),
        panel: usize,
        out: &Split<'_, f32>,
        then: Then,
        next: &[u8],
    ) {
        let panel_count = PANELS.min(self.outputs.div_ceil(LANES) - panel);
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(self.outputs - column);
        let bias = self.bias.get(column..).unwrap_or_default();
        // SAFETY: whoever calls this has checked that the rows and columns lie in `out`; no other
        // task has both.
        let out =
            unsafe { Out::new(out.at(row * self.outputs + column), self.outputs, columns, bias, then == Then::Add) };
        let mut out = out.of_halves(rows.halved);
        let (row, count) = if rows.halved { (row * HALVES, count * HALVES) } else { (row, count) };
        let mut run = |panels: Panels<'_>| {
            assert_eq!(panels.precision(), rows.precision);
            let block = Block {
                rows,
                first_row: row,
                row_count: count,
                panels,
                panel_count,
                strides: Strides { panel: rows.groups, group: 1 },
                ahead: Some(self.block_bytes(panel + PANELS)).filter(|bytes| !bytes.is_empty()).unwrap_or(next),
            };
            isa::product(&block, &mut out, self.cpu);
        };
        match (self.panels(panel, rows), rows.precision) {
            (Panels::Int4 { values, high, scales }, Precision::Int8) => WIDENED.with_borrow_mut(|widened| {
                let blocks = panel_count * rows.blocks();
                let (values, scales) = (&values[..blocks * high.block_bytes()], &scales[..blocks * LANES]);
                run(widened.set((values, high), scales, rows.groups, self.cpu));
            }),
            (panels, _) => run(panels),
        }
    }

    /// The weights that a product begins with, for the one before it to fetch; none that are not in
    /// 8 bits.
    pub fn first(&self) -> &[u8] {
        self.block_bytes(0)
    }

    /// Those of a block of panels from `first` on.
    fn block_bytes(&self, first: usize) -> &[u8] {
        let band = self.band(first);
        match &band.weights {
            Weights::Int8 { values, .. } => {
                let panel = self.inputs.div_ceil(QUAD) * LANES * QUAD;
                let values = values.get((first - band.panel) * panel..).unwrap_or_default();
                bytemuck::cast_slice(&values[..values.len().min(PANELS * panel)])
            }
            _ => &[],
        }
    }

    /// What has this panel, or would have it.
    fn band(&self, panel: usize) -> &Band {
        &self.bands[self.bands.partition_point(|band| band.panel <= panel) - 1]
    }

    fn panels(&self, first: usize, rows: &Rows) -> Panels<'_> {
        let band = self.band(first);
        let first = first - band.panel;
        match &band.weights {
            Weights::Bf16(values) => Panels::Bf16(&values[first * rows.groups * LANES * PAIR..]),
            Weights::Int8 { values, scales, corrections } => Panels::Int8 {
                values: &values[first * rows.groups * LANES * QUAD..],
                scales: &scales[first * LANES..],
                corrections: Some(&corrections[first * LANES..]),
            },
            Weights::Int4 { values, high, scales } => Panels::Int4 {
                values: &values[first * rows.blocks() * high.block_bytes()..],
                high: *high,
                scales: &scales[first * rows.blocks() * LANES..],
            },
        }
    }
}

#[cfg(test)]
mod tests;
