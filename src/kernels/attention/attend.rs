//! What tokens see of keys and values.

use std::cell::RefCell;

use super::product::product;
use super::softmax::{Positions, Scores, Softmax};
use super::stored::{Head, Heads, Stored};
use crate::kernels::aligned::Aligned;
use crate::kernels::layout::{LANES, OCTAVE, PAIR, QUAD, Strides};
use crate::kernels::math;
use crate::kernels::precision::Precision;
use crate::kernels::product::Panels;
use crate::kernels::rows::Rows;
use crate::kernels::scratch::scratch;
use crate::kernels::team::{self, Split};

/// Query rows that one task takes, or a few less.
const ROWS: usize = 96;

/// Positions of a block: a few hundred kB of scores, keys and values, in the second-level cache.
/// Smaller blocks, in the first one, join more often than that is worth. A multiple of [`LANES`],
/// as is the next one.
const POSITIONS: usize = 1024;

/// Positions that one task takes where there is only one token.
const PART: usize = 256;

/// More bytes of keys and values than this are not in the second-level cache when their turn comes:
/// the next ones are fetched while those before them are in use.
const FAR: usize = 1 << 20;

/// Which positions a token looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attend {
    /// All.
    Everywhere,
    /// Its own and the ones before; the first token's own is this.
    CausallyFrom(usize),
}

impl Stored<'_> {
    /// What tokens see: `queries`, each multiplied by `scale`, become mixed values [tokens, query
    /// heads * head_dim] in `out`. As many query heads in a row share a head of the cache as there
    /// are more of them. At the last head's end some of `next` is fetched, as
    /// [`PackedLinear::multiply_and_fetch`](crate::kernels::PackedLinear::multiply_and_fetch) does.
    pub fn attend(&self, queries: Heads<'_>, scale: f32, attend: Attend, out: &mut [f32], next: &[u8]) {
        let (tokens, heads, width) = (queries.rows, self.heads.len(), queries.heads * queries.head_dim);
        assert!(queries.heads.is_multiple_of(heads) && queries.head_dim == self.head_dim);
        let first_position = match attend {
            Attend::Everywhere => None,
            Attend::CausallyFrom(first) => Some(first),
        };
        assert!(first_position.is_none_or(|first| first + tokens <= self.len) && out.len() == tokens * width);
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
            first_position,
            positions,
            next,
        };
        if tokens == 1 {
            return self.attend_once(group, &out, |head, positions| work(head, 0, 1, positions));
        }
        let at_once = (ROWS / group).max(1);
        let chunks = tokens.div_ceil(at_once);
        team::share(heads * chunks, |task| {
            // The last tokens see the most: theirs come first.
            let (head, first) = (task % heads, (chunks - 1 - task / heads) * at_once);
            let work = work(head, first, at_once.min(tokens - first), (0, self.len));
            work.run(|row, mixed, _, sum| {
                let (token, query_head) = work.place(row);
                // SAFETY: no other task has this token and head.
                let out = unsafe { out.part(token * width + query_head * self.head_dim, self.head_dim) };
                self.finish(head, mixed, sum, out);
            });
        });
    }

    /// What [`Self::attend`] begins with, to be fetched before; none that are not in 8 bits.
    pub fn first(&self) -> &[u8] {
        self.block(0, 0)[0].bytes()
    }

    /// A head's keys and values, from position `from` on.
    fn block(&self, head: usize, from: usize) -> [Panels<'_>; 2] {
        let Head { keys, values, .. } = self.heads[head];
        let (keys_of_group, positions_of_group) = match keys.precision() {
            Precision::Bf16 => (self.head_dim.div_ceil(PAIR), PAIR),
            _ => (self.head_dim.div_ceil(QUAD), QUAD),
        };
        [
            keys.skip(from / LANES * keys_of_group, from),
            values.skip(from / positions_of_group * self.head_dim.div_ceil(LANES), 0),
        ]
    }

    /// Bytes that may be fetched ahead.
    fn bytes(&self) -> usize {
        self.heads.iter().map(|head| head.keys.bytes().len() + head.values.bytes().len()).sum()
    }

    /// Values mixed with weights that add up to `sum`, of a head -> what its query sees.
    fn finish(&self, head: usize, mixed: &[f32], sum: f32, out: &mut [f32]) {
        math::scale_and_add(mixed, sum.recip(), self.heads[head].mean, out, self.cpu);
    }

    /// The same for one token, whose `group` rows a head are too few to share out: its positions
    /// are.
    fn attend_once<'a>(
        &self,
        group: usize,
        out: &Split<'_, f32>,
        work: impl Fn(usize, (usize, usize)) -> Work<'a> + Sync,
    ) {
        let (heads, head_dim) = (self.heads.len(), self.head_dim);
        let parts = self.len.div_ceil(PART);
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
                work(head, (part * PART, self.len.min((part + 1) * PART))).run(|row, mixed, largest, sum| {
                    let result = &mut results[row * row_len..][..row_len];
                    result[..head_dim].copy_from_slice(mixed);
                    result[head_dim..].copy_from_slice(&[largest, sum]);
                });
            });
            for row in 0..heads * group {
                let (head, row) = (row / group, row % group);
                let mut all = Softmax::NONE;
                mixed.fill(0.0);
                for part in 0..parts {
                    let part = &partial[(head * parts + part) * part_len + row * row_len..][..row_len];
                    let scale = all.join(part[head_dim], part[head_dim + 1]);
                    mixed.iter_mut().zip(part).for_each(|(mixed, x)| *mixed = *mixed * all.kept + x * scale);
                }
                // SAFETY: the parts are done, and nobody else writes.
                self.finish(head, mixed, all.sum, unsafe { out.part((head * group + row) * head_dim, head_dim) });
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
    /// The position of the first token of all, where tokens see none behind their own.
    first_position: Option<usize>,
    /// From a multiple of [`LANES`] on, and up to which.
    positions: (usize, usize),
    /// What is wanted after the last head.
    next: &'a [u8],
}

/// What a task needs for a while; the memory stays with its thread.
#[derive(Default)]
struct Buffers {
    queries: Rows,
    /// Of a block of positions.
    scores: Scores,
    /// Of all blocks so far, relative to the row's largest score.
    mixed: Aligned<f32>,
    rows: Vec<Softmax>,
}

impl<'a> Work<'a> {
    /// The token and the query head of this task's row: tokens in order, and each one's heads.
    fn place(&self, row: usize) -> (usize, usize) {
        (self.first + row / self.group, self.head * self.group + row % self.group)
    }

    /// The end of the positions of this task's that row `row` looks at.
    fn end(&self, row: usize) -> usize {
        let token = self.first + row / self.group;
        self.first_position.map_or(self.stored.len, |first| first + token + 1).min(self.positions.1)
    }

    /// Gives `take` each row's number, its values mixed with weights relative to the largest, its
    /// largest score, and the sum of its weights.
    fn run(&self, take: impl FnMut(usize, &[f32], f32, f32)) {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        BUFFERS.with_borrow_mut(|buffers| self.run_in(buffers, take));
    }

    fn run_in(&self, buffers: &mut Buffers, mut take: impl FnMut(usize, &[f32], f32, f32)) {
        let Stored { head_dim, cpu, .. } = *self.stored;
        let precision = self.stored.heads[self.head].keys.precision();
        let Buffers { queries, scores, mixed, rows } = buffers;
        let count = self.count * self.group;

        // Weights are powers of 2, not of e.
        let octave = if precision == Precision::Bf16 { 1.0 } else { OCTAVE as f32 };
        let scale = self.scale * std::f32::consts::LOG2_E * octave;
        queries.set(precision, (count, head_dim), cpu, |row, out| {
            let (token, query_head) = self.place(row);
            math::scale_and_add(self.queries.row(token, query_head), scale, &[], out, cpu);
        });

        let mixed = mixed.grow(count * head_dim);
        rows.clear();
        rows.resize(count, Softmax::NONE);
        let (first, end) = (self.positions.0, self.end(count - 1));
        let strides = Strides { panel: 1, group: head_dim.div_ceil(LANES) };
        let of_block = if self.stored.bytes() > FAR { POSITIONS * head_dim.next_multiple_of(LANES) } else { 0 };
        let fetched = |panels: Panels<'a>| &panels.bytes()[..panels.bytes().len().min(of_block)];
        for from in (first..end).step_by(POSITIONS) {
            let positions = POSITIONS.min(end - from);
            let [keys, values] = self.stored.block(self.head, from);
            let value_scales = self.stored.heads[self.head].value_scales;
            let value_scales = if value_scales.is_empty() { &[] } else { &value_scales[from..][..positions] };
            let block = Positions { keys, count: positions, value_scales };
            let after_values = match from + POSITIONS {
                next if next < end => fetched(self.stored.block(self.head, next)[0]),
                _ if self.head + 1 < self.stored.heads.len() => fetched(self.stored.block(self.head + 1, first)[0]),
                _ => self.next,
            };
            let seen = |row| self.end(row).saturating_sub(from).min(positions);
            scores.weigh(queries, block, seen, cpu, rows, fetched(values));
            if from > first {
                for (mixed, row) in mixed.chunks_exact_mut(head_dim).zip(&*rows).filter(|(_, row)| row.kept != 1.0) {
                    math::scale(mixed, row.kept, cpu);
                }
            }
            product(&scores.weights, values, (head_dim, strides), after_values, cpu, mixed, from > first);
            if !value_scales.is_empty() {
                product(&scores.low, values, (head_dim, strides), &[], cpu, mixed, true);
            }
        }
        for ((row, mixed), softmax) in mixed.chunks_exact(head_dim).enumerate().zip(rows) {
            take(row, mixed, softmax.largest, softmax.sum);
        }
    }
}

#[cfg(test)]
mod tests;
