//! Attention over packed keys and values, a few query rows at a time: the score matrix is never whole.
//!
//! Keys are the weights of one packed product (inputs: head_dim, outputs: positions), values of a second one (inputs:
//! positions, outputs: head_dim). Both grow by a position without moving the others. Values are bf16; softmax and sums are f32.
//!
//! Keys are bf16, or 8 bits with a scale per position, as the queries then are. Those come all at once and are stored less their mean,
//! which takes the same off all of a query's scores, and so changes no weight; what is left is smaller, and so is its rounding
//! (SageAttention, arXiv 2410.02367, section 4.2).

use std::cell::RefCell;

use half::bf16;

use super::block::{BLOCK, Block, LANES, OFFSET, Out, PAIR, PANELS, Panels, QUAD, Strides};
use super::rows::{grow, scratch};
use super::team::{self, Split};
use super::{Cpu, Precision, Rows, math};

/// Tokens that one task takes: their scores over a thousand positions fit the second-level cache.
const TOKENS: usize = 32;

/// Positions that one task takes where there is one token.
const POSITIONS: usize = 256;

/// Keys and values of one layer and sequence.
pub struct KeyValueCache {
    heads: usize,
    head_dim: usize,
    /// Positions that fit; a multiple of [`LANES`].
    capacity: usize,
    len: usize,
    /// [heads, position panels, key_groups, LANES] words, each a group of a key's numbers, the first one lowest.
    keys: Vec<u32>,
    key_groups: usize,
    /// [heads, positions / PAIR, head_dim panels * LANES] words, each two positions' bf16 numbers.
    values: Vec<u32>,
    /// Of keys in 8 bits, [heads, positions]: as a packed product has them.
    scales: Vec<f32>,
    corrections: Vec<i32>,
    keys_in: Precision,
    cpu: Cpu,
}

/// Some columns of a row-major matrix.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
    width: usize,
}

impl<'a> Columns<'a> {
    /// `width` columns from `first` on, of rows of `stride`.
    pub fn new(data: &'a [f32], stride: usize, first: usize, width: usize) -> Self {
        assert!(width > 0 && first + width <= stride && data.len().is_multiple_of(stride));
        Self { data, stride, first, width }
    }

    fn rows(&self) -> usize {
        self.data.len() / self.stride
    }

    /// `count` numbers of row `row`, from `at` on.
    fn part(&self, row: usize, at: usize, count: usize) -> &'a [f32] {
        &self.data[row * self.stride + self.first + at..][..count]
    }
}

/// Which positions a token looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attend {
    /// All.
    Everywhere,
    /// Its own, which is among the last, and the ones before.
    Causally,
}

impl KeyValueCache {
    /// An empty cache of `heads` times `head_dim`, which must be even; `keys_in` is bf16 or int8.
    pub fn new(heads: usize, head_dim: usize, keys_in: Precision, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0 && head_dim.is_multiple_of(PAIR) && keys_in != Precision::Int4);
        Self {
            heads,
            head_dim,
            capacity: 0,
            len: 0,
            keys: Vec::new(),
            key_groups: head_dim.div_ceil(if keys_in == Precision::Bf16 { PAIR } else { QUAD }),
            values: Vec::new(),
            scales: Vec::new(),
            corrections: Vec::new(),
            keys_in,
            cpu,
        }
    }

    /// Forgets all from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `positions` in all.
    pub fn reserve(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        // Keys in 8 bits come all at once: their scales need not move.
        assert!(self.keys_in == Precision::Bf16 || self.len == 0);
        let capacity = positions.next_multiple_of(LANES);
        let padded = self.head_dim.next_multiple_of(LANES);
        // Words of two positions: capacities are even.
        for (memory, words) in [(&mut self.keys, self.key_groups * PAIR), (&mut self.values, padded)] {
            let (old, new) = (self.capacity / PAIR * words, capacity / PAIR * words);
            let mut grown = vec![0; self.heads * new];
            // Within a head, further positions come behind the others, in keys and in values.
            for (to, from) in grown.chunks_exact_mut(new).zip(memory.chunks_exact(old.max(1))) {
                to[..old].copy_from_slice(&from[..old]);
            }
            *memory = grown;
        }
        if self.keys_in == Precision::Int8 {
            self.scales = vec![0.0; self.heads * capacity];
            self.corrections = vec![0; self.heads * capacity];
        }
        self.capacity = capacity;
    }

    /// Appends `keys` and `values`, each [tokens, heads * head_dim]. Keys in 8 bits come into an empty cache.
    pub fn append(&mut self, keys: Columns<'_>, values: Columns<'_>) {
        let tokens = keys.rows();
        assert!(values.rows() == tokens && [keys.width, values.width] == [self.heads * self.head_dim; 2]);
        assert!(self.keys_in == Precision::Bf16 || self.len == 0);
        if self.len + tokens > self.capacity {
            self.reserve((self.len + tokens).next_power_of_two());
        }
        let (head_dim, padded, first, cpu) = (self.head_dim, self.head_dim.next_multiple_of(LANES), self.len, self.cpu);
        let (groups, capacity, keys_in) = (self.key_groups, self.capacity, self.keys_in);
        let (key_words, value_words) = (capacity * groups, capacity / PAIR * padded);
        let (all_keys, all_values) = (Split::new(&mut self.keys), Split::new(&mut self.values));
        let (all_scales, all_corrections) = (Split::new(&mut self.scales), Split::new(&mut self.corrections));
        team::share(self.heads, |head| {
            // SAFETY: no other task has this head.
            let packed_keys = unsafe { all_keys.part(head * key_words, key_words) };
            // SAFETY: as above.
            let packed_values = unsafe { all_values.part(head * value_words, value_words) };
            let mut key = vec![0; groups];
            let mut store = |position: usize, key: &[u32]| {
                let panel = &mut packed_keys[position / LANES * LANES * groups..];
                for (to, word) in panel.iter_mut().skip(position % LANES).step_by(LANES).zip(key) {
                    *to = *word;
                }
            };
            let head_keys = (0..tokens).map(|token| keys.part(token, head * head_dim, head_dim));
            if keys_in == Precision::Bf16 {
                for (token, numbers) in head_keys.enumerate() {
                    math::to_bf16(numbers, &mut key, cpu);
                    store(first + token, &key);
                }
            } else {
                // SAFETY: as above.
                let scales = unsafe { all_scales.part(head * capacity, tokens) };
                // SAFETY: as above.
                let corrections = unsafe { all_corrections.part(head * capacity, tokens) };
                let mut mean = vec![0.0; head_dim];
                head_keys.clone().for_each(|numbers| mean.iter_mut().zip(numbers).for_each(|(m, x)| *m += x));
                mean.iter_mut().for_each(|m| *m /= tokens as f32);
                let (mut centred, mut sums) = (vec![0.0; head_dim], vec![0; groups.div_ceil(BLOCK / QUAD)]);
                for (token, numbers) in head_keys.enumerate() {
                    centred.iter_mut().zip(numbers).zip(&mean).for_each(|((c, x), m)| *c = x - m);
                    scales[token] = math::to_int8(&centred, &mut key, cpu);
                    math::sign_and_sum(&mut key, &mut sums, cpu);
                    corrections[token] = OFFSET * sums.iter().sum::<i32>();
                    store(token, &key);
                }
            }
            for token in 0..tokens {
                let position = first + token;
                let pairs = &mut packed_values[position / PAIR * padded..][..head_dim];
                let value = values.part(token, head * head_dim, head_dim);
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

    /// What the last tokens see: `queries` [tokens, query heads * head_dim], each multiplied by `scale`, become as many mixed
    /// values in `out`. As many query heads in a row share a head of the cache as there are more of them.
    pub fn attend(&self, queries: Columns<'_>, scale: f32, attend: Attend, out: &mut [f32]) {
        let (tokens, width) = (queries.rows(), queries.width);
        assert!(width.is_multiple_of(self.heads * self.head_dim) && tokens <= self.len && out.len() == tokens * width);
        let group = width / self.head_dim / self.heads;
        let out = Split::new(out);
        let work = |head, first, count, positions| Work {
            cache: self,
            queries,
            scale,
            head,
            group,
            first,
            count,
            // The position of a token is its number, plus this.
            before: self.len - tokens,
            causal: attend == Attend::Causally,
            positions,
        };
        if tokens == 1 {
            return self.attend_once(group, &out, |head, positions| work(head, 0, 1, positions));
        }
        let chunks = tokens.div_ceil(TOKENS);
        team::share(self.heads * chunks, |task| {
            // The last tokens see the most: theirs come first.
            let (head, first) = (task % self.heads, (chunks - 1 - task / self.heads) * TOKENS);
            let work = work(head, first, TOKENS.min(tokens - first), (0, self.len));
            work.run(|row, mixed, _, sum| {
                let (token, at) = work.place(row);
                // SAFETY: no other task has this token and head.
                let out = unsafe { out.part(token * width + at, self.head_dim) };
                out.iter_mut().zip(mixed).for_each(|(out, x)| *out = x / sum);
            });
        });
    }

    /// The keys of a head, from a panel of positions on.
    fn key_panels(&self, head: usize, panel: usize) -> Panels<'_> {
        let first = panel * LANES;
        let words = &self.keys[head * self.capacity * self.key_groups..][..self.capacity * self.key_groups];
        let words = &words[first * self.key_groups..];
        if self.keys_in == Precision::Bf16 {
            return Panels::Bf16(as_bf16(words));
        }
        let of_head = head * self.capacity + first..(head + 1) * self.capacity;
        Panels::Int8 {
            values: as_int8(words),
            scales: &self.scales[of_head.clone()],
            corrections: &self.corrections[of_head],
        }
    }

    /// The same for one token, whose `group` rows a head are too few to share out: its positions are.
    fn attend_once<'a>(
        &self,
        group: usize,
        out: &Split<'_, f32>,
        work: impl Fn(usize, (usize, usize)) -> Work<'a> + Sync,
    ) {
        let parts = self.len.div_ceil(POSITIONS);
        // A row of a part: what it mixed, its largest score, its sum.
        let row_len = self.head_dim + 2;
        let part_len = group * row_len;
        scratch(self.heads * parts * part_len, |partial| {
            let split = Split::new(partial);
            team::share(self.heads * parts, |task| {
                let (head, part) = (task / parts, task % parts);
                // SAFETY: no other task has this part of this head.
                let results = unsafe { split.part(task * part_len, part_len) };
                work(head, (part * POSITIONS, self.len.min((part + 1) * POSITIONS))).run(|row, mixed, largest, sum| {
                    let result = &mut results[row * row_len..][..row_len];
                    result[..self.head_dim].copy_from_slice(mixed);
                    result[self.head_dim..].copy_from_slice(&[largest, sum]);
                });
            });
            for row in 0..self.heads * group {
                let (head, row) = (row / group, row % group);
                let part = |part| &partial[(head * parts + part) * part_len + row * row_len..][..row_len];
                let largest = (0..parts).fold(f32::NEG_INFINITY, |m, p| m.max(part(p)[self.head_dim]));
                // SAFETY: the parts are done, and nobody else writes.
                let out = unsafe { out.part((head * group + row) * self.head_dim, self.head_dim) };
                let mut sum = 0.0;
                out.fill(0.0);
                for part in (0..parts).map(part) {
                    let weight = (part[self.head_dim] - largest).exp();
                    sum += part[self.head_dim + 1] * weight;
                    out.iter_mut().zip(part).for_each(|(out, x)| *out += x * weight);
                }
                out.iter_mut().for_each(|x| *x /= sum);
            }
        });
    }
}

/// One cache head, some tokens' query heads that share it, and some positions.
struct Work<'a> {
    cache: &'a KeyValueCache,
    queries: Columns<'a>,
    scale: f32,
    head: usize,
    group: usize,
    first: usize,
    count: usize,
    before: usize,
    causal: bool,
    /// From a multiple of [`LANES`] on, and up to which.
    positions: (usize, usize),
}

/// What a task needs for a while; the memory stays with its thread.
#[derive(Default)]
struct Buffers {
    queries: Rows,
    weights: Rows,
    scores: Vec<f32>,
    mixed: Vec<f32>,
}

impl Work<'_> {
    /// The token of this task's row, and where its head begins among the token's numbers: tokens in order, and each one's heads.
    fn place(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group, (self.head * self.group + row % self.group) * self.cache.head_dim)
    }

    /// Positions of this task's that row `row` looks at.
    fn seen(&self, row: usize) -> usize {
        let end = if self.causal { self.before + self.first + row / self.group + 1 } else { self.cache.len };
        end.min(self.positions.1) - self.positions.0
    }

    /// Gives `take` each row's number, its values mixed with weights relative to the largest, its largest score, and the sum of its weights.
    fn run(&self, take: impl FnMut(usize, &[f32], f32, f32)) {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        BUFFERS.with_borrow_mut(|buffers| self.run_in(buffers, take));
    }

    fn run_in(&self, buffers: &mut Buffers, mut take: impl FnMut(usize, &[f32], f32, f32)) {
        let KeyValueCache { head_dim, capacity, cpu, keys_in, .. } = *self.cache;
        let Buffers { queries, weights, scores, mixed } = buffers;
        let rows = self.count * self.group;
        let positions = self.seen(rows - 1);

        queries.set(keys_in, (rows, head_dim), cpu, |row, out| {
            let (token, at) = self.place(row);
            let query = self.queries.part(token, at, head_dim);
            out.iter_mut().zip(query).for_each(|(out, q)| *out = q * self.scale);
        });

        let scores = grow(scores, rows * positions);
        let keys = |panel| self.cache.key_panels(self.head, self.positions.0 / LANES + panel);
        product(queries, keys, Strides { panel: queries.groups, group: 1 }, positions, cpu, scores);

        // A row's weights, in place of its scores' rows; what it does not see has none.
        let tops = weights.set_words((rows, positions), |row, words| {
            let seen = self.seen(row);
            let (used, unused) = words.split_at_mut(seen.div_ceil(PAIR));
            unused.fill(0);
            math::exp_row(&scores[row * positions..][..seen], used, cpu)
        });

        let padded = head_dim.next_multiple_of(LANES);
        let words = capacity / PAIR * padded;
        let values = &self.cache.values[self.head * words..][..words];
        let values = &values[self.positions.0 / PAIR * padded..];
        let strides = Strides { panel: 1, group: padded / LANES };
        let mixed = grow(mixed, rows * head_dim);
        product(weights, |panel| Panels::Bf16(as_bf16(&values[panel * LANES..])), strides, head_dim, cpu, mixed);
        for ((row, mixed), (largest, sum)) in mixed.chunks_exact(head_dim).enumerate().zip(tops) {
            take(row, mixed, largest, sum);
        }
    }
}

fn as_bf16(words: &[u32]) -> &[bf16] {
    // SAFETY: a word is two bf16 numbers, on the little-endian machines that this crate is for; their alignment is less.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<bf16>(), words.len() * PAIR) }
}

fn as_int8(words: &[u32]) -> &[i8] {
    // SAFETY: a word is four of them; their alignment is less.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<i8>(), words.len() * QUAD) }
}

/// `out` [rows, outputs] = `rows` times `panels`, which are given from one on, on this thread.
fn product<'a>(
    rows: &Rows,
    panels: impl Fn(usize) -> Panels<'a>,
    strides: Strides,
    outputs: usize,
    cpu: Cpu,
    out: &mut [f32],
) {
    let row_count = rows.count();
    assert_eq!(out.len(), row_count * outputs);
    let panel_count = outputs.div_ceil(LANES);
    for panel in (0..panel_count).step_by(PANELS) {
        let block = Block {
            rows,
            first_row: 0,
            row_count,
            panels: panels(panel),
            panel_count: PANELS.min(panel_count - panel),
            strides,
        };
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(outputs - column);
        // SAFETY: the rows and columns lie in `out`, which is this function's alone.
        let mut out = unsafe { Out::new(out.as_mut_ptr().add(column), outputs, columns, false) };
        block.run(&mut out, cpu);
    }
}

#[cfg(test)]
mod tests {
    use super::super::math::tests::{largest_difference, numbers};
    use super::*;

    /// Softmax attention in f64.
    fn exact(
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        heads: (usize, usize),
        head_dim: usize,
        causal: bool,
    ) -> Vec<f32> {
        let (query_heads, kv_heads) = heads;
        let (tokens, positions) = (queries.len() / query_heads / head_dim, keys.len() / kv_heads / head_dim);
        let mut out = Vec::new();
        for token in 0..tokens {
            for head in 0..query_heads {
                let query = &queries[(token * query_heads + head) * head_dim..][..head_dim];
                let row = |all: &[f32], position: usize, i: usize| {
                    f64::from(all[(position * kv_heads + head / (query_heads / kv_heads)) * head_dim + i])
                };
                let seen = if causal { positions - tokens + token + 1 } else { positions };
                let score = |p| (0..head_dim).map(|i| f64::from(query[i]) * row(keys, p, i)).sum::<f64>() * 0.3;
                let weights: Vec<f64> = (0..seen).map(|p| score(p).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..head_dim).map(|i| {
                    (weights.iter().enumerate().map(|(p, w)| w * row(values, p, i)).sum::<f64>() / sum) as f32
                }));
            }
        }
        out
    }

    #[test]
    fn what_all_keys_have_in_common_costs_keys_in_8_bits_no_precision() {
        let (heads, head_dim, positions) = (2, 64, 70);
        let width = heads * head_dim;
        let (queries, values) = (numbers(positions * width, 3), numbers(positions * width, 2));
        // A hundred times as large as the differences, and not the same in all of a head's numbers.
        let common = numbers(width, 7);
        let keys = numbers(positions * width, 1);
        let keys: Vec<f32> = keys.iter().enumerate().map(|(i, x)| x + 100.0 * common[i % width]).collect();
        let expected = exact(&queries, &keys, &values, (heads, heads), head_dim, false);
        let all = |rows| Columns::new(rows, width, 0, width);
        for cpu in Cpu::available() {
            let mut cache = KeyValueCache::new(heads, head_dim, Precision::Int8, cpu);
            cache.append(all(&keys), all(&values));
            let mut ours = vec![f32::NAN; positions * width];
            cache.attend(all(&queries), 0.3, Attend::Everywhere, &mut ours);
            let difference = largest_difference(&ours, &expected);
            assert!(difference < 0.02, "{cpu:?}: {difference}");
        }
    }

    #[test]
    fn attention_is_attention_however_the_tokens_come() {
        for (query_heads, kv_heads, head_dim) in [(1, 1, 2), (3, 1, 64), (6, 2, 24), (4, 4, 72)] {
            for (positions, tokens) in [(1, 1), (17, 17), (70, 70), (70, 5), (131, 1), (700, 1), (513, 1)] {
                let width = kv_heads * head_dim;
                let (keys, values) = (numbers(positions * width, 1), numbers(positions * width, 2));
                let queries = numbers(tokens * query_heads * head_dim, 3);
                for attend in [Attend::Causally, Attend::Everywhere] {
                    let causal = attend == Attend::Causally;
                    let expected = exact(&queries, &keys, &values, (query_heads, kv_heads), head_dim, causal);
                    let ways = [(Precision::Bf16, positions), (Precision::Bf16, 3), (Precision::Int8, positions)];
                    for (cpu, (keys_in, piece)) in
                        Cpu::available().into_iter().flat_map(|cpu| ways.map(|way| (cpu, way)))
                    {
                        let mut cache = KeyValueCache::new(kv_heads, head_dim, keys_in, cpu);
                        // Something that is forgotten again must leave no trace.
                        let forgotten = vec![f32::INFINITY; width * positions.next_multiple_of(2)];
                        let all = |rows| Columns::new(rows, width, 0, width);
                        cache.append(all(&forgotten), all(&forgotten));
                        cache.truncate(0);
                        for (keys, values) in keys.chunks(piece * width).zip(values.chunks(piece * width)) {
                            cache.append(all(keys), all(values));
                        }
                        assert_eq!(cache.len, positions);
                        let queries = Columns::new(&queries, query_heads * head_dim, 0, query_heads * head_dim);
                        let mut ours = vec![f32::NAN; tokens * query_heads * head_dim];
                        cache.attend(queries, 0.3, attend, &mut ours);
                        let difference = largest_difference(&ours, &expected);
                        // Numbers from -1 to 1, rounded to 8 bits three times.
                        assert!(
                            difference < 0.02,
                            "{query_heads} {kv_heads} {head_dim} {positions} {tokens} {attend:?} {cpu:?} {keys_in:?}: {difference}"
                        );
                    }
                }
            }
        }
    }
}
