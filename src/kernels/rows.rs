//! Rows of activations in a product's precision, made from f32 in the same pass as what comes
//! before the product.

use std::cell::Cell;

use super::block::{BLOCK, OFFSET, PAIR, QUAD};
use super::rotation::spread;
use super::team::{self, Split};
use super::{Cpu, Precision, math};

/// From as many rows on, they are made for 8-bit weights where weights have 4: those become such,
/// for a moment, since that is done once for all rows.
const MANY: usize = 16;

/// As many halves has a row of 16 bits.
pub(super) const HALVES: usize = 2;

/// Rows that one task makes.
const TASK: usize = 8;

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
    /// Whether a row that is alone has 16 bits where that takes its time, too.
    pub fine: bool,
    /// Whether the one row that there is has 16 bits: its upper halves come first, then its lower
    /// ones, as if they were two rows, whose products are to be added up.
    pub(super) halved: bool,
    pub(super) width: usize,
}

impl Rows {
    /// Becomes `count` rows of `width` for weights of `precision`; `make` writes the numbers of the
    /// row that it is given.
    pub fn set(
        &mut self,
        precision: Precision,
        (count, width): (usize, usize),
        cpu: Cpu,
        make: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.pack(precision, (count, width), cpu, |row, pack| {
            scratch(width, |numbers| {
                make(row, numbers);
                pack(numbers);
            });
        });
    }

    /// The same; `give` gives a row's numbers to the function that it is given.
    fn pack(
        &mut self,
        precision: Precision,
        (count, width): (usize, usize),
        cpu: Cpu,
        give: impl Fn(usize, &dyn Fn(&[f32])) + Sync,
    ) {
        let fine = precision != Precision::Bf16 && (self.fine || cpu.waits_for_weights(precision));
        let halves = if fine && count == 1 { HALVES } else { 1 };
        self.shape(precision, (count * halves, width));
        (self.count, self.halved) = (count, halves > 1);
        let (groups, blocks, precision) = (self.groups, self.blocks(), self.precision);
        let (words, scales, sums) =
            (Split::new(&mut self.words), Split::new(&mut self.scales), Split::new(&mut self.sums));
        team::share(count.div_ceil(TASK), |task| {
            for row in task * TASK..count.min((task + 1) * TASK) {
                give(row, &|numbers| {
                    // SAFETY: no other task has this row, or these halves of it.
                    let words = unsafe { words.part(row * groups, halves * groups) };
                    if precision == Precision::Bf16 {
                        return math::to_bf16(numbers, words, cpu);
                    }
                    // SAFETY: as above.
                    let scales = unsafe { scales.part(row, halves) };
                    if halves > 1 {
                        let (high, low) = words.split_at_mut(groups);
                        scales[1] = math::to_int8_twice(numbers, high, low, cpu);
                        scales[0] = 256.0 * scales[1];
                    } else {
                        scales[0] = math::to_int8(numbers, words, cpu);
                    }
                    if precision == Precision::Int4 {
                        // SAFETY: as above.
                        let sums = unsafe { sums.part(row * blocks, halves * blocks) };
                        for (words, sums) in words.chunks_exact_mut(groups).zip(sums.chunks_exact_mut(blocks)) {
                            math::sign_and_sum(words, sums, cpu);
                        }
                    }
                });
            }
        });
    }

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

    /// Becomes the rows of `x`, each `width` long.
    pub fn convert(&mut self, precision: Precision, x: &[f32], width: usize, cpu: Cpu) {
        self.pack(precision, (x.len() / width, width), cpu, |row, pack| pack(&x[row * width..][..width]));
    }

    /// LayerNorm of rows of `x` as long as `weight` and `bias`.
    pub fn layer_norm(
        &mut self,
        precision: Precision,
        x: &[f32],
        (weight, bias): (&[f32], &[f32]),
        eps: f32,
        cpu: Cpu,
    ) {
        let width = weight.len();
        assert_eq!(bias.len(), width);
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::layer_norm(&x[row * width..][..width], weight, bias, eps, out, cpu);
        });
    }

    /// RMSNorm of rows of `x` as long as `weight`.
    pub fn rms_norm(&mut self, precision: Precision, x: &[f32], weight: &[f32], eps: f32, cpu: Cpu) {
        let width = weight.len();
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::rms_norm(&x[row * width..][..width], weight, eps, out, cpu.narrow());
        });
    }

    /// GELU, by its tanh approximation, of rows of `x`; spread in blocks of `block`, see [`spread`].
    pub fn gelu(&mut self, precision: Precision, x: &[f32], (width, block): (usize, usize), cpu: Cpu) {
        self.set(precision, (x.len() / width, width), cpu, |row, out| {
            math::gelu(&x[row * width..][..width], out, cpu.narrow());
            spread(out, block, cpu.narrow());
        });
    }

    /// From rows of gates and as many numbers that they gate: silu(gate) * number; spread in blocks
    /// of `block`, see [`spread`].
    pub fn silu_mul(&mut self, precision: Precision, x: &[f32], (width, block): (usize, usize), cpu: Cpu) {
        self.set(precision, (x.len() / (2 * width), width), cpu, |row, out| {
            let (gates, numbers) = x[row * 2 * width..][..2 * width].split_at(width);
            math::silu_mul(gates, numbers, out, cpu.narrow());
            spread(out, block, cpu.narrow());
        });
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

/// A row of weights becomes what their 8 bits leave of it.
pub fn take_off_int8(row: &mut [f32], cpu: Cpu) {
    let mut words = vec![0u32; row.len().div_ceil(QUAD)];
    let scale = math::to_int8(row, &mut words, cpu);
    for (x, &byte) in row.iter_mut().zip(bytemuck::cast_slice::<_, u8>(&words)) {
        *x -= (i32::from(byte) - OFFSET) as f32 * scale;
    }
}

/// LayerNorm of a row; on this thread.
pub fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), eps: f32, out: &mut [f32], cpu: Cpu) {
    math::layer_norm(x, weight, bias, eps, out, cpu);
}

/// RMSNorm of a row; on this thread.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], cpu: Cpu) {
    math::rms_norm(x, weight, eps, out, cpu.narrow());
}

/// Makes sure of at least `len` numbers; those that are there stay what they are.
pub fn grow<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

/// Calls `use_it` with `len` numbers of no particular value, out of memory that stays with the
/// thread.
pub(super) fn scratch<R>(len: usize, use_it: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    // Whoever asks while it is in use gets some of its own.
    let mut memory = MEMORY.take();
    let result = use_it(grow(&mut memory, len));
    MEMORY.set(memory);
    result
}
