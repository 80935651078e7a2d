//! Weights as products want them: packed, and quantised where they have fewer than 16 bits.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::kernels::aligned::{Aligned, Mapped, Numbers};
use crate::kernels::cpu::Cpu;
use crate::kernels::hessian::Hessian;
use crate::kernels::layout::{BLOCK, Grid, High, LANES, OFFSET, PAIR, QUAD};
use crate::kernels::precision::Precision;
use crate::kernels::{isa, math};

/// As [`Panels`](crate::kernels::product::Panels) has them, of all outputs.
pub(super) enum Weights {
    Bf16(Numbers<bf16>),
    Int8 { values: Numbers<i8>, scales: Numbers<f32>, corrections: Numbers<i32> },
    Int4 { values: Numbers<u8>, high: High, scales: Numbers<f16> },
}

impl Weights {
    /// See [`PackedLinear::restore`](super::PackedLinear::restore).
    pub(super) fn restore<E>(
        (outputs, inputs): (usize, usize),
        precision: Precision,
        mut take: impl FnMut(usize) -> Result<Mapped, E>,
    ) -> Result<Self, E> {
        let Sizes { values, scales } = Sizes::new(outputs, inputs, precision);
        if let Some(high) = precision.high() {
            return Ok(Self::Int4 {
                values: Numbers::mapped(take(values)?),
                high,
                scales: Numbers::mapped(take(scales * size_of::<f16>())?),
            });
        }
        Ok(match precision {
            Precision::Bf16 => Self::Bf16(Numbers::mapped(take(values * size_of::<bf16>())?)),
            _ => Self::Int8 {
                values: Numbers::mapped(take(values)?),
                scales: Numbers::mapped(take(scales * size_of::<f32>())?),
                corrections: Numbers::mapped(take(scales * size_of::<i32>())?),
            },
        })
    }

    /// See [`PackedLinear::arrays`](super::PackedLinear::arrays).
    pub(super) fn arrays(&self) -> Vec<&[u8]> {
        match self {
            Self::Bf16(values) => vec![bytemuck::cast_slice(values)],
            Self::Int8 { values, scales, corrections } => {
                vec![bytemuck::cast_slice(values), bytemuck::cast_slice(scales), bytemuck::cast_slice(corrections)]
            }
            Self::Int4 { values, scales, .. } => vec![bytemuck::cast_slice(values), bytemuck::cast_slice(scales)],
        }
    }
}

/// How many numbers a matrix's weights become, in all panels.
struct Sizes {
    values: usize,
    /// And corrections.
    scales: usize,
}

impl Sizes {
    fn new(outputs: usize, inputs: usize, precision: Precision) -> Self {
        let padded = outputs.next_multiple_of(LANES);
        let blocks = inputs.div_ceil(BLOCK);
        if let Some(high) = precision.high() {
            return Self { values: padded / LANES * blocks * high.block_bytes(), scales: padded * blocks };
        }
        match precision {
            Precision::Bf16 => Self { values: padded * inputs.next_multiple_of(PAIR), scales: 0 },
            _ => Self { values: padded * inputs.next_multiple_of(QUAD), scales: padded },
        }
    }
}

/// A matrix that is to be packed.
pub(super) struct Matrix<'a, F> {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) read: F,
    /// Of what comes into it, if that is known.
    pub(super) hessian: Option<&'a Hessian>,
    pub(super) cpu: Cpu,
}

/// Panels that a task packs: they are rounded two at a time.
const AT_ONCE: usize = 2;

/// Memory for some panels on their way.
struct Task {
    /// Their weights [panels * LANES, inputs]; those of outputs that are not there are 0.
    rows: Vec<f32>,
    /// [panels, blocks, LANES]
    scales: Vec<f32>,
    /// What weights are rounded to, four to a word: [panels, groups, LANES].
    words: Vec<u32>,
    sums: Vec<i32>,
}

impl<F: Fn(usize, &mut [f32]) + Sync> Matrix<'_, F> {
    pub(super) fn pack(&self, precision: Precision) -> Weights {
        let sizes = Sizes::new(self.outputs, self.inputs, precision);
        match (precision.high(), precision) {
            (Some(high), _) => self.blocks(sizes, high),
            (None, Precision::Bf16) => self.bf16(sizes),
            (None, _) => self.int8(sizes),
        }
    }

    /// Calls `pack` for some panels at a time, with what `all` has for them, and their weights.
    fn each<P: Send>(&self, all: impl IndexedParallelIterator<Item = P>, pack: impl Fn(P, &mut Task) + Sync) {
        let make = || Task { rows: Vec::new(), scales: Vec::new(), words: Vec::new(), sums: Vec::new() };
        all.enumerate().for_each_init(make, |some, (task, all)| {
            let first = task * AT_ONCE * LANES;
            let lanes = (self.outputs - first).next_multiple_of(LANES).min(AT_ONCE * LANES);
            some.rows.resize(lanes * self.inputs, 0.0);
            some.sums.resize(lanes, 0);
            for (output, row) in (first..).zip(some.rows.chunks_exact_mut(self.inputs)) {
                if output < self.outputs { (self.read)(output, row) } else { row.fill(0.0) }
            }
            pack(all, some);
        });
    }

    fn bf16(&self, sizes: Sizes) -> Weights {
        let panel = self.inputs.div_ceil(PAIR) * LANES * PAIR;
        let mut packed = Aligned::<bf16>::zeros(sizes.values);
        self.each(packed.par_chunks_mut(AT_ONCE * panel), |values, some| {
            for (output, row) in some.rows.chunks_exact(self.inputs).enumerate() {
                let panel = &mut values[output / LANES * panel..][..panel];
                for (i, &w) in row.iter().enumerate() {
                    panel[((i / PAIR) * LANES + output % LANES) * PAIR + i % PAIR] = math::round_bf16(w);
                }
            }
        });
        Weights::Bf16(Numbers::Own(packed))
    }

    fn int8(&self, sizes: Sizes) -> Weights {
        let groups = self.inputs.div_ceil(QUAD);
        let mut packed = Aligned::<i8>::zeros(sizes.values);
        let (mut scales, mut corrections) = (Aligned::<f32>::zeros(sizes.scales), Aligned::<i32>::zeros(sizes.scales));
        let all = packed.par_chunks_mut(AT_ONCE * LANES * groups * QUAD).zip(scales.par_chunks_mut(AT_ONCE * LANES));
        let all = all.zip(corrections.par_chunks_mut(AT_ONCE * LANES));
        self.each(all, |((values, scales), corrections), some| {
            let words: &mut [u32] = bytemuck::cast_slice_mut(values);
            let rows = some.rows.chunks_exact(self.inputs);
            if let Some(hessian) = self.hessian {
                rows.zip(&mut *scales).for_each(|(row, scale)| *scale = math::int8_scale(row, self.cpu));
                let grid = Grid { scales, block: self.inputs, least: -127.0, most: 127.0 };
                hessian.round(&some.rows, &grid, words, &mut some.sums, self.cpu);
            } else {
                some.words.resize(groups, 0);
                for (output, (row, scale)) in rows.zip(scales).enumerate() {
                    *scale = isa::to_int8(row, &mut some.words, self.cpu);
                    some.sums[output] = math::sign(&mut some.words, self.cpu);
                    let panel = &mut words[output / LANES * LANES * groups..][..LANES * groups];
                    let lane = panel.iter_mut().skip(output % LANES).step_by(LANES);
                    lane.zip(&some.words).for_each(|(to, word)| *to = *word);
                }
            }
            corrections.iter_mut().zip(&some.sums).for_each(|(correction, sum)| *correction = OFFSET * sum);
        });
        Weights::Int8 {
            values: Numbers::Own(packed),
            scales: Numbers::Own(scales),
            corrections: Numbers::Own(corrections),
        }
    }

    fn blocks(&self, sizes: Sizes, high: High) -> Weights {
        let (groups, blocks) = (self.inputs.div_ceil(QUAD), self.inputs.div_ceil(BLOCK));
        let panel = blocks * high.block_bytes();
        let mut values = Aligned::<u8>::zeros(sizes.values);
        let mut scales = Aligned::<f16>::zeros(sizes.scales);
        let all = values.par_chunks_mut(AT_ONCE * panel).zip(scales.par_chunks_mut(AT_ONCE * blocks * LANES));
        self.each(all, |(values, scales), some| {
            some.words.clear();
            some.words.resize(some.sums.len() * groups, 0);
            for (output, row) in some.rows.chunks_exact(self.inputs).enumerate() {
                let (panel, lane) = (output / LANES, output % LANES);
                for (b, block) in row.chunks(BLOCK).enumerate() {
                    let (scale, integers) = quantise(block, high, self.cpu);
                    scales[(panel * blocks + b) * LANES + lane] = scale;
                    if self.hessian.is_none() {
                        let first = panel * groups + b * BLOCK / QUAD;
                        let count = block.len().div_ceil(QUAD);
                        for (group, quad) in integers.as_chunks::<QUAD>().0.iter().enumerate().take(count) {
                            let bytes = quad.map(|integer| integer.wrapping_sub(high.offset() as u8));
                            some.words[(first + group) * LANES + lane] = u32::from_le_bytes(bytes);
                        }
                    }
                }
            }
            if let Some(hessian) = self.hessian {
                some.scales.clear();
                some.scales.extend(scales.iter().map(|scale| scale.to_f32()));
                let (least, most) = (-high.offset() as f32, (high.offset() - 1) as f32);
                let grid = Grid { scales: &some.scales, block: BLOCK, least, most };
                hessian.round(&some.rows, &grid, &mut some.words, &mut some.sums, self.cpu);
            }
            let every = |byte: i32| u32::from_ne_bytes([byte as u8; QUAD]);
            let (mask, offset) = (every(2 * high.offset() - 1), every(high.offset()));
            for (values, words) in values.chunks_exact_mut(panel).zip(some.words.chunks_exact(groups * LANES)) {
                let all = values.chunks_exact_mut(high.block_bytes()).zip(words.chunks(BLOCK / QUAD * LANES));
                for (values, words) in all {
                    let values: &mut [u32] = bytemuck::cast_slice_mut(values);
                    for group in 0..BLOCK / QUAD {
                        let (vector, shift) = high.place(group);
                        for lane in 0..LANES {
                            // What is not there is 0.
                            let word = words.get(group * LANES + lane).map_or(0, |word| *word);
                            let weights = word & mask ^ offset;
                            values[group / 2 * LANES + lane] |= (weights & every(0xf)) << (group % 2 * 4);
                            if high != High::NONE {
                                values[vector / QUAD + lane] |= (weights >> 4 & every(0xf)) << shift;
                            }
                        }
                    }
                }
            }
        });
        Weights::Int4 { values: Numbers::Own(values), high, scales: Numbers::Own(scales) }
    }
}

/// How much less than half of all levels the weight of largest magnitude in a block may become, and
/// with which sign: ggml's Q4_0 takes -8 always, and with the others those in between are often
/// closer.
const EXTREMES: [(f32, f32); 4] = [(0.0, -1.0), (0.5, -1.0), (1.0, -1.0), (1.0, 1.0)];

/// The scale of a block, and its weights plus the offset, with the least squares of errors.
fn quantise(block: &[f32], high: High, cpu: Cpu) -> (f16, [u8; BLOCK]) {
    let extreme = block.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let offset = high.offset();
    let mut best = (f32::INFINITY, f16::ZERO, [offset as u8; BLOCK]);
    for (less, sign) in EXTREMES {
        let scale = f16::from_f32(extreme / (sign * (offset as f32 - less)));
        if scale == f16::ZERO {
            continue;
        }
        let mut integers = [0; BLOCK];
        let error = math::to_levels(block, (scale.to_f32(), offset), &mut integers, cpu);
        if error < best.0 {
            best = (error, scale, integers);
        }
    }
    (best.1, best.2)
}
