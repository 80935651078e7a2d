//! A picture's keys and values in 8 bits, of all positions at once.
//!
//! Both are stored less their mean. Of keys, that takes the same off all of a query's scores, and
//! so changes no weight; of values, it is added again to what they become, since weights add up to
//! one. What is left is smaller, and so is its rounding (for keys: SageAttention, arXiv 2410.02367,
//! section 4.2).

use super::int16::{Int16KeysValues, Int16Rows};
use super::stored::{Head, Stored};
use crate::kernels::aligned::Aligned;
use crate::kernels::cpu::Cpu;
use crate::kernels::layout::{KeyPanel, LANES, OFFSET, QUAD};
use crate::kernels::product::Panels;
use crate::kernels::scratch::grow;
use crate::kernels::team::{self, Split};
use crate::kernels::{isa, math};

/// Keys and values of one layer and tile; the memory is used again and again.
pub struct Int8KeysValues {
    heads: usize,
    head_dim: usize,
    len: usize,
    /// [heads, position panels, key_groups, LANES] words, each four of a key's numbers, the first
    /// one lowest.
    keys: Aligned<u32>,
    /// [heads, positions], as a packed product has them.
    scales: Vec<f32>,
    corrections: Vec<i32>,
    /// [heads, positions / QUAD, head_dim panels * LANES] words, each four positions' numbers.
    values: Aligned<u32>,
    /// [heads, head_dim panels * LANES]
    value_scales: Vec<f32>,
    value_means: Vec<f32>,
    cpu: Cpu,
}

/// Positions are as many as are in use, or more, to a multiple of it: what has a weight of 0 there
/// may be anything.
const PADDED: usize = LANES * QUAD;

/// How many words and numbers a head has.
#[derive(Clone, Copy)]
struct Sizes {
    key_groups: usize,
    /// Positions, and a multiple of [`PADDED`].
    positions: usize,
    /// The same of a value's numbers.
    width: usize,
}

impl Sizes {
    fn keys(self) -> usize {
        self.positions * self.key_groups
    }

    fn values(self) -> usize {
        self.positions / QUAD * self.width
    }
}

impl Int8KeysValues {
    /// None yet, of `heads` times `head_dim`.
    pub fn new(heads: usize, head_dim: usize, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0);
        let padded = head_dim.next_multiple_of(LANES);
        Self {
            heads,
            head_dim,
            len: 0,
            keys: Aligned::default(),
            scales: Vec::new(),
            corrections: Vec::new(),
            values: Aligned::default(),
            value_scales: vec![0.0; heads * padded],
            value_means: vec![0.0; heads * padded],
            cpu,
        }
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            key_groups: self.head_dim.div_ceil(QUAD),
            positions: self.len.next_multiple_of(PADDED),
            width: self.head_dim.next_multiple_of(LANES),
        }
    }

    /// Becomes what `all` has, of a picture's patches.
    pub fn set(&mut self, all: &Int16KeysValues) {
        assert_eq!(all.shape(), (self.heads, self.head_dim));
        self.len = all.len();
        let cpu = self.cpu;
        let (sizes, head_dim) = (self.sizes(), self.head_dim);
        let all_keys = Split::new(self.keys.grow(self.heads * sizes.keys()));
        let all_scales = Split::new(grow(&mut self.scales, self.heads * sizes.positions));
        let all_corrections = Split::new(grow(&mut self.corrections, self.heads * sizes.positions));
        let all_values = Split::new(self.values.grow(self.heads * sizes.values()));
        let (all_value_scales, all_means) = (Split::new(&mut self.value_scales), Split::new(&mut self.value_means));
        team::share(self.heads * 2, |task| {
            let head = task / 2;
            // SAFETY: no other task has this head's keys, or values.
            unsafe {
                if task % 2 == 0 {
                    let packed = PackedKeys {
                        words: all_keys.part(head * sizes.keys(), sizes.keys()),
                        scales: all_scales.part(head * sizes.positions, sizes.positions),
                        corrections: all_corrections.part(head * sizes.positions, sizes.positions),
                        mean: vec![0.0; head_dim],
                    };
                    pack_keys(all.keys(head), packed, cpu);
                } else {
                    let packed = PackedValues {
                        words: all_values.part(head * sizes.values(), sizes.values()),
                        scales: all_value_scales.part(head * sizes.width, head_dim),
                        means: all_means.part(head * sizes.width, head_dim),
                    };
                    pack_values(all.values(head), packed, cpu.narrow());
                }
            }
        });
    }

    /// What queries are to look at.
    pub fn stored(&self) -> Stored<'_> {
        let sizes = self.sizes();
        let head = |head: usize| Head {
            keys: Panels::Int8 {
                values: bytemuck::cast_slice(&self.keys[head * sizes.keys()..][..sizes.keys()]),
                scales: &self.scales[head * sizes.positions..][..sizes.positions],
                corrections: Some(&self.corrections[head * sizes.positions..][..sizes.positions]),
            },
            values: Panels::Int8 {
                values: bytemuck::cast_slice(&self.values[head * sizes.values()..][..sizes.values()]),
                scales: &self.value_scales[head * sizes.width..][..sizes.width],
                corrections: None,
            },
            mean: &self.value_means[head * sizes.width..][..self.head_dim],
            value_scales: &[],
        };
        Stored { heads: (0..self.heads).map(head).collect(), head_dim: self.head_dim, len: self.len, cpu: self.cpu }
    }
}

/// Where one head's keys go; see [`Int8KeysValues`].
struct PackedKeys<'a> {
    words: &'a mut [u32],
    scales: &'a mut [f32],
    corrections: &'a mut [i32],
    /// What is taken off the keys [head_dim], from 0 on.
    mean: Vec<f32>,
}

/// Where one head's values go, each of which has head_dim numbers.
struct PackedValues<'a> {
    words: &'a mut [u32],
    scales: &'a mut [f32],
    means: &'a mut [f32],
}

/// One head's keys, from rows.
fn pack_keys(all: Int16Rows<'_>, packed: PackedKeys<'_>, cpu: Cpu) {
    let PackedKeys { words, scales, corrections, mut mean } = packed;
    let head_dim = mean.len();
    for (row, scale) in all.numbers.chunks_exact(head_dim).zip(all.scales) {
        math::add_int16(row, *scale, &mut mean, cpu.narrow());
    }
    mean.iter_mut().for_each(|mean| *mean /= all.count() as f32);
    let rows = all.numbers.chunks(LANES * head_dim).zip(all.scales.chunks(LANES));
    let packed = words.chunks_exact_mut(head_dim.div_ceil(QUAD) * LANES);
    let numbers = scales.chunks_exact_mut(LANES).zip(corrections.chunks_exact_mut(LANES));
    for ((rows, words), (scales, corrections)) in rows.zip(packed).zip(numbers) {
        isa::keys_to_int8(rows, &mean, KeyPanel { words, scales, sums: corrections }, cpu);
        corrections.iter_mut().for_each(|sum| *sum = sum.wrapping_mul(OFFSET));
    }
}

/// One head's values, from rows.
fn pack_values(all: Int16Rows<'_>, packed: PackedValues<'_>, cpu: Cpu) {
    let PackedValues { words, scales, means } = packed;
    let head_dim = means.len();
    let mut reach = Reach::new(head_dim);
    means.fill(0.0);
    for position in 0..all.count() {
        math::spread_int16(all.row(position), means, &mut reach.least, &mut reach.most, cpu);
    }
    let inverses = reach.scales(all.count(), means, scales);
    let quads = words.chunks_exact_mut(head_dim.next_multiple_of(LANES));
    for (quad, words) in quads.take(all.count().div_ceil(QUAD)).enumerate() {
        // The last row again in place of those that are missing: they weigh nothing.
        let rows = std::array::from_fn(|i| all.row((quad * QUAD + i).min(all.count() - 1)));
        math::interleave_int8(rows, means, &inverses, &mut words[..head_dim], cpu);
    }
}

/// Between which bounds each of a value's numbers is.
struct Reach {
    least: Vec<f32>,
    most: Vec<f32>,
}

impl Reach {
    fn new(head_dim: usize) -> Self {
        Self { least: vec![f32::INFINITY; head_dim], most: vec![f32::NEG_INFINITY; head_dim] }
    }

    /// `means`, which are sums of `rows` values, become means, and `scales` what 8 bits have to be
    /// multiplied by; what numbers have to be multiplied by to fit into them.
    fn scales(&self, rows: usize, means: &mut [f32], scales: &mut [f32]) -> Vec<f32> {
        let bounds = means.iter_mut().zip(scales).zip(self.least.iter().zip(&self.most));
        bounds
            .map(|((mean, scale), (least, most))| {
                *mean /= rows as f32;
                let reach = (most - *mean).max(*mean - least);
                *scale = reach / 127.0;
                if reach > 0.0 { 127.0 / reach } else { 0.0 }
            })
            .collect()
    }
}
