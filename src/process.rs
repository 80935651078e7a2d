//! What belongs to the process that made it: `fork` copies memory, and none of the threads that
//! work on it.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};
use crate::fork::Process;

/// A value whose use needs threads of its process. In a child of that process it is never dropped:
/// its threads, which a drop may wait for, are not there, and its memory goes with the child.
pub(crate) struct OfProcess<T> {
    value: ManuallyDrop<T>,
    process: Process,
}

impl<T> OfProcess<T> {
    /// A value of this process.
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), process: Process::current() }
    }

    /// Refuses to go on in a child, which would wait for ever.
    pub(crate) fn check(&self) -> Result<()> {
        check(self.process)
    }
}

/// Refuses to go on with what another process made.
pub(crate) fn check(made: Process) -> Result<()> {
    let here = Process::current();
    if made == here {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "fork: the model was loaded by process {}, whose threads its child {} does not have; load it in the child, or start children \
         without fork (in Python: multiprocessing's \"spawn\" or \"forkserver\")",
        made.id, here.id
    )))
}

impl<T> Deref for OfProcess<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for OfProcess<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.check().is_ok() {
            // SAFETY: nobody has the value after this.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Counted<'a>(&'a Cell<u32>);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn a_value_is_dropped_where_it_was_made_and_nowhere_else() {
        let drops = Cell::new(0);
        let here = OfProcess::new(Counted(&drops));
        assert!(here.check().is_ok());
        drop(here);
        assert_eq!(drops.get(), 1);
        // Its number alone is another where no handler of fork was called; it is the same in a
        // namespace of its own.
        let here = Process::current();
        for other in [Process { id: here.id + 1, ..here }, Process { forks: here.forks + 1, ..here }] {
            let mut elsewhere = OfProcess::new(Counted(&drops));
            elsewhere.process = other;
            assert!(elsewhere.check().unwrap_err().message().starts_with("fork: the model was loaded by process "));
            drop(elsewhere);
            assert_eq!(drops.get(), 1);
        }
    }
}
