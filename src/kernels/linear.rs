//! Linear layers: f32 activations times weights in bf16 or int8, packed once, with bias and activation in the same pass.
//!
//! Activations are converted row by row to the weights' precision: to bf16 by rounding, to int8 with one scale per row.

use half::bf16;
use rayon::prelude::*;

use super::block::{Block, LANES, OFFSET, Out, PAIR, PANELS, Panels, QUAD, Rows, Strides};
use super::{Cpu, math};

/// Rows that one task takes: enough to use a panel's weights again and again from cache, few enough to share out.
const ROWS: usize = 128;

/// Pieces of a thread's share where there is one row: a slower thread leaves some to the others.
const PIECES: usize = 2;

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Bf16,
    /// One scale per output; activations are quantised too, with one scale per row.
    Int8,
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    None,
    /// GELU by its tanh approximation.
    Gelu,
}

/// `rows` [rows, 2 * width], gates and then the numbers they gate: silu(gate) * number, [rows, width].
pub fn silu_mul(mut rows: Vec<f32>, width: usize, cpu: Cpu) -> Vec<f32> {
    rows.par_chunks_exact_mut(2 * width).for_each(|row| {
        let (gate, up) = row.split_at_mut(width);
        math::silu_mul(gate, up, cpu);
    });
    let count = rows.len() / (2 * width);
    for row in 1..count {
        rows.copy_within(row * 2 * width..row * 2 * width + width, row * width);
    }
    rows.truncate(count * width);
    rows
}

/// A weight matrix, ready for products.
pub struct PackedLinear {
    inputs: usize,
    outputs: usize,
    weights: Weights,
    /// [outputs], or empty.
    bias: Vec<f32>,
    cpu: Cpu,
}

/// [panels, groups, LANES, group]
enum Weights {
    Bf16(Vec<bf16>),
    Int8 { values: Vec<i8>, scales: Vec<f32>, corrections: Vec<i32> },
}

impl PackedLinear {
    /// Packs `weight` [outputs, inputs]. `bias`: [outputs], or empty.
    pub fn new(weight: &[f32], bias: Vec<f32>, inputs: usize, precision: Precision, cpu: Cpu) -> Self {
        let outputs = weight.len() / inputs;
        assert!(weight.len() == outputs * inputs && (bias.is_empty() || bias.len() == outputs));
        let weights = match precision {
            Precision::Bf16 => Weights::Bf16(pack::<_, PAIR>(weight, inputs, bf16::ZERO, |_, w| bf16::from_f32(w))),
            Precision::Int8 => quantise(weight, inputs),
        };
        Self { inputs, outputs, weights, bias, cpu }
    }

    /// `x` [rows, inputs] -> [rows, outputs], on the caller's rayon pool.
    pub fn multiply(&self, x: &[f32], activation: Activation) -> Vec<f32> {
        let row_count = x.len() / self.inputs;
        assert_eq!(x.len(), row_count * self.inputs);
        let mut out = vec![0.0; row_count * self.outputs];
        let rows = self.convert(x);
        let panels = self.outputs.div_ceil(LANES);
        let start = Shared(out.as_mut_ptr());
        // Chunks of rows follow each other, so that a thread finds its panels in cache again.
        let chunks = row_count.div_ceil(ROWS);
        let tasks = panels.div_ceil(PANELS) * chunks;
        // A decode step's tasks take a microsecond each: a thread takes its share of them in a few pieces.
        let at_once = if row_count == 1 { tasks.div_ceil(PIECES * rayon::current_num_threads()) } else { 1 };
        (0..tasks).into_par_iter().with_min_len(at_once).for_each(|task| {
            let (panel, row) = (task / chunks * PANELS, task % chunks * ROWS);
            let block = Block {
                rows: &rows,
                first_row: row,
                row_count: ROWS.min(row_count - row),
                panels: self.panels(panel, rows.groups),
                panel_count: PANELS.min(panels - panel),
                strides: Strides { panel: rows.groups, group: 1 },
            };
            let column = panel * LANES;
            let columns = (PANELS * LANES).min(self.outputs - column);
            // SAFETY: the rows and columns lie in `out`, which outlives the tasks; no other task has both.
            let mut out = unsafe { Out::new(start.at(row * self.outputs + column), self.outputs, columns) };
            block.run(&mut out, self.cpu);
            let bias = self.bias.get(column..column + columns).unwrap_or_default();
            for row in 0..block.row_count {
                // SAFETY: the block has this row.
                let row = unsafe { out.row(row) };
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                if activation == Activation::Gelu {
                    math::gelu(row, self.cpu);
                }
            }
        });
        out
    }

    fn panels(&self, first: usize, groups: usize) -> Panels<'_> {
        match &self.weights {
            Weights::Bf16(values) => Panels::Bf16(&values[first * groups * LANES * PAIR..]),
            Weights::Int8 { values, scales, corrections } => Panels::Int8 {
                values: &values[first * groups * LANES * QUAD..],
                scales: &scales[first * LANES..],
                corrections: &corrections[first * LANES..],
            },
        }
    }

    fn convert(&self, x: &[f32]) -> Rows {
        let row_count = x.len() / self.inputs;
        match self.weights {
            Weights::Bf16(_) => {
                let groups = self.inputs.div_ceil(PAIR);
                let mut words = vec![0; row_count * groups];
                words
                    .par_chunks_exact_mut(groups)
                    .zip(x.par_chunks_exact(self.inputs))
                    .for_each(|(words, x)| math::to_bf16(x, words, self.cpu));
                Rows { words, groups, scales: Vec::new() }
            }
            Weights::Int8 { .. } => {
                let groups = self.inputs.div_ceil(QUAD);
                let mut words = vec![0; row_count * groups];
                let mut scales = vec![0.0; row_count];
                words
                    .par_chunks_exact_mut(groups)
                    .zip(x.par_chunks_exact(self.inputs))
                    .zip(scales.par_iter_mut())
                    .for_each(|((words, x), scale)| *scale = math::to_int8(x, words, self.cpu));
                Rows { words, groups, scales }
            }
        }
    }
}

/// A matrix that tasks share out between them.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);

// SAFETY: whoever uses the pointer says which part is whose.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// The matrix has more than `index` elements.
    pub(super) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: as the caller promises.
        unsafe { self.0.add(index) }
    }
}

fn quantise(weight: &[f32], inputs: usize) -> Weights {
    let largest = |row: &[f32]| row.iter().fold(0f32, |m, w| m.max(w.abs()));
    let mut scales: Vec<f32> = weight.par_chunks_exact(inputs).map(|row| largest(row) / 127.0).collect();
    let quantised = |output: usize, w: f32| if scales[output] > 0.0 { (w / scales[output]).round() as i8 } else { 0 };
    let values = pack::<_, QUAD>(weight, inputs, 0, quantised);
    let sum = |(output, row): (usize, &[f32])| row.iter().map(|&w| i32::from(quantised(output, w))).sum::<i32>();
    let mut corrections: Vec<i32> = weight.par_chunks_exact(inputs).enumerate().map(|row| OFFSET * sum(row)).collect();
    let padded = scales.len().next_multiple_of(LANES);
    scales.resize(padded, 0.0);
    corrections.resize(padded, 0);
    Weights::Int8 { values, scales, corrections }
}

/// [panels, groups, LANES, GROUP]; what lies beyond the matrix is `zero`.
fn pack<T: Copy + Send + Sync, const GROUP: usize>(
    weight: &[f32],
    inputs: usize,
    zero: T,
    convert: impl Fn(usize, f32) -> T + Sync,
) -> Vec<T> {
    let outputs = weight.len() / inputs;
    let panel = inputs.div_ceil(GROUP) * LANES * GROUP;
    let mut packed = vec![zero; outputs.div_ceil(LANES) * panel];
    packed.par_chunks_exact_mut(panel).enumerate().for_each(|(p, panel)| {
        for (lane, output) in (p * LANES..outputs.min((p + 1) * LANES)).enumerate() {
            for (i, &w) in weight[output * inputs..][..inputs].iter().enumerate() {
                panel[((i / GROUP) * LANES + lane) * GROUP + i % GROUP] = convert(output, w);
            }
        }
    });
    packed
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

        fn ours(&self, precision: Precision, cpu: Cpu, activation: Activation) -> Vec<f32> {
            PackedLinear::new(&self.w, self.bias.clone(), self.inputs, precision, cpu).multiply(&self.x, activation)
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
            for (precision, rounding) in [(Precision::Bf16, 2f32.powi(-8)), (Precision::Int8, 1.0 / 127.0)] {
                // Each product is off by the rounding of both factors, which lie in -1 to 1; they add up like a random walk.
                let tolerance = 4.0 * rounding * (case.inputs as f32).sqrt();
                let ours = case.ours(precision, Cpu::Portable, Activation::None);
                let difference = largest_difference(&ours, &case.exact());
                assert!(difference <= tolerance, "{precision:?} {shape:?}: {difference} > {tolerance}");
            }
        }
    }

    #[test]
    fn every_kernel_is_the_portable_one() {
        for shape in SHAPES {
            let case = Case::new(shape);
            for precision in [Precision::Bf16, Precision::Int8] {
                for activation in [Activation::None, Activation::Gelu] {
                    let portable = case.ours(precision, Cpu::Portable, activation);
                    let difference = largest_difference(&case.ours(precision, Cpu::detect(), activation), &portable);
                    // Integers are exact; floats differ by the order of summation.
                    let tolerance = if precision == Precision::Int8 { 1e-5 } else { 1e-6 * case.inputs as f32 };
                    assert!(difference <= tolerance, "{precision:?} {activation:?} {shape:?}: {difference}");
                }
            }
        }
    }
}
