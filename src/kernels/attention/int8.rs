//! Keys and values in 8 bits, of all positions at once.
//!
//! Both are stored less their mean. Of keys, that takes the same off all of a query's scores, and so changes no weight; of values, it is
//! added again to what they become, since weights add up to one. What is left is smaller, and so is its rounding (for keys:
//! SageAttention, arXiv 2410.02367, section 4.2).

use super::super::aligned::Aligned;
use super::super::block::{LANES, OFFSET, Panels, QUAD};
use super::super::rows::grow;
use super::super::team::{self, Split};
use super::super::{Cpu, math};
use super::{Head, Heads, Stored, set_lane};

/// Keys and values of one layer and tile; the memory is used again and again.
pub struct Int8KeysValues {
    heads: usize,
    head_dim: usize,
    len: usize,
    /// [heads, position panels, key_groups, LANES] words, each four of a key's numbers, the first one lowest.
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

/// Positions are as many as are in use, or more, to a multiple of it: what has a weight of 0 there may be anything.
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

    /// Becomes these `keys` and `values`.
    pub fn set(&mut self, keys: Heads<'_>, values: Heads<'_>) {
        self.len = keys.rows;
        for all in [keys, values] {
            assert_eq!((all.rows, all.heads, all.head_dim), (self.len, self.heads, self.head_dim));
        }
        let (sizes, head_dim, cpu) = (self.sizes(), self.head_dim, self.cpu);
        let all_keys = Split::new(self.keys.grow(self.heads * sizes.keys()));
        let all_scales = Split::new(grow(&mut self.scales, self.heads * sizes.positions));
        let all_corrections = Split::new(grow(&mut self.corrections, self.heads * sizes.positions));
        let all_values = Split::new(self.values.grow(self.heads * sizes.values()));
        let (all_value_scales, all_means) = (Split::new(&mut self.value_scales), Split::new(&mut self.value_means));
        team::share(self.heads, |head| {
            // SAFETY: no other task has this head.
            let (packed, scales, corrections) = unsafe {
                (
                    all_keys.part(head * sizes.keys(), sizes.keys()),
                    all_scales.part(head * sizes.positions, sizes.positions),
                    all_corrections.part(head * sizes.positions, sizes.positions),
                )
            };
            pack_keys((keys, head), packed, scales, corrections, cpu);
            // SAFETY: as above.
            let (packed, scales, means) = unsafe {
                (
                    all_values.part(head * sizes.values(), sizes.values()),
                    all_value_scales.part(head * sizes.width, sizes.width),
                    all_means.part(head * sizes.width, sizes.width),
                )
            };
            pack_values((values, head), packed, &mut scales[..head_dim], &mut means[..head_dim], cpu);
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
        };
        Stored { heads: (0..self.heads).map(head).collect(), head_dim: self.head_dim, len: self.len, cpu: self.cpu }
    }
}

/// One head's keys.
fn pack_keys(keys: (Heads<'_>, usize), packed: &mut [u32], scales: &mut [f32], corrections: &mut [i32], cpu: Cpu) {
    let (all, head) = keys;
    let (mut mean, mut key) = (vec![0.0; all.head_dim], vec![0; all.head_dim.div_ceil(QUAD)]);
    (0..all.rows).for_each(|row| math::add(&mut mean, all.row_of_many(row, head), cpu));
    math::scale(&mut mean, (all.rows as f32).recip(), cpu);
    for position in 0..all.rows {
        let (scale, sum) = math::centre_to_int8(all.row_of_many(position, head), &mean, &mut key, cpu);
        (scales[position], corrections[position]) = (scale, OFFSET * sum);
        set_lane(packed, position, &key);
    }
}

/// One head's values, with a scale for each of a value's numbers.
fn pack_values(values: (Heads<'_>, usize), packed: &mut [u32], scales: &mut [f32], means: &mut [f32], cpu: Cpu) {
    let (all, head) = values;
    let (mut least, mut most) = (vec![f32::INFINITY; all.head_dim], vec![f32::NEG_INFINITY; all.head_dim]);
    means.fill(0.0);
    (0..all.rows).for_each(|row| math::spread(all.row_of_many(row, head), means, &mut least, &mut most, cpu));
    math::scale(means, (all.rows as f32).recip(), cpu);
    let mut inverses = vec![0.0; all.head_dim];
    for (i, (scale, inverse)) in scales.iter_mut().zip(&mut inverses).enumerate() {
        let reach = (most[i] - means[i]).max(means[i] - least[i]);
        (*scale, *inverse) = (reach / 127.0, if reach > 0.0 { 127.0 / reach } else { 0.0 });
    }
    let quads = packed.chunks_exact_mut(all.head_dim.next_multiple_of(LANES));
    for (quad, words) in quads.take(all.rows.div_ceil(QUAD)).enumerate() {
        // The last row again in place of those that are missing: they weigh nothing.
        let rows = std::array::from_fn(|i| all.row((quad * QUAD + i).min(all.rows - 1), head));
        math::interleave_int8(rows, means, &inverses, &mut words[..all.head_dim], cpu);
    }
}
