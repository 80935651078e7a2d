//! Keys and values in bf16 or 8 bits, to which positions are appended.
//!
//! In 8 bits, each key and each value has a scale of its own: what is appended changes nothing that
//! is there.

use super::stored::{Head, Heads, Stored};
use crate::kernels::aligned::Aligned;
use crate::kernels::cpu::Cpu;
use crate::kernels::isa;
use crate::kernels::layout::{LANES, OFFSET, PAIR, QUAD};
use crate::kernels::math;
use crate::kernels::precision::Precision;
use crate::kernels::product::Panels;
use crate::kernels::team::Split;

/// Keys and values of one layer and sequence.
pub struct KeyValueCache {
    heads: usize,
    head_dim: usize,
    /// Bf16 or Int8.
    precision: Precision,
    /// Positions that fit; a multiple of [`ROOM`].
    capacity: usize,
    len: usize,
    /// [heads, position panels, words of a key, LANES] words, each two or four of a key's numbers,
    /// the first one lowest.
    keys: Aligned<u32>,
    /// [heads, positions / 2 or 4, head_dim panels * LANES] words, each as many positions' numbers.
    values: Aligned<u32>,
    /// [heads, positions] in 8 bits, else empty: what a key's and a value's numbers have to be
    /// multiplied by, and the sum of the former times OFFSET.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    corrections: Vec<i32>,
    /// Scales of a value's columns: they have none.
    ones: Vec<f32>,
    cpu: Cpu,
}

/// Kernels look at as many positions at a time.
const ROOM: usize = LANES * QUAD;

impl KeyValueCache {
    /// An empty cache of `heads` times `head_dim`, which must be even, in bf16, or else in 8 bits.
    pub fn new(heads: usize, head_dim: usize, precision: Precision, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0 && head_dim.is_multiple_of(PAIR));
        Self {
            heads,
            head_dim,
            precision: if precision == Precision::Bf16 { precision } else { Precision::Int8 },
            capacity: 0,
            len: 0,
            keys: Aligned::default(),
            values: Aligned::default(),
            key_scales: Vec::new(),
            value_scales: Vec::new(),
            corrections: Vec::new(),
            ones: vec![1.0; head_dim.next_multiple_of(LANES)],
            cpu,
        }
    }

    /// Bytes of a position in such a cache.
    pub fn position_bytes(heads: usize, head_dim: usize, precision: Precision) -> u64 {
        let Sizes { keys, values, .. } = Sizes::new(head_dim, precision, ROOM);
        let numbers = if precision == Precision::Bf16 { 0 } else { 3 * ROOM };
        let of_head = (keys + values + numbers) * size_of::<u32>() / ROOM;
        (heads as u64).saturating_mul(of_head as u64)
    }

    /// Forgets all from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn sizes(&self) -> Sizes {
        Sizes::new(self.head_dim, self.precision, self.capacity)
    }

    /// Makes room for `positions` in all.
    fn reserve(&mut self, positions: usize) {
        let old = self.sizes();
        self.capacity = positions.next_multiple_of(ROOM);
        let new = self.sizes();
        for (memory, old, new) in [(&mut self.keys, old.keys, new.keys), (&mut self.values, old.values, new.values)] {
            let mut grown = Aligned::zeros(self.heads * new);
            widen(memory, old, &mut grown, new);
            *memory = grown;
        }
        if self.precision == Precision::Int8 {
            for scales in [&mut self.key_scales, &mut self.value_scales] {
                let mut grown = vec![0.0; self.heads * new.positions];
                widen(scales, old.positions, &mut grown, new.positions);
                *scales = grown;
            }
            let mut grown = vec![0; self.heads * new.positions];
            widen(&self.corrections, old.positions, &mut grown, new.positions);
            self.corrections = grown;
        }
    }

    /// Holds `count` positions more. All have to be put into the room for them before anyone looks
    /// at them.
    pub fn append(&mut self, count: usize) -> CacheRoom<'_> {
        let first = self.len;
        self.len += count;
        if self.len > self.capacity {
            self.reserve(self.len.next_power_of_two());
        }
        CacheRoom {
            heads: self.heads,
            head_dim: self.head_dim,
            precision: self.precision,
            sizes: self.sizes(),
            first,
            count,
            keys: Split::new(&mut self.keys),
            values: Split::new(&mut self.values),
            key_scales: Split::new(&mut self.key_scales),
            value_scales: Split::new(&mut self.value_scales),
            corrections: Split::new(&mut self.corrections),
            cpu: self.cpu,
        }
    }

    /// What queries are to look at.
    pub fn stored(&self) -> Stored<'_> {
        let Sizes { keys, values, positions, .. } = self.sizes();
        let head = |head: usize| {
            let (keys, values) = (&self.keys[head * keys..][..keys], &self.values[head * values..][..values]);
            if self.precision == Precision::Bf16 {
                return Head {
                    keys: Panels::Bf16(bytemuck::cast_slice(keys)),
                    values: Panels::Bf16(bytemuck::cast_slice(values)),
                    mean: &[],
                    value_scales: &[],
                };
            }
            Head {
                keys: Panels::Int8 {
                    values: bytemuck::cast_slice(keys),
                    scales: &self.key_scales[head * positions..][..positions],
                    corrections: Some(&self.corrections[head * positions..][..positions]),
                },
                values: Panels::Int8 { values: bytemuck::cast_slice(values), scales: &self.ones, corrections: None },
                mean: &[],
                value_scales: &self.value_scales[head * positions..][..positions],
            }
        };
        Stored { heads: (0..self.heads).map(head).collect(), head_dim: self.head_dim, len: self.len, cpu: self.cpu }
    }
}

/// How many words and numbers a head has.
#[derive(Clone, Copy)]
struct Sizes {
    positions: usize,
    key_words: usize,
    keys: usize,
    values: usize,
}

impl Sizes {
    fn new(head_dim: usize, precision: Precision, positions: usize) -> Self {
        let of_word = if precision == Precision::Bf16 { PAIR } else { QUAD };
        let key_words = head_dim.div_ceil(of_word);
        let values = positions / of_word * head_dim.next_multiple_of(LANES);
        Self { positions, key_words, keys: positions * key_words, values }
    }
}

/// Each head's `old` numbers become the first of its `new` ones: further positions come behind the
/// others.
fn widen<T: Copy>(from: &[T], old: usize, to: &mut [T], new: usize) {
    for (to, from) in to.chunks_exact_mut(new).zip(from.chunks_exact(old.max(1))) {
        to[..old].copy_from_slice(&from[..old]);
    }
}

/// Room for the keys and values of some positions at the end of a cache.
pub struct CacheRoom<'a> {
    heads: usize,
    head_dim: usize,
    precision: Precision,
    sizes: Sizes,
    /// Of the positions, and how many.
    first: usize,
    count: usize,
    /// As the cache's.
    keys: Split<'a, u32>,
    values: Split<'a, u32>,
    key_scales: Split<'a, f32>,
    value_scales: Split<'a, f32>,
    corrections: Split<'a, i32>,
    cpu: Cpu,
}

impl CacheRoom<'_> {
    /// Puts the rows of `keys` and `values` from position `at` of the room on; on this thread.
    ///
    /// # Safety
    /// No other thread puts one of these positions, or in bf16 the one beside it in a pair: pairs
    /// begin at even positions of the cache.
    pub unsafe fn put(&self, at: usize, keys: Heads<'_>, values: Heads<'_>) {
        for all in [keys, values] {
            assert_eq!((all.rows, all.heads, all.head_dim), (keys.rows, self.heads, self.head_dim));
        }
        assert!(at <= self.count && keys.rows <= self.count - at);
        let mut words = vec![0; self.sizes.key_words];
        for (head, row) in (0..self.heads).flat_map(|head| (0..keys.rows).map(move |row| (head, row))) {
            let position = self.first + at + row;
            // SAFETY: as the caller promises.
            unsafe {
                if self.precision == Precision::Bf16 {
                    math::to_bf16(keys.row(row, head), &mut words, self.cpu);
                    self.put_key(head, position, &words);
                    self.put_bf16(head, position, values.row(row, head));
                } else {
                    self.put_int8(head, position, [keys.row(row, head), values.row(row, head)], &mut words);
                }
            }
        }
    }

    /// # Safety
    /// No other thread has this position.
    unsafe fn put_key(&self, head: usize, position: usize, words: &[u32]) {
        let (panel, lane) = (position / LANES, position % LANES);
        let start = head * self.sizes.keys + panel * LANES * words.len() + lane;
        for (group, word) in words.iter().enumerate() {
            // SAFETY: a word of this position's, which is the caller's.
            unsafe { *self.keys.at(start + group * LANES) = *word };
        }
    }

    /// # Safety
    /// No other thread has this position, or the one beside it in a pair.
    unsafe fn put_bf16(&self, head: usize, position: usize, value: &[f32]) {
        let start = head * self.sizes.values + position / PAIR * self.head_dim.next_multiple_of(LANES);
        // SAFETY: as the caller promises.
        let pairs = unsafe { self.values.part(start, self.head_dim) };
        // The first of a pair takes what a forgotten position left beside it: multiplied by 0,
        // infinity is none.
        if position.is_multiple_of(PAIR) {
            math::set_low(value, pairs, self.cpu);
        } else {
            math::set_high(value, pairs, self.cpu);
        }
    }

    /// `words` are for numbers on their way.
    ///
    /// # Safety
    /// No other thread has this position.
    unsafe fn put_int8(&self, head: usize, position: usize, [key, value]: [&[f32]; 2], words: &mut [u32]) {
        let number = head * self.sizes.positions + position;
        let scale = isa::to_int8(key, words, self.cpu);
        let sum = math::sign(words, self.cpu);
        // SAFETY: this position's numbers.
        unsafe {
            *self.key_scales.at(number) = scale;
            *self.corrections.at(number) = sum.wrapping_mul(OFFSET);
            self.put_key(head, position, words);
        }
        let scale = isa::to_int8(value, words, self.cpu);
        math::sign(words, self.cpu);
        let start = head * self.sizes.values + position / QUAD * self.head_dim.next_multiple_of(LANES);
        // SAFETY: this position's number, and its byte of each word: the others may be at work on
        // theirs.
        unsafe {
            *self.value_scales.at(number) = scale;
            let first = self.values.at(start).cast::<u8>().add(position % QUAD);
            for (column, byte) in bytemuck::cast_slice::<_, u8>(words)[..self.head_dim].iter().enumerate() {
                *first.add(column * QUAD) = *byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_takes_as_many_bytes_as_said() {
        for (head_dim, precision) in
            [2, 6, 16, 72].into_iter().flat_map(|d| [(d, Precision::Bf16), (d, Precision::Int8)])
        {
            let mut cache = KeyValueCache::new(3, head_dim, precision, Cpu::Portable);
            cache.append(2 * ROOM);
            let words = cache.keys.len() + cache.values.len();
            let numbers = cache.key_scales.len() + cache.value_scales.len() + cache.corrections.len();
            let bytes = 2 * ROOM as u64 * KeyValueCache::position_bytes(3, head_dim, precision);
            assert_eq!((words + numbers) as u64 * 4, bytes);
        }
    }
}
