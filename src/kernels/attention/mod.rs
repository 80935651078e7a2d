//! Attention over packed keys and values, a few query rows and a block of positions at a time, with an online softmax: the score matrix
//! is never there.
//!
//! Keys are the weights of one packed product (inputs: head_dim, outputs: positions), values of a second one (inputs: positions,
//! outputs: head_dim), whose rows are softmax's weights. Those are bf16 as the values are, or 8 bits, of the largest one in their block;
//! sums are f32.

mod cache;
mod int8;

use std::cell::RefCell;

use super::aligned::Aligned;
use super::block::{Block, LANES, Out, PAIR, PANELS, Panels, QUAD, Strides};
use super::rows::scratch;
use super::team::{self, Split};
use super::{Cpu, Precision, Rows, math};

pub use cache::KeyValueCache;
pub use int8::Int8KeysValues;

/// Tokens that one task takes.
const TOKENS: usize = 32;

/// Positions of a block: its scores, keys and values stay in the first two levels of cache. A multiple of [`LANES`]; where there is one
/// token, one task takes them.
const POSITIONS: usize = 256;

/// Keys and values as they lie in a cache.
pub struct Stored<'a> {
    heads: Vec<Head<'a>>,
    head_dim: usize,
    /// Positions.
    len: usize,
    cpu: Cpu,
}

/// Those of one head.
struct Head<'a> {
    /// [position panels, groups of head_dim]
    keys: Panels<'a>,
    /// [groups of positions, head_dim panels]
    values: Panels<'a>,
    /// What has been taken off the values [head_dim], or empty.
    mean: &'a [f32],
}

/// Rows of numbers of some heads.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    data: &'a [f32],
    rows: usize,
    heads: usize,
    head_dim: usize,
    /// From a row to the next one, and from a head to the next one.
    row_stride: usize,
    head_stride: usize,
}

impl<'a> Heads<'a> {
    /// Heads side by side in rows of `stride`, from column `first` on.
    pub fn beside(data: &'a [f32], stride: usize, first: usize, (heads, head_dim): (usize, usize)) -> Self {
        assert!(heads * head_dim > 0 && first + heads * head_dim <= stride && data.len().is_multiple_of(stride));
        let (rows, data) = (data.len() / stride, data.get(first..).unwrap_or_default());
        Self { data, rows, heads, head_dim, row_stride: stride, head_stride: head_dim }
    }

    /// Heads one after another [heads, rows, head_dim].
    pub fn apart(data: &'a [f32], (heads, head_dim): (usize, usize)) -> Self {
        let rows = data.len() / (heads * head_dim);
        assert_eq!(data.len(), heads * rows * head_dim);
        Self { data, rows, heads, head_dim, row_stride: head_dim, head_stride: rows * head_dim }
    }

    fn row(&self, row: usize, head: usize) -> &'a [f32] {
        &self.data[row * self.row_stride + head * self.head_stride..][..self.head_dim]
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

impl Stored<'_> {
    /// What the last tokens see: `queries`, each multiplied by `scale`, become mixed values [tokens, query heads * head_dim] in `out`. As
    /// many query heads in a row share a head of the cache as there are more of them.
    pub fn attend(&self, queries: Heads<'_>, scale: f32, attend: Attend, out: &mut [f32]) {
        let (tokens, heads, width) = (queries.rows, self.heads.len(), queries.heads * queries.head_dim);
        assert!(queries.heads.is_multiple_of(heads) && queries.head_dim == self.head_dim);
        assert!(tokens <= self.len && out.len() == tokens * width);
        let group = queries.heads / heads;
        let out = Split::new(out);
        let work = |head: usize, first, count, positions| Work {
            stored: self,
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
        team::share(heads * chunks, |task| {
            // The last tokens see the most: theirs come first.
            let (head, first) = (task % heads, (chunks - 1 - task / heads) * TOKENS);
            let work = work(head, first, TOKENS.min(tokens - first), (0, self.len));
            work.run(|row, mixed, _, sum| {
                let (token, query_head) = work.place(row);
                // SAFETY: no other task has this token and head.
                let out = unsafe { out.part(token * width + query_head * self.head_dim, self.head_dim) };
                self.finish(head, mixed, sum, out);
            });
        });
    }

    /// Values mixed with weights that add up to `sum`, of a head -> what its query sees.
    fn finish(&self, head: usize, mixed: &[f32], sum: f32, out: &mut [f32]) {
        math::scale_and_add(mixed, sum.recip(), self.heads[head].mean, out, self.cpu);
    }

    /// The same for one token, whose `group` rows a head are too few to share out: its positions are.
    fn attend_once<'a>(
        &self,
        group: usize,
        out: &Split<'_, f32>,
        work: impl Fn(usize, (usize, usize)) -> Work<'a> + Sync,
    ) {
        let (heads, head_dim) = (self.heads.len(), self.head_dim);
        let parts = self.len.div_ceil(POSITIONS);
        // A row of a part: what it mixed, its largest score, its sum.
        let row_len = head_dim + 2;
        let part_len = group * row_len;
        scratch(heads * parts * part_len + head_dim, |memory| {
            let (partial, mixed) = memory.split_at_mut(heads * parts * part_len);
            let split = Split::new(partial);
            team::share(heads * parts, |task| {
                let (head, part) = (task / parts, task % parts);
                // SAFETY: no other task has this part of this head.
                let results = unsafe { split.part(task * part_len, part_len) };
                work(head, (part * POSITIONS, self.len.min((part + 1) * POSITIONS))).run(|row, mixed, largest, sum| {
                    let result = &mut results[row * row_len..][..row_len];
                    result[..head_dim].copy_from_slice(mixed);
                    result[head_dim..].copy_from_slice(&[largest, sum]);
                });
            });
            for row in 0..heads * group {
                let (head, row) = (row / group, row % group);
                let part = |part| &partial[(head * parts + part) * part_len + row * row_len..][..row_len];
                let largest = (0..parts).fold(f32::NEG_INFINITY, |m, p| m.max(part(p)[head_dim]));
                let mut sum = 0.0;
                mixed.fill(0.0);
                for part in (0..parts).map(part) {
                    let weight = (part[head_dim] - largest).exp2();
                    sum += part[head_dim + 1] * weight;
                    mixed.iter_mut().zip(part).for_each(|(mixed, x)| *mixed += x * weight);
                }
                // SAFETY: the parts are done, and nobody else writes.
                self.finish(head, mixed, sum, unsafe { out.part((head * group + row) * head_dim, head_dim) });
            }
        });
    }
}

/// One cache head, some tokens' query heads that share it, and some positions.
struct Work<'a> {
    stored: &'a Stored<'a>,
    queries: Heads<'a>,
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
    /// Of a block of positions.
    scores: Aligned<f32>,
    weights: Rows,
    /// Of all blocks so far, relative to the row's largest score.
    mixed: Aligned<f32>,
    rows: Vec<Softmax>,
}

/// A row's largest score so far, and the sum of its weights relative to that.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    sum: f32,
}

impl Softmax {
    const NONE: Self = Self { largest: f32::NEG_INFINITY, sum: 0.0 };
}

impl Work<'_> {
    /// The token and the query head of this task's row: tokens in order, and each one's heads.
    fn place(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group, self.head * self.group + row % self.group)
    }

    /// The end of the positions of this task's that row `row` looks at.
    fn end(&self, row: usize) -> usize {
        let end = if self.causal { self.before + self.first + row / self.group + 1 } else { self.stored.len };
        end.min(self.positions.1)
    }

    /// Gives `take` each row's number, its values mixed with weights relative to the largest, its largest score, and the sum of its weights.
    fn run(&self, take: impl FnMut(usize, &[f32], f32, f32)) {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        BUFFERS.with_borrow_mut(|buffers| self.run_in(buffers, take));
    }

    fn run_in(&self, buffers: &mut Buffers, mut take: impl FnMut(usize, &[f32], f32, f32)) {
        let Stored { head_dim, cpu, .. } = *self.stored;
        let Head { keys, values, .. } = self.stored.heads[self.head];
        let Buffers { queries, scores, weights, mixed, rows } = buffers;
        let count = self.count * self.group;

        // Weights are powers of 2, not of e.
        let scale = self.scale * std::f32::consts::LOG2_E;
        queries.set(keys.precision(), (count, head_dim), cpu, |row, out| {
            let (token, query_head) = self.place(row);
            let query = self.queries.row(token, query_head);
            out.iter_mut().zip(query).for_each(|(out, q)| *out = q * scale);
        });

        let mixed = mixed.grow(count * head_dim);
        rows.clear();
        rows.resize(count, Softmax::NONE);
        let (first, end) = (self.positions.0, self.end(count - 1));
        for from in (first..end).step_by(POSITIONS) {
            let positions = POSITIONS.min(end - from);
            let scores = scores.grow(count * positions);
            let strides = Strides { panel: queries.groups, group: 1 };
            product(queries, keys.skip(from / LANES * strides.panel, from), strides, positions, cpu, scores, false);

            weights.set_words(values.precision(), (count, positions), |row, words| {
                // What a row does not see has no weight.
                let seen = self.end(row).saturating_sub(from).min(positions);
                let scores = &scores[row * positions..][..seen];
                let old = rows[row];
                let (largest, sum, scale) = match values.precision() {
                    Precision::Bf16 => {
                        let (used, unused) = words.split_at_mut(seen.div_ceil(PAIR));
                        unused.fill(0);
                        let (largest, sum) = math::exp2_row(scores, old.largest, used, cpu);
                        (largest, sum, 1.0)
                    }
                    // A block's weights are as fine as its own largest one asks for.
                    _ => {
                        let (used, unused) = bytemuck::cast_slice_mut::<_, u8>(words).split_at_mut(seen);
                        unused.fill(0);
                        let (of_block, sum) = math::exp2_row_int8(scores, used, cpu);
                        let largest = old.largest.max(of_block);
                        let scale = math::power_of_two(of_block - largest) * (1.0 / 255.0);
                        (largest, sum as f32 * scale, scale)
                    }
                };
                let mut kept = 1.0;
                if from > first && largest != old.largest {
                    kept = math::power_of_two(old.largest - largest);
                    math::scale(&mut mixed[row * head_dim..][..head_dim], kept, cpu);
                }
                rows[row] = Softmax { largest, sum: old.sum * kept + sum };
                scale
            });

            let strides = Strides { panel: 1, group: head_dim.div_ceil(LANES) };
            let positions_of_group = if values.precision() == Precision::Bf16 { PAIR } else { QUAD };
            product(
                weights,
                values.skip(from / positions_of_group * strides.group, 0),
                strides,
                head_dim,
                cpu,
                mixed,
                from > first,
            );
        }
        for ((row, mixed), softmax) in mixed.chunks_exact(head_dim).enumerate().zip(rows) {
            take(row, mixed, softmax.largest, softmax.sum);
        }
    }
}

/// Puts a key's words to its position's lane.
fn set_lane(keys: &mut [u32], position: usize, key: &[u32]) {
    let panel = &mut keys[position / LANES * LANES * key.len()..][..LANES * key.len()];
    for (vector, word) in panel.chunks_exact_mut(LANES).zip(key) {
        vector[position % LANES] = *word;
    }
}

/// `out` [rows, outputs] = `rows` times `panels`, or that is added to it, on this thread.
fn product(rows: &Rows, panels: Panels<'_>, strides: Strides, outputs: usize, cpu: Cpu, out: &mut [f32], add: bool) {
    let row_count = rows.count();
    assert_eq!(out.len(), row_count * outputs);
    let panel_count = outputs.div_ceil(LANES);
    for panel in (0..panel_count).step_by(PANELS) {
        let block = Block {
            rows,
            first_row: 0,
            row_count,
            panels: panels.skip(strides.at(panel, 0), panel * LANES),
            panel_count: PANELS.min(panel_count - panel),
            strides,
            ahead: &[],
        };
        let column = panel * LANES;
        let columns = (PANELS * LANES).min(outputs - column);
        // SAFETY: the rows and columns lie in `out`, which is this function's alone.
        let mut out = unsafe { Out::new(out.as_mut_ptr().add(column), outputs, columns, &[], add) };
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
    fn what_all_keys_and_values_have_in_common_costs_8_bits_no_precision() {
        let (heads, head_dim, positions) = (2, 64, 70);
        let width = heads * head_dim;
        let queries = numbers(positions * width, 3);
        // A hundred times as large as the differences, and not the same in all of a head's numbers.
        let common = numbers(width, 7);
        let shifted = |seed| -> Vec<f32> {
            numbers(positions * width, seed).iter().enumerate().map(|(i, x)| x + 100.0 * common[i % width]).collect()
        };
        let (keys, values) = (shifted(1), shifted(2));
        let expected = exact(&queries, &keys, &values, (heads, heads), head_dim, false);
        let all = |rows| Heads::beside(rows, width, 0, (heads, head_dim));
        for cpu in Cpu::available() {
            let mut tile = Int8KeysValues::new(heads, head_dim, cpu);
            tile.set(all(&keys), all(&values));
            let mut ours = vec![f32::NAN; positions * width];
            tile.stored().attend(all(&queries), 0.3, Attend::Everywhere, &mut ours);
            let difference = largest_difference(&ours, &expected);
            assert!(difference < 0.02, "{cpu:?}: {difference}");
        }
    }

    #[test]
    fn a_far_off_peak_costs_a_blocks_small_weights_no_precision() {
        let (head_dim, positions) = (16, 3 * POSITIONS);
        // Scores are a key's first number: a peak whose weight is a 600th of all of the others' blocks, and nothing beside it.
        let score = |p: usize| [600f32.ln(), -50.0, 0.0][usize::from(p > 0) + usize::from(p >= POSITIONS)];
        let keys: Vec<f32> =
            (0..positions).flat_map(|p| (0..head_dim).map(move |i| [score(p), 0.0][i.min(1)])).collect();
        let values = numbers(positions * head_dim, 2);
        let queries: Vec<f32> = (0..head_dim).map(|i| if i == 0 { 1.0 / 0.3 } else { 0.0 }).collect();
        let expected = exact(&queries, &keys, &values, (1, 1), head_dim, false);
        for cpu in Cpu::available() {
            let mut tile = Int8KeysValues::new(1, head_dim, cpu);
            tile.set(Heads::apart(&keys, (1, head_dim)), Heads::apart(&values, (1, head_dim)));
            let mut ours = vec![f32::NAN; 2 * head_dim];
            // Two tokens: one alone has its positions shared out.
            let both = [queries.clone(), queries.clone()].concat();
            tile.stored().attend(Heads::beside(&both, head_dim, 0, (1, head_dim)), 0.3, Attend::Everywhere, &mut ours);
            for ours in ours.chunks(head_dim) {
                assert!(largest_difference(ours, &expected) < 0.1, "{cpu:?} {ours:?} {expected:?}");
            }
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
                    let ways = [Some(positions), Some(3), None];
                    for (cpu, piece) in Cpu::available().into_iter().flat_map(|cpu| ways.map(|way| (cpu, way))) {
                        let all = |rows| Heads::beside(rows, width, 0, (kv_heads, head_dim));
                        let mut cache = KeyValueCache::new(kv_heads, head_dim, cpu);
                        let mut tile = Int8KeysValues::new(kv_heads, head_dim, cpu);
                        // Something that is forgotten again must leave no trace.
                        let forgotten = vec![f32::INFINITY; width * positions.next_multiple_of(2)];
                        let stored = if let Some(piece) = piece {
                            cache.append(all(&forgotten), all(&forgotten));
                            cache.truncate(0);
                            for (keys, values) in keys.chunks(piece * width).zip(values.chunks(piece * width)) {
                                cache.append(all(keys), all(values));
                            }
                            cache.stored()
                        } else {
                            tile.set(all(&forgotten), all(&forgotten));
                            tile.set(all(&keys), all(&values));
                            tile.stored()
                        };
                        assert_eq!(stored.len, positions);
                        let queries = Heads::beside(&queries, query_heads * head_dim, 0, (query_heads, head_dim));
                        let mut ours = vec![f32::NAN; tokens * query_heads * head_dim];
                        stored.attend(queries, 0.3, attend, &mut ours);
                        let difference = largest_difference(&ours, &expected);
                        // Numbers from -1 to 1, rounded to 8 bits three times.
                        assert!(
                            difference < 0.02,
                            "{query_heads} {kv_heads} {head_dim} {positions} {tokens} {attend:?} {cpu:?} {piece:?}: {difference}"
                        );
                    }
                }
            }
        }
    }
}
