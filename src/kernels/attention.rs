//! Attention over packed keys and values in bf16, a few query rows at a time: the score matrix is never whole.
//!
//! Keys are the weights of one packed product (inputs: head_dim, outputs: positions), values of a second one (inputs:
//! positions, outputs: head_dim). Both grow by a position without moving the others. Softmax and sums are f32.

use half::bf16;
use rayon::prelude::*;

use super::block::{Block, LANES, Out, PAIR, PANELS, Panels, Rows, Strides};
use super::linear::Shared;
use super::{Cpu, math};

/// Tokens that one task takes: their scores over a thousand positions fit the second-level cache.
const TOKENS: usize = 32;

/// Keys and values of one layer and sequence.
pub struct KeyValueCache {
    heads: usize,
    head_dim: usize,
    /// Positions that fit; a multiple of [`LANES`].
    capacity: usize,
    len: usize,
    /// [heads, position panels, head_dim / PAIR, LANES, PAIR]
    keys: Vec<bf16>,
    /// [heads, positions / PAIR, head_dim panels, LANES, PAIR]
    values: Vec<bf16>,
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
    /// An empty cache of `heads` times `head_dim`, which must be even.
    pub fn new(heads: usize, head_dim: usize, cpu: Cpu) -> Self {
        assert!(heads > 0 && head_dim > 0 && head_dim.is_multiple_of(PAIR));
        Self { heads, head_dim, capacity: 0, len: 0, keys: Vec::new(), values: Vec::new(), cpu }
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
        let capacity = positions.next_multiple_of(LANES);
        for (memory, head) in
            [(&mut self.keys, self.head_dim), (&mut self.values, self.head_dim.next_multiple_of(LANES))]
        {
            let (old, new) = (self.capacity * head, capacity * head);
            let mut grown = vec![bf16::ZERO; self.heads * new];
            // Within a head, further positions come behind the others, in keys and in values.
            for (to, from) in grown.chunks_exact_mut(new).zip(memory.chunks_exact(old.max(1))) {
                to[..old].copy_from_slice(&from[..old]);
            }
            *memory = grown;
        }
        self.capacity = capacity;
    }

    /// Appends `keys` and `values`, each [tokens, heads * head_dim].
    pub fn append(&mut self, keys: Columns<'_>, values: Columns<'_>) {
        let tokens = keys.rows();
        assert!(values.rows() == tokens && [keys.width, values.width] == [self.heads * self.head_dim; 2]);
        if self.len + tokens > self.capacity {
            self.reserve((self.len + tokens).next_power_of_two());
        }
        let (head_dim, padded, first, capacity) =
            (self.head_dim, self.head_dim.next_multiple_of(LANES), self.len, self.capacity);
        let heads = self.keys.par_chunks_exact_mut(capacity * head_dim);
        let heads = heads.zip(self.values.par_chunks_exact_mut(capacity * padded));
        // A single token is not worth waking a thread for.
        let heads = heads.enumerate().with_min_len(if tokens == 1 { self.heads } else { 1 });
        heads.for_each(|(head, (packed_keys, packed_values))| {
            for token in 0..tokens {
                let position = first + token;
                let panel = &mut packed_keys[position / LANES * LANES * head_dim..];
                for (i, &key) in keys.part(token, head * head_dim, head_dim).iter().enumerate() {
                    panel[(i / PAIR * LANES + position % LANES) * PAIR + i % PAIR] = math::round_bf16(key);
                }
                let pair = &mut packed_values[position / PAIR * padded * PAIR..];
                for (i, &value) in values.part(token, head * head_dim, head_dim).iter().enumerate() {
                    pair[i * PAIR + position % PAIR] = math::round_bf16(value);
                    if position.is_multiple_of(PAIR) {
                        // What a forgotten position left here would be multiplied by 0, which infinity survives.
                        pair[i * PAIR + 1] = bf16::ZERO;
                    }
                }
            }
        });
        self.len += tokens;
    }

    /// What the last tokens see: `queries` [tokens, query heads * head_dim], each multiplied by `scale`, become as many mixed
    /// values. As many query heads in a row share a head of the cache as there are more of them.
    pub fn attend(&self, queries: Columns<'_>, scale: f32, attend: Attend) -> Vec<f32> {
        let (tokens, query_heads) = (queries.rows(), queries.width / self.head_dim);
        assert!(queries.width.is_multiple_of(self.heads * self.head_dim) && tokens <= self.len);
        let mut out = vec![0.0; tokens * queries.width];
        let start = Shared(out.as_mut_ptr());
        let chunks = tokens.div_ceil(TOKENS);
        (0..self.heads * chunks).into_par_iter().for_each(|task| {
            let (head, token) = (task / chunks, task % chunks * TOKENS);
            let work = Work {
                cache: self,
                queries,
                head,
                group: query_heads / self.heads,
                first: token,
                count: TOKENS.min(tokens - token),
                // The position of a token is its number, plus this.
                before: self.len - tokens,
                causal: attend == Attend::Causally,
            };
            work.run(scale, start);
        });
        out
    }
}

/// One cache head, and some tokens' query heads that share it.
struct Work<'a> {
    cache: &'a KeyValueCache,
    queries: Columns<'a>,
    head: usize,
    group: usize,
    first: usize,
    count: usize,
    before: usize,
    causal: bool,
}

impl Work<'_> {
    /// The token of this task's row, and where its head begins among the token's numbers: tokens in order, and each one's heads.
    fn place(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group, (self.head * self.group + row % self.group) * self.cache.head_dim)
    }

    /// Positions that row `row` looks at.
    fn seen(&self, row: usize) -> usize {
        if self.causal { self.before + self.first + row / self.group + 1 } else { self.cache.len }
    }

    fn run(&self, scale: f32, out: Shared) {
        let KeyValueCache { head_dim, capacity, cpu, .. } = *self.cache;
        let rows = self.count * self.group;
        let positions = self.seen(rows - 1);

        let mut scaled = vec![0.0; head_dim];
        let groups = head_dim / PAIR;
        let mut query_rows = Rows { words: vec![0; rows * groups], groups, scales: Vec::new() };
        for (row, words) in query_rows.words.chunks_exact_mut(groups).enumerate() {
            let (token, at) = self.place(row);
            let query = self.queries.part(token, at, head_dim);
            scaled.iter_mut().zip(query).for_each(|(s, q)| *s = q * scale);
            math::to_bf16(&scaled, words, cpu);
        }

        let keys = &self.cache.keys[self.head * capacity * head_dim..][..capacity * head_dim];
        let mut scores = vec![0.0; rows * positions];
        product(&query_rows, keys, Strides { panel: groups, group: 1 }, positions, cpu, &mut scores);

        let groups = positions.div_ceil(PAIR);
        let mut weights = Rows { words: vec![0; rows * groups], groups, scales: Vec::new() };
        let mut sums = vec![0.0; rows];
        for (row, (scores, words)) in
            scores.chunks_exact_mut(positions).zip(weights.words.chunks_exact_mut(groups)).enumerate()
        {
            let seen = &mut scores[..self.seen(row)];
            sums[row] = math::exp_row(seen, cpu);
            math::to_bf16(seen, words, cpu);
        }

        let padded = head_dim.next_multiple_of(LANES);
        let values = &self.cache.values[self.head * capacity * padded..][..capacity * padded];
        let strides = Strides { panel: 1, group: padded / LANES };
        let mut mixed = vec![0.0; rows * head_dim];
        product(&weights, values, strides, head_dim, cpu, &mut mixed);
        for (row, mixed) in mixed.chunks_exact(head_dim).enumerate() {
            let (token, at) = self.place(row);
            // SAFETY: the row lies in the result, and no other task has its token and head.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(token * self.queries.width + at), head_dim) };
            out.iter_mut().zip(mixed).for_each(|(out, x)| *out = x / sums[row]);
        }
    }
}

/// `out` [rows, outputs] = `rows` times `panels`, on this thread.
fn product(rows: &Rows, panels: &[bf16], strides: Strides, outputs: usize, cpu: Cpu, out: &mut [f32]) {
    let row_count = rows.words.len() / rows.groups;
    assert_eq!(out.len(), row_count * outputs);
    let panel_count = outputs.div_ceil(LANES);
    for panel in (0..panel_count).step_by(PANELS) {
        let block = Block {
            rows,
            first_row: 0,
            row_count,
            panels: Panels::Bf16(&panels[strides.at(panel, 0) * LANES * PAIR..]),
            panel_count: PANELS.min(panel_count - panel),
            strides,
        };
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(outputs - column);
        // SAFETY: the rows and columns lie in `out`, which is this function's alone.
        let mut out = unsafe { Out::new(out.as_mut_ptr().add(column), outputs, columns) };
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
    fn attention_is_attention_however_the_tokens_come() {
        for (query_heads, kv_heads, head_dim) in [(1, 1, 2), (3, 1, 64), (6, 2, 24), (4, 4, 72)] {
            for (positions, tokens) in [(1, 1), (17, 17), (70, 70), (70, 5), (131, 1)] {
                let width = kv_heads * head_dim;
                let (keys, values) = (numbers(positions * width, 1), numbers(positions * width, 2));
                let queries = numbers(tokens * query_heads * head_dim, 3);
                for attend in [Attend::Causally, Attend::Everywhere] {
                    let causal = attend == Attend::Causally;
                    let expected = exact(&queries, &keys, &values, (query_heads, kv_heads), head_dim, causal);
                    for (cpu, piece) in [(Cpu::Portable, positions), (Cpu::detect(), positions), (Cpu::detect(), 3)] {
                        let mut cache = KeyValueCache::new(kv_heads, head_dim, cpu);
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
                        let ours = cache.attend(queries, 0.3, attend);
                        let difference = largest_difference(&ours, &expected);
                        // Numbers from -1 to 1, rounded to 8 bits three times.
                        assert!(
                            difference < 0.02,
                            "{query_heads} {kv_heads} {head_dim} {positions} {tokens} {attend:?} {cpu:?}: {difference}"
                        );
                    }
                }
            }
        }
    }
}
