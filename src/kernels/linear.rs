//! Linear layers: rows of activations times weights in bf16, 8 or 4 bits, packed once, with the bias in the same pass.
//!
//! 8-bit weights have one scale per output, 4-bit ones a scale for every block of inputs; either way activations have 8 bits and one
//! scale per row.

use half::{bf16, f16};
use rayon::prelude::*;

use super::aligned::Aligned;
use super::block::{BLOCK, BLOCK_BYTES, Block, INT4_OFFSET, LANES, OFFSET, Out, PAIR, PANELS, Panels, QUAD, Strides};
use super::team::{self, Split};
use super::{Cpu, Rows, math};

/// Rows that one task takes, at most: enough to use a panel's weights again and again from cache, few enough to share out.
const ROWS: usize = 96;

/// Chunks of rows are multiples of it: the rows of a register tile, or half of a tall one.
const TILE_ROWS: usize = 6;

/// Tasks a thread should have to choose from, so that a slower one leaves some to the others.
const PIECES: usize = 4;

/// How weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    Bf16,
    /// One scale per output; activations are quantised too, with one scale per row.
    Int8,
    /// One scale per output and block of 32 inputs; activations as in `Int8`.
    Int4,
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Store,
    /// They are added to what is there: a residual connection.
    Add,
}

/// A weight matrix, ready for products.
pub struct PackedLinear {
    inputs: usize,
    outputs: usize,
    weights: Weights,
    /// [outputs to a multiple of LANES], or empty.
    bias: Vec<f32>,
    cpu: Cpu,
}

/// As [`Panels`] has them, of all outputs.
enum Weights {
    Bf16(Aligned<bf16>),
    Int8 { values: Aligned<i8>, scales: Vec<f32>, corrections: Vec<i32> },
    Int4 { values: Aligned<u8>, scales: Vec<f16> },
}

impl PackedLinear {
    /// Packs a matrix [outputs, inputs], whose rows `read` writes, on the caller's rayon pool. `bias`: [outputs], or empty.
    pub fn new(
        (outputs, inputs): (usize, usize),
        read: impl Fn(usize, &mut [f32]) + Sync,
        mut bias: Vec<f32>,
        precision: Precision,
        cpu: Cpu,
    ) -> Self {
        assert!(inputs > 0 && (bias.is_empty() || bias.len() == outputs));
        bias.resize(bias.len().next_multiple_of(LANES), 0.0);
        let matrix = Matrix { outputs, inputs, read, cpu };
        let weights = match precision {
            Precision::Bf16 => matrix.bf16(),
            Precision::Int8 => matrix.int8(),
            Precision::Int4 => matrix.int4(),
        };
        Self { inputs, outputs, weights, bias, cpu }
    }

    /// What rows must be in.
    pub fn precision(&self) -> Precision {
        match self.weights {
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

    /// The same; at its end some of `next` is fetched, which a thread wants after that, where kernels fetch: many rows, in AVX-512 or AMX.
    pub fn multiply_and_fetch(&self, rows: &Rows, out: &mut [f32], then: Then, next: &[u8]) {
        let count = rows.count();
        assert_eq!((rows.width(), rows.precision, out.len()), (self.inputs, self.precision(), count * self.outputs));
        let (panels, out) = (self.outputs.div_ceil(LANES), Split::new(out));
        let blocks = panels.div_ceil(PANELS);
        let tasks = team::size() * PIECES;
        // Chunks of rows follow each other, so that a thread finds its panels in cache again; in a decode step, panels do.
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
        let block = Block {
            rows,
            first_row: row,
            row_count: count,
            panels: self.panels(panel, rows),
            panel_count: PANELS.min(self.outputs.div_ceil(LANES) - panel),
            strides: Strides { panel: rows.groups, group: 1 },
            ahead: Some(self.block_bytes(panel + PANELS)).filter(|bytes| !bytes.is_empty()).unwrap_or(next),
        };
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(self.outputs - column);
        let bias = self.bias.get(column..).unwrap_or_default();
        // SAFETY: `multiply` has checked that the rows and columns lie in `out`; no other task has both.
        let mut out =
            unsafe { Out::new(out.at(row * self.outputs + column), self.outputs, columns, bias, then == Then::Add) };
        block.run(&mut out, self.cpu);
    }

    /// The weights that a product begins with, for the one before it to fetch; none that are not in 8 bits.
    pub fn first(&self) -> &[u8] {
        self.block_bytes(0)
    }

    /// Those of a block of panels from `first` on.
    fn block_bytes(&self, first: usize) -> &[u8] {
        match &self.weights {
            Weights::Int8 { values, .. } => {
                let panel = self.inputs.div_ceil(QUAD) * LANES * QUAD;
                let values = values.get(first * panel..).unwrap_or_default();
                bytemuck::cast_slice(&values[..values.len().min(PANELS * panel)])
            }
            _ => &[],
        }
    }

    fn panels(&self, first: usize, rows: &Rows) -> Panels<'_> {
        match &self.weights {
            Weights::Bf16(values) => Panels::Bf16(&values[first * rows.groups * LANES * PAIR..]),
            Weights::Int8 { values, scales, corrections } => Panels::Int8 {
                values: &values[first * rows.groups * LANES * QUAD..],
                scales: &scales[first * LANES..],
                corrections: Some(&corrections[first * LANES..]),
            },
            Weights::Int4 { values, scales } => Panels::Int4 {
                values: &values[first * rows.blocks() * BLOCK_BYTES..],
                scales: &scales[first * rows.blocks() * LANES..],
            },
        }
    }
}

/// A matrix that is to be packed.
struct Matrix<F> {
    outputs: usize,
    inputs: usize,
    read: F,
    cpu: Cpu,
}

impl<F: Fn(usize, &mut [f32]) + Sync> Matrix<F> {
    fn panels(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Calls `pack` for each output with what `all` has for its panel, its lane there, and its weights.
    fn each<P: Send>(&self, all: impl IndexedParallelIterator<Item = P>, pack: impl Fn(&mut P, usize, &[f32]) + Sync) {
        all.enumerate().for_each_init(
            || vec![0.0; self.inputs],
            |row, (p, mut panel)| {
                for (lane, output) in (p * LANES..self.outputs.min((p + 1) * LANES)).enumerate() {
                    (self.read)(output, row);
                    pack(&mut panel, lane, row);
                }
            },
        );
    }

    fn bf16(&self) -> Weights {
        let panel = self.inputs.div_ceil(PAIR) * LANES * PAIR;
        let mut packed = Aligned::<bf16>::zeros(self.panels() * panel);
        self.each(packed.par_chunks_exact_mut(panel), |panel, lane, row| {
            for (i, &w) in row.iter().enumerate() {
                panel[((i / PAIR) * LANES + lane) * PAIR + i % PAIR] = math::round_bf16(w);
            }
        });
        Weights::Bf16(packed)
    }

    fn int8(&self) -> Weights {
        let (groups, padded) = (self.inputs.div_ceil(QUAD), self.panels() * LANES);
        let (mut scales, mut corrections) = (vec![0.0; padded], vec![0; padded]);
        let mut packed = Aligned::<i8>::zeros(padded * groups * QUAD);
        let all = packed.par_chunks_exact_mut(LANES * groups * QUAD).zip(scales.par_chunks_exact_mut(LANES));
        let all = all.zip(corrections.par_chunks_exact_mut(LANES));
        self.each(all, |((panel, scales), corrections), lane, row| {
            let mut words = vec![0; groups];
            scales[lane] = math::to_int8(row, &mut words, self.cpu);
            let mut sum = 0;
            for (quad, word) in panel.chunks_exact_mut(QUAD).skip(lane).step_by(LANES).zip(words) {
                for (value, byte) in quad.iter_mut().zip(word.to_le_bytes()) {
                    let signed = i32::from(byte) - OFFSET;
                    *value = signed as i8;
                    sum += signed;
                }
            }
            corrections[lane] = OFFSET * sum;
        });
        Weights::Int8 { values: packed, scales, corrections }
    }

    fn int4(&self) -> Weights {
        let blocks = self.inputs.div_ceil(BLOCK);
        let mut values = Aligned::<u8>::zeros(self.panels() * blocks * BLOCK_BYTES);
        let mut scales = vec![f16::ZERO; self.panels() * blocks * LANES];
        let all = values.par_chunks_exact_mut(blocks * BLOCK_BYTES).zip(scales.par_chunks_exact_mut(blocks * LANES));
        self.each(all, |(values, scales), lane, row| {
            for (b, block) in row.chunks(BLOCK).enumerate() {
                let (scale, integers) = quantise_int4(block, self.cpu);
                scales[b * LANES + lane] = scale;
                for (i, integer) in integers.into_iter().enumerate() {
                    let group = i / QUAD;
                    let at = b * BLOCK_BYTES + (group / 2 * LANES + lane) * QUAD + i % QUAD;
                    values[at] |= integer << (4 * (group % 2));
                }
            }
        });
        Weights::Int4 { values, scales }
    }
}

/// What the weight of largest magnitude in a block may become: ggml's Q4_0 takes -8 always, and with the others those in between
/// are often closer.
const EXTREMES: [f32; 4] = [-8.0, -7.5, -7.0, 7.0];

/// The scale of a block, and its weights plus INT4_OFFSET, with the least squares of errors.
fn quantise_int4(block: &[f32], cpu: Cpu) -> (f16, [u8; BLOCK]) {
    let extreme = block.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let mut best = (f32::INFINITY, f16::ZERO, [INT4_OFFSET as u8; BLOCK]);
    for target in EXTREMES {
        let scale = f16::from_f32(extreme / target);
        if scale == f16::ZERO {
            continue;
        }
        let mut integers = [0; BLOCK];
        let error = math::to_int4(block, scale.to_f32(), &mut integers, cpu);
        if error < best.0 {
            best = (error, scale, integers);
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::super::math::tests::{largest_difference, numbers};
    use super::*;

    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (1, 64, 64),
        (1, 576, 1536),
        (5, 33, 17),
        (7, 100, 65),
        (130, 48, 130),
        (13, 3, 200),
        (129, 257, 79),
    ];

    struct Case {
        x: Vec<f32>,
        w: Vec<f32>,
        bias: Vec<f32>,
        inputs: usize,
    }

    impl Case {
        fn new((rows, inputs, outputs): (usize, usize, usize)) -> Self {
            Self { x: numbers(rows * inputs, 1), w: numbers(outputs * inputs, 77), bias: numbers(outputs, 5), inputs }
        }

        fn ours(&self, precision: Precision, cpu: Cpu, then: Then) -> Vec<f32> {
            let read =
                |output: usize, row: &mut [f32]| row.copy_from_slice(&self.w[output * self.inputs..][..self.inputs]);
            let shape = (self.w.len() / self.inputs, self.inputs);
            let linear = PackedLinear::new(shape, read, self.bias.clone(), precision, cpu);
            let (mut rows, mut out) = (Rows::default(), vec![0.5; self.x.len() / self.inputs * linear.outputs()]);
            rows.convert(precision, &self.x, self.inputs, cpu);
            linear.multiply(&rows, &mut out, then);
            out
        }

        fn exact(&self) -> Vec<f32> {
            let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
            let rows = self.x.chunks(self.inputs);
            let row =
                |x| self.w.chunks(self.inputs).zip(&self.bias).map(move |(w, &b)| (dot(x, w) + f64::from(b)) as f32);
            rows.flat_map(row).collect()
        }
    }

    #[test]
    fn a_product_is_exact_but_for_its_precisions_rounding() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for (precision, rounding) in
                [(Precision::Bf16, 2f32.powi(-8)), (Precision::Int8, 1.0 / 127.0), (Precision::Int4, 1.0 / 8.0)]
            {
                // Each product is off by the rounding of both factors, which lie in -1 to 1; they add up like a random walk.
                let tolerance = 4.0 * rounding * (case.inputs as f32).sqrt();
                let ours = case.ours(precision, Cpu::Portable, Then::Store);
                let difference = largest_difference(&ours, &case.exact());
                assert!(difference <= tolerance, "{precision:?} {shape:?}: {difference} > {tolerance}");
            }
        }
    }

    #[test]
    fn every_kernel_is_the_portable_one() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
                for then in [Then::Store, Then::Add] {
                    let portable = case.ours(precision, Cpu::Portable, then);
                    for cpu in Cpu::available() {
                        let difference = largest_difference(&case.ours(precision, cpu, then), &portable);
                        // Integers are exact; floats differ by the order of summation.
                        let tolerance = if precision == Precision::Int8 { 1e-5 } else { 1e-6 * case.inputs as f32 };
                        assert!(difference <= tolerance, "{cpu:?} {precision:?} {then:?} {shape:?}: {difference}");
                    }
                }
            }
        }
    }

    #[test]
    fn results_are_added_to_what_is_there() {
        let case = Case::new((7, 100, 65));
        for precision in [Precision::Bf16, Precision::Int8, Precision::Int4] {
            for cpu in Cpu::available() {
                let stored: Vec<f32> = case.ours(precision, cpu, Then::Store).iter().map(|x| x + 0.5).collect();
                assert!(largest_difference(&case.ours(precision, cpu, Then::Add), &stored) < 1e-5);
            }
        }
    }
}
