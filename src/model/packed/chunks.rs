//! Rows through a layer, some at a time and each on one core: what they need stays in its second-level cache, and the threads wait for each
//! other twice a layer only, for all keys and values.

use std::cell::RefCell;
use std::ops::Range;

use crate::kernels::{self, Rows};

/// Rows of a chunk, at most.
const ROWS: usize = 64;

/// With fewer for each thread, the layer's products are shared out instead: every chunk reads all of its weights.
const LEAST: usize = 24;

/// What a chunk needs for a while; the memory stays with its thread.
#[derive(Default)]
pub(super) struct Buffers {
    /// What goes into a product.
    pub(super) rows: Rows,
    /// What attention gives [rows, hidden].
    pub(super) mixed: Vec<f32>,
    /// What the MLP has inside.
    pub(super) inside: Vec<f32>,
}

/// Calls `work` with all of `rows`, a chunk at a time. With `before` rows before the first of all, all chunks but the first one begin at an
/// even row.
pub(super) fn in_chunks(before: usize, rows: Range<usize>, work: impl Fn(Range<usize>, &mut Buffers) + Sync) {
    thread_local! {
        static BUFFERS: RefCell<Buffers> = RefCell::default();
    }
    let threads = kernels::threads();
    let chunk = if rows.len() < threads * LEAST {
        rows.len() + 1
    } else {
        rows.len().div_ceil(rows.len().div_ceil(ROWS).next_multiple_of(threads)).next_multiple_of(2)
    };
    // From an even row on, which may be the one before the first.
    let odd = (before + rows.start) % 2;
    let first = |task: usize| rows.start + (task * chunk).saturating_sub(odd).min(rows.len());
    kernels::share((rows.len() + odd).div_ceil(chunk), |task| {
        BUFFERS.with_borrow_mut(|buffers| work(first(task)..first(task + 1), buffers));
    });
}
