//! Memory that is used again and again.

use std::cell::Cell;

/// Makes sure of at least `len` numbers; those that are there stay what they are.
pub fn grow<T: Default + Clone>(memory: &mut Vec<T>, len: usize) -> &mut [T] {
    if memory.len() < len {
        memory.resize(len, T::default());
    }
    &mut memory[..len]
}

/// Calls `use_it` with `len` numbers of no particular value, out of memory that stays with the
/// thread.
pub(super) fn scratch<R>(len: usize, use_it: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    // Whoever asks while it is in use gets some of its own.
    let mut memory = MEMORY.take();
    let result = use_it(grow(&mut memory, len));
    MEMORY.set(memory);
    result
}
