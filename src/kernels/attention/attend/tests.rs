//! Attention against softmax in f64.

use super::*;
use crate::kernels::attention::{Int8KeysValues, Int16KeysValues, KeyValueCache};
use crate::kernels::cpu::Cpu;
use crate::kernels::math::tests::{largest_difference, numbers};

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
            out.extend(
                (0..head_dim).map(|i| {
                    (weights.iter().enumerate().map(|(p, w)| w * row(values, p, i)).sum::<f64>() / sum) as f32
                }),
            );
        }
    }
    out
}

/// Calls `put` with rows of `keys` and `values` in pieces, the last ones first; `before` positions
/// come before all.
fn in_pieces(
    [keys, values]: [&[f32]; 2],
    (heads, head_dim): (usize, usize),
    before: usize,
    put: impl Fn(usize, Heads<'_>, Heads<'_>),
) {
    const PIECE: usize = 22;
    let width = heads * head_dim;
    let rows = keys.len() / width;
    let first = |piece: usize| (piece * PIECE).saturating_sub(before % 2).min(rows);
    for piece in (0..(rows + 1).div_ceil(PIECE)).rev() {
        let all = first(piece) * width..first(piece + 1) * width;
        let [keys, values] = [keys, values].map(|x| Heads::beside(&x[all.clone()], width, 0, (heads, head_dim)));
        put(first(piece), keys, values);
    }
}

fn append(cache: &mut KeyValueCache, rows: [&[f32]; 2]) {
    let Stored { head_dim, len: before, .. } = cache.stored();
    let heads = cache.stored().heads.len();
    let room = cache.append(rows[0].len() / heads / head_dim);
    // SAFETY: there is one thread.
    in_pieces(rows, (heads, head_dim), before, |at, keys, values| unsafe { room.put(at, keys, values) });
}

fn set(tile: &mut Int8KeysValues, rows: [&[f32]; 2], (heads, head_dim): (usize, usize), cpu: Cpu) {
    let mut all = Int16KeysValues::new(heads, head_dim, cpu);
    let room = all.room(rows[0].len() / heads / head_dim);
    // SAFETY: there is one thread.
    in_pieces(rows, (heads, head_dim), 0, |at, keys, values| unsafe { room.put(at, keys, values) });
    tile.set(&all);
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
        set(&mut tile, [&keys, &values], (heads, head_dim), cpu);
        let mut ours = vec![f32::NAN; positions * width];
        tile.stored().attend(all(&queries), 0.3, Attend::Everywhere, &mut ours, &[]);
        let difference = largest_difference(&ours, &expected);
        assert!(difference < 0.02, "{cpu:?}: {difference}");
    }
}

#[test]
fn a_far_off_peak_costs_a_blocks_small_weights_no_precision() {
    let (head_dim, positions) = (16, 3 * POSITIONS);
    // Scores are a key's first number: a peak 600 times as heavy as a key of the other blocks, and
    // nothing beside it.
    let score = |p: usize| [600f32.ln(), -50.0, 0.0][usize::from(p > 0) + usize::from(p >= POSITIONS)];
    let values = numbers(positions * head_dim, 2);
    let queries: Vec<f32> = (0..head_dim).map(|i| if i == 0 { 1.0 / 0.3 } else { 0.0 }).collect();
    // Two tokens: one alone has its positions shared out.
    let both = [queries.clone(), queries.clone()].concat();
    // In the first block, and in the last one: there, all that came before has to become small.
    for last in [false, true] {
        let place = |p: usize| if last { positions - 1 - p } else { p };
        let keys: Vec<f32> =
            (0..positions).flat_map(|p| (0..head_dim).map(move |i| [score(place(p)), 0.0][i.min(1)])).collect();
        let expected = exact(&queries, &keys, &values, (1, 1), head_dim, false);
        for cpu in Cpu::available() {
            let all = |rows| Heads::beside(rows, head_dim, 0, (1, head_dim));
            let caches = [Precision::Bf16, Precision::Int8].map(|precision| {
                let mut cache = KeyValueCache::new(1, head_dim, precision, cpu);
                append(&mut cache, [&keys, &values]);
                cache
            });
            let mut tile = Int8KeysValues::new(1, head_dim, cpu);
            set(&mut tile, [&keys, &values], (1, head_dim), cpu);
            for stored in [caches[0].stored(), caches[1].stored(), tile.stored()] {
                let mut ours = vec![f32::NAN; 2 * head_dim];
                stored.attend(all(&both), 0.3, Attend::Everywhere, &mut ours, &[]);
                for ours in ours.chunks(head_dim) {
                    assert!(largest_difference(ours, &expected) < 0.1, "{cpu:?} {last} {ours:?} {expected:?}");
                }
            }
        }
    }
}

/// What queries of one head see of keys and values in 8 bits.
fn seen([queries, keys, values]: [&[f32]; 3], head_dim: usize, attend: Attend, cpu: Cpu) -> Vec<f32> {
    let all = |rows| Heads::beside(rows, head_dim, 0, (1, head_dim));
    let mut cache = KeyValueCache::new(1, head_dim, Precision::Int8, cpu);
    append(&mut cache, [keys, values]);
    let mut seen = vec![f32::NAN; queries.len()];
    cache.stored().attend(all(queries), 0.3, attend, &mut seen, &[]);
    seen
}

#[test]
fn positions_of_one_word_may_come_from_several_threads() {
    let (heads, head_dim, positions) = (2, 6, 1003);
    let width = heads * head_dim;
    let (keys, values) = (numbers(positions * width, 1), numbers(positions * width, 2));
    let row = |rows: &[f32], position: usize| rows[position * width..][..width].to_vec();
    let mut caches = [1, 4].map(|threads| {
        let mut cache = KeyValueCache::new(heads, head_dim, Precision::Int8, Cpu::Portable);
        let room = cache.append(positions);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (room, keys, values) = (&room, &keys, &values);
                scope.spawn(move || {
                    for position in (thread..positions).step_by(threads) {
                        let (key, value) = (row(keys, position), row(values, position));
                        let [key, value] = [&key, &value].map(|row| Heads::beside(row, width, 0, (heads, head_dim)));
                        // SAFETY: no other thread has this position, and 8 bits have no pairs.
                        unsafe { room.put(position, key, value) };
                    }
                });
            }
        });
        cache
    });
    let queries = numbers(width, 3);
    let [one, four] = caches.each_mut().map(|cache| {
        let mut seen = vec![f32::NAN; width];
        let queries = Heads::beside(&queries, width, 0, (heads, head_dim));
        cache.stored().attend(queries, 0.3, Attend::Everywhere, &mut seen, &[]);
        seen
    });
    assert_eq!(one, four);
}

#[test]
fn small_weights_in_8_bits_add_up_beside_a_large_one() {
    // One position is 2048 times, 11 octaves, as heavy as each of the 2047 others, whose values are
    // all the same: half of what the query sees.
    let (head_dim, positions) = (16, 2 * POSITIONS);
    let keys: Vec<f32> =
        (0..positions).flat_map(|p| (0..head_dim).map(move |i| if p + i == 0 { 2048f32.ln() } else { 0.0 })).collect();
    let values: Vec<f32> = (0..positions * head_dim).map(|i| if i < head_dim { -1.0 } else { 1.0 }).collect();
    let query: Vec<f32> = (0..2 * head_dim).map(|i| if i % head_dim == 0 { 1.0 / 0.3 } else { 0.0 }).collect();
    let expected = exact(&query, &keys, &values, (1, 1), head_dim, false);
    for cpu in Cpu::available() {
        let ours = seen([&query, &keys, &values], head_dim, Attend::Everywhere, cpu);
        // In AVX-512 either weight is off by 1.1 % at most, and what is seen by as much; elsewhere
        // all of it is exact.
        let bound = if cpu >= Cpu::Avx512 { 0.012 } else { 1e-3 };
        assert!(largest_difference(&ours, &expected) < bound, "{cpu:?} {ours:?} {expected:?}");
    }
}

#[test]
fn what_a_token_does_not_see_weighs_nothing_however_little_the_rest_does() {
    // The first token sees itself alone, which weighs far less than what it does not see: further
    // below than there are 16-bit levels.
    let (head_dim, positions) = (16, 40);
    let mut keys = vec![0.0; positions * head_dim];
    for (p, key) in keys.chunks_exact_mut(head_dim).enumerate() {
        key[0] = if p == 0 { -690.0 } else { 690.0 };
    }
    let values = numbers(positions * head_dim, 2);
    let mut queries = vec![0.0; positions * head_dim];
    queries.iter_mut().step_by(head_dim).for_each(|x| *x = 1.0 / 0.3);
    let expected = exact(&queries, &keys, &values, (1, 1), head_dim, true);
    for cpu in Cpu::available() {
        let ours = seen([&queries, &keys, &values], head_dim, Attend::CausallyFrom(0), cpu);
        assert!(largest_difference(&ours, &expected) < 0.02, "{cpu:?} {:?} {:?}", &ours[..4], &expected[..4]);
    }
}

#[test]
fn attention_is_attention_however_the_tokens_come() {
    for (query_heads, kv_heads, head_dim) in [(1, 1, 2), (2, 1, 6), (3, 1, 64), (6, 2, 24), (4, 4, 72)] {
        for (positions, tokens) in
            [(1, 1), (17, 17), (70, 70), (70, 5), (131, 1), (700, 1), (513, 1), (POSITIONS + 5, 17)]
        {
            let width = kv_heads * head_dim;
            let (keys, values) = (numbers(positions * width, 1), numbers(positions * width, 2));
            let queries = numbers(tokens * query_heads * head_dim, 3);
            for attend in [Attend::CausallyFrom(positions - tokens), Attend::Everywhere] {
                let causal = attend != Attend::Everywhere;
                let expected = exact(&queries, &keys, &values, (query_heads, kv_heads), head_dim, causal);
                // A picture's, all at once; or in a cache, all at once or a piece of the positions
                // at a time.
                let ways = [None, Some((positions, Precision::Bf16)), Some((3, Precision::Bf16))];
                let ways = ways.into_iter().chain([Some((positions, Precision::Int8)), Some((3, Precision::Int8))]);
                for (cpu, way) in Cpu::available().into_iter().flat_map(|cpu| ways.clone().map(move |way| (cpu, way))) {
                    let precision = way.map_or(Precision::Bf16, |(_, precision)| precision);
                    let mut cache = KeyValueCache::new(kv_heads, head_dim, precision, cpu);
                    let mut tile = Int8KeysValues::new(kv_heads, head_dim, cpu);
                    // Something that is forgotten again must leave no trace.
                    let forgotten = vec![f32::INFINITY; width * positions.next_multiple_of(2)];
                    let stored = if let Some((piece, _)) = way {
                        // All at once; or some of it before each piece, so that the cache has to
                        // grow later.
                        let some =
                            if piece < positions { &forgotten[..forgotten.len().min(4 * width)] } else { &forgotten };
                        for (keys, values) in keys.chunks(piece * width).zip(values.chunks(piece * width)) {
                            let len = cache.stored().len;
                            append(&mut cache, [some, some]);
                            cache.truncate(len);
                            append(&mut cache, [keys, values]);
                        }
                        cache.stored()
                    } else {
                        set(&mut tile, [&forgotten, &forgotten], (kv_heads, head_dim), cpu);
                        set(&mut tile, [&keys, &values], (kv_heads, head_dim), cpu);
                        tile.stored()
                    };
                    assert_eq!(stored.len, positions);
                    let queries = Heads::beside(&queries, query_heads * head_dim, 0, (query_heads, head_dim));
                    let mut ours = vec![f32::NAN; tokens * query_heads * head_dim];
                    stored.attend(queries, 0.3, attend, &mut ours, &[]);
                    let difference = largest_difference(&ours, &expected);
                    // Numbers from -1 to 1, rounded to 8 bits three times.
                    assert!(
                        difference < 0.02,
                        "{query_heads} {kv_heads} {head_dim} {positions} {tokens} {attend:?} {cpu:?} {way:?}: {difference}"
                    );
                }
            }
        }
    }
}
