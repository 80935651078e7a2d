//! Keys and values in bf16, to which positions are appended one after another.

use super::super::aligned::Aligned;
use super::super::block::{LANES, PAIR, Panels};
use super::super::team::{self, Split};
use super::super::{Cpu, math};
use super::{Head, Heads, Stored, Weights, set_lane};

/// Keys and values of one layer and sequence.
pub struct KeyValueCache {
    heads: usize,
    head_dim: usize,
    /// Positions that fit; a multiple of [`LANES`].
    capacity: usize,
    len: usize,
    /// [heads, position panels, head_dim / PAIR, LANES] words, each two of a key's numbers, the first one lower.
    keys: Aligned<u32>,
    /// [heads, positions / PAIR, head_dim panels * LANES] words, each two positions' numbers.
    values: Aligned<u32>,
    cpu: Cpu,
}

impl KeyValueCache {
    /// An empty cache of `heads` times `head_dim`, which must be even.
    pub fn new(heads: usize, head_dim: usize, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0 && head_dim.is_multiple_of(PAIR));
        Self { heads, head_dim, capacity: 0, len: 0, keys: Aligned::default(), values: Aligned::default(), cpu }
    }

    /// Forgets all from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `positions` in all.
    fn reserve(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        let capacity = positions.next_multiple_of(LANES);
        let padded = self.head_dim.next_multiple_of(LANES);
        // Words of two positions: capacities are even.
        for (memory, words) in [(&mut self.keys, self.head_dim), (&mut self.values, padded)] {
            let (old, new) = (self.capacity / PAIR * words, capacity / PAIR * words);
            let mut grown = Aligned::zeros(self.heads * new);
            // Within a head, further positions come behind the others, in keys and in values.
            for (to, from) in grown.chunks_exact_mut(new).zip(memory.chunks_exact(old.max(1))) {
                to[..old].copy_from_slice(&from[..old]);
            }
            *memory = grown;
        }
        self.capacity = capacity;
    }

    /// Appends the rows of `keys` and `values`.
    pub fn append(&mut self, keys: Heads<'_>, values: Heads<'_>) {
        let tokens = keys.rows;
        for all in [keys, values] {
            assert_eq!((all.rows, all.heads, all.head_dim), (tokens, self.heads, self.head_dim));
        }
        if self.len + tokens > self.capacity {
            self.reserve((self.len + tokens).next_power_of_two());
        }
        let (head_dim, padded, first, cpu) = (self.head_dim, self.head_dim.next_multiple_of(LANES), self.len, self.cpu);
        let groups = head_dim / PAIR;
        let (key_words, value_words) = (self.capacity * groups, self.capacity / PAIR * padded);
        let (all_keys, all_values) = (Split::new(&mut self.keys), Split::new(&mut self.values));
        team::share(self.heads * 2, |task| {
            let head = task / 2;
            if task % 2 == 0 {
                // SAFETY: no other task has this head's keys.
                let packed = unsafe { all_keys.part(head * key_words, key_words) };
                let mut key = vec![0; groups];
                for token in 0..tokens {
                    math::to_bf16(keys.row(token, head), &mut key, cpu);
                    set_lane(packed, first + token, &key);
                }
                return;
            }
            // SAFETY: no other task has this head's values.
            let packed = unsafe { all_values.part(head * value_words, value_words) };
            for token in 0..tokens {
                let position = first + token;
                let pairs = &mut packed[position / PAIR * padded..][..head_dim];
                let value = values.row(token, head);
                // The first of a pair takes what a forgotten position left beside it: multiplied by 0, infinity is none.
                if position.is_multiple_of(PAIR) {
                    math::set_low(value, pairs, cpu);
                } else {
                    math::set_high(value, pairs, cpu);
                }
            }
        });
        self.len += tokens;
    }

    /// What queries are to look at.
    pub fn stored(&self) -> Stored<'_> {
        let head = |head: usize| {
            let (keys, values) = self.packed(head);
            Head {
                keys: Panels::Bf16(bytemuck::cast_slice(keys)),
                values: Panels::Bf16(bytemuck::cast_slice(values)),
                mean: &[],
            }
        };
        Stored {
            heads: (0..self.heads).map(head).collect(),
            head_dim: self.head_dim,
            len: self.len,
            weights: Weights::Bytes,
            cpu: self.cpu,
        }
    }

    /// A head's keys and values, of all positions that fit.
    pub(super) fn packed(&self, head: usize) -> (&[u32], &[u32]) {
        let (groups, padded) = (self.head_dim / PAIR, self.head_dim.next_multiple_of(LANES));
        let (key_words, value_words) = (self.capacity * groups, self.capacity / PAIR * padded);
        (&self.keys[head * key_words..][..key_words], &self.values[head * value_words..][..value_words])
    }

    /// Positions that are held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many heads, and head_dim.
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.heads, self.head_dim)
    }
}
