//! Rayon pools for passes: one of its own for each that runs, with as many threads as it was given.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::ThreadPool;

use crate::backend::threads::{Lease, Threads};
use crate::error::{Error, ErrorKind};
use crate::stop::{Halt, Run, Stop};

/// The engine's threads, and pools of those that are not at work.
pub(super) struct Pools {
    pub(super) threads: Threads,
    /// They have no more threads together than the engine; those of a pool without a pass sleep.
    idle: Mutex<Vec<ThreadPool>>,
}

impl Pools {
    pub(super) fn new(threads: Threads) -> Self {
        Self { threads, idle: Mutex::default() }
    }

    /// A pool for a pass, as soon as it is its turn.
    pub(super) fn take(&self, stop: &Stop) -> Run<Pool<'_>> {
        let lease = self.threads.take(stop).map_err(Halt::Stopped)?;
        let size = lease.count();
        let idle = {
            let mut idle = self.idle();
            let fits = idle.iter().rposition(|pool| pool.current_num_threads() == size);
            fits.map(|i| idle.remove(i))
        };
        let pool = match idle {
            Some(pool) => pool,
            None => rayon::ThreadPoolBuilder::new()
                .num_threads(size)
                .thread_name(|i| format!("smolvlm-{i}"))
                .build()
                .map_err(|e| Error::new(ErrorKind::Backend, format!("num_threads: {size}: {e}")))?,
        };
        Ok(Pool { pools: self, pool: Some(pool), _lease: lease })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<ThreadPool>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pass's pool; it goes back before its threads do.
pub(super) struct Pool<'a> {
    pools: &'a Pools,
    /// There until the drop.
    pool: Option<ThreadPool>,
    _lease: Lease<'a>,
}

impl Deref for Pool<'_> {
    type Target = ThreadPool;

    fn deref(&self) -> &ThreadPool {
        self.pool.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        let mut idle = self.pools.idle();
        idle.extend(self.pool.take());
        // The one that was not used for longest goes first.
        while idle.iter().map(ThreadPool::current_num_threads).sum::<usize>() > self.pools.threads.all() {
            idle.remove(0);
        }
    }
}
