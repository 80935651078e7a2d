//! Thread pools, one for each call that computes at a time: `num_threads` is for a call, whatever others do.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use rayon::ThreadPool;

use crate::error::{Error, ErrorKind, Result};

/// As many pools as calls ever ran at once; the threads of an idle one sleep.
pub(super) struct Pools {
    num_threads: usize,
    idle: Mutex<Vec<ThreadPool>>,
}

impl Pools {
    pub(super) fn new(num_threads: usize) -> Self {
        Self { num_threads, idle: Mutex::default() }
    }

    /// A pool of one's own until the lease is dropped.
    pub(super) fn take(&self) -> Result<Lease<'_>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let pool = match idle {
            Some(pool) => pool,
            None => rayon::ThreadPoolBuilder::new()
                .num_threads(self.num_threads)
                .thread_name(|i| format!("smolvlm-{i}"))
                .build()
                .map_err(|e| Error::new(ErrorKind::Backend, format!("num_threads: {}: {e}", self.num_threads)))?,
        };
        Ok(Lease { pools: self, pool: Some(pool) })
    }
}

pub(super) struct Lease<'a> {
    pools: &'a Pools,
    /// There until the lease is dropped.
    pool: Option<ThreadPool>,
}

impl Deref for Lease<'_> {
    type Target = ThreadPool;

    fn deref(&self) -> &ThreadPool {
        self.pool.as_ref().expect("a lease that lives has its pool")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.pools.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(self.pool.take());
    }
}
