//! Keys and values in bf16, to which positions are appended.

use super::super::aligned::Aligned;
use super::super::block::{LANES, PAIR, Panels};
use super::super::team::Split;
use super::super::{Cpu, math};
use super::{Head, Heads, Stored, Weights};

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

    /// Holds `count` positions more. All have to be put into the room for them before anyone looks at them.
    pub fn append(&mut self, count: usize) -> CacheRoom<'_> {
        let first = self.len;
        self.len += count;
        if self.len > self.capacity {
            self.reserve(self.len.next_power_of_two());
        }
        CacheRoom {
            heads: self.heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
            first,
            count,
            keys: Split::new(&mut self.keys),
            values: Split::new(&mut self.values),
            cpu: self.cpu,
        }
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

/// Room for the keys and values of some positions at the end of a cache.
pub struct CacheRoom<'a> {
    heads: usize,
    head_dim: usize,
    capacity: usize,
    /// Of the positions, and how many.
    first: usize,
    count: usize,
    /// As the cache's.
    keys: Split<'a, u32>,
    values: Split<'a, u32>,
    cpu: Cpu,
}

impl CacheRoom<'_> {
    /// Puts the rows of `keys` and `values` from position `at` of the room on; on this thread.
    ///
    /// # Safety
    /// No other thread puts one of these positions, or the one beside it in a pair: pairs begin at even positions of the cache.
    pub unsafe fn put(&self, at: usize, keys: Heads<'_>, values: Heads<'_>) {
        for all in [keys, values] {
            assert_eq!((all.rows, all.heads, all.head_dim), (keys.rows, self.heads, self.head_dim));
        }
        assert!(at <= self.count && keys.rows <= self.count - at);
        let (head_dim, padded, first) = (self.head_dim, self.head_dim.next_multiple_of(LANES), self.first + at);
        let groups = head_dim / PAIR;
        let mut key = vec![0; groups];
        for head in 0..self.heads {
            for row in 0..keys.rows {
                math::to_bf16(keys.row(row, head), &mut key, self.cpu);
                let (panel, lane) = ((first + row) / LANES, (first + row) % LANES);
                let start = (head * self.capacity + panel * LANES) * groups + lane;
                for (group, word) in key.iter().enumerate() {
                    // SAFETY: a word of this position's, which is the caller's.
                    unsafe { *self.keys.at(start + group * LANES) = *word };
                }
            }
            for row in 0..values.rows {
                let position = first + row;
                let pair = (head * self.capacity + position) / PAIR * padded;
                // SAFETY: as the caller promises.
                let pairs = unsafe { self.values.part(pair, head_dim) };
                let value = values.row(row, head);
                // The first of a pair takes what a forgotten position left beside it: multiplied by 0, infinity is none.
                if position.is_multiple_of(PAIR) {
                    math::set_low(value, pairs, self.cpu);
                } else {
                    math::set_high(value, pairs, self.cpu);
                }
            }
        }
    }
}
