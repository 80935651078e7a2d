//! Rows through a layer, some at a time and each on one core: what they need stays in its
//! second-level cache, and the threads wait for each other once or twice a layer only, for all keys
//! and values.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::{self, Rows};

/// Rows of a chunk, at most.
const ROWS: usize = 64;

/// With fewer for each thread, the layer's products are shared out instead: every chunk reads all
/// of its weights.
const LEAST: usize = 24;

/// What a chunk needs for a while; the memory stays with its thread.
#[derive(Default)]
pub(super) struct Buffers {
    /// What goes into a product.
    pub(super) rows: Rows,
    /// What attention gives [rows, hidden].
    pub(super) mixed: Vec<f32>,
    /// What the MLP has inside; before that, a tile's queries, or keys and values.
    pub(super) inside: Vec<f32>,
}

/// Calls `work` with all of `rows`, a chunk at a time. With `before` rows before the first of all,
/// all chunks but the first one begin at an even row.
pub(super) fn in_chunks(before: usize, rows: Range<usize>, work: impl Fn(Range<usize>, &mut Buffers) + Sync) {
    thread_local! {
        static BUFFERS: RefCell<Buffers> = RefCell::default();
    }
    // From an even row on, which may be the one before the first.
    let odd = (before + rows.start) % 2;
    let (threads, all) = (kernels::threads(), rows.len() + odd);
    let chunk = if rows.len() < threads * LEAST {
        all.max(1)
    } else {
        all.div_ceil(all.div_ceil(ROWS).next_multiple_of(threads)).next_multiple_of(2)
    };
    let first = |task: usize| rows.start + (task * chunk).saturating_sub(odd).min(rows.len());
    kernels::share(all.div_ceil(chunk), |task| {
        BUFFERS.with_borrow_mut(|buffers| work(first(task)..first(task + 1), buffers));
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn chunks_begin_at_even_rows_and_leave_none_out() {
        for threads in 1..=5 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (before, start, len) in (1..400).flat_map(|len| [(0, 0, len), (1, 0, len), (6, 3, len), (7, 3, len)]) {
                let rows = start..start + len;
                let chunks = Mutex::new(Vec::new());
                pool.install(|| {
                    kernels::gather(|| in_chunks(before, rows.clone(), |chunk, _| chunks.lock().unwrap().push(chunk)));
                });
                let mut chunks = chunks.into_inner().unwrap();
                chunks.sort_by_key(|chunk| chunk.start);
                let case = format!("{threads} {before} {rows:?} {chunks:?}");
                assert!(
                    chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= ROWS.max(threads * LEAST)),
                    "{case}"
                );
                assert!(chunks.iter().skip(1).all(|chunk| (before + chunk.start).is_multiple_of(2)), "{case}");
                assert!(chunks.len() == 1 || chunks.len().is_multiple_of(threads), "{case}");
                assert_eq!(chunks.into_iter().flatten().collect::<Vec<_>>(), rows.collect::<Vec<_>>());
            }
        }
    }
}
