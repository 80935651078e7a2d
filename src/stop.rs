//! May the work go on? Deadlines and cancellation, asked between pieces of work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::error::Error;

/// Why work ended early.
#[derive(Debug)]
pub enum Halt {
    /// The caller wanted it so: no error.
    Stopped(StopReason),
    Failed(Error),
}

#[cfg(feature = "candle")]
impl Halt {
    /// The error of work that nobody could stop.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Stopped(_) => Error::internal("stopped, and nobody could stop it"),
        }
    }
}

/// What asked for the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Cancelled,
    Timeout,
}

/// The result of work that can be stopped.
pub type Run<T> = std::result::Result<T, Halt>;

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Asks, between pieces of work, whether to go on.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    signal: Canceller,
    deadline: Option<Instant>,
}

impl Stop {
    pub fn new(signal: Canceller, deadline: Option<Instant>) -> Self {
        Self { signal, deadline }
    }

    /// What asked for a stop, if anything did.
    pub fn reason(&self) -> Option<StopReason> {
        if self.signal.is_cancelled() {
            return Some(StopReason::Cancelled);
        }
        self.deadline.filter(|&d| Instant::now() >= d).map(|_| StopReason::Timeout)
    }

    pub fn check(&self) -> Run<()> {
        self.reason().map_or(Ok(()), |r| Err(Halt::Stopped(r)))
    }
}

/// Cancels the generation that runs, if one does; the semantics of `sqlite3_interrupt`.
#[derive(Clone, Debug, Default)]
pub struct Canceller(Arc<AtomicU8>);

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CANCELLED: u8 = 2;

impl Canceller {
    /// One atomic operation: from any thread, from a signal handler. Nothing happens to an idle
    /// session.
    pub fn cancel(&self) {
        let _ = self.0.compare_exchange(RUNNING, CANCELLED, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn start(&self) {
        self.0.store(RUNNING, Ordering::Relaxed);
    }

    pub(crate) fn finish(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CANCELLED
    }
}
