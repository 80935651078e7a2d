//! The threads of an engine, shared out between the calls that run at once.
//!
//! A call takes threads for a pass (a tile, a piece of a prompt, a decode step) and gives them back
//! after it. While there are fewer passes than threads, each takes its share of them; when none is
//! left, passes wait for their turn, first come, first served.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::Duration;

use crate::stop::{Stop, StopReason};

/// How often a pass that waits looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(10);

/// So many threads, and who has them.
pub struct Threads {
    all: usize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Passes that have threads.
    passes: usize,
    /// Calls under way that compute, or are about to.
    calls: usize,
    waiting: VecDeque<Waiting>,
    /// The number of the next pass that waits.
    number: u64,
}

struct Waiting {
    number: u64,
    thread: Thread,
}

impl Threads {
    /// `all` threads, at least one.
    pub fn new(all: usize) -> Self {
        let all = all.max(1);
        let state = State { free: all, passes: 0, calls: 0, waiting: VecDeque::new(), number: 0 };
        Self { all, state: Mutex::new(state) }
    }

    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// Counts a call until the result is dropped: what the others take leaves it its share.
    pub(crate) fn call(&self) -> Call<'_> {
        self.state().calls += 1;
        Call(self)
    }

    /// Threads for a pass, until the lease is dropped. Waits for its turn, or until `stop` ends the
    /// wait.
    pub(crate) fn take(&self, stop: &Stop) -> Result<Lease<'_>, StopReason> {
        let mut state = self.state();
        if state.waiting.is_empty()
            && let Some(count) = state.grant()
        {
            return Ok(Lease { threads: self, count });
        }
        let number = state.number;
        state.number += 1;
        state.waiting.push_back(Waiting { number, thread: thread::current() });
        loop {
            drop(state);
            thread::park_timeout(LOOK);
            state = self.state();
            let first = state.waiting.front().is_some_and(|first| first.number == number);
            let count = if first { state.grant() } else { None };
            let end = match count {
                Some(count) => Ok(Lease { threads: self, count }),
                None => match stop.reason() {
                    Some(reason) => Err(reason),
                    None => continue,
                },
            };
            state.waiting.retain(|waiting| waiting.number != number);
            wake(state);
            return end;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The threads that a pass gets now, if it gets any.
    fn grant(&mut self) -> Option<usize> {
        let count = self.free.div_ceil(self.calls.saturating_sub(self.passes).max(1));
        if count == 0 {
            return None;
        }
        self.free -= count;
        self.passes += 1;
        Some(count)
    }
}

/// Lets the first of those that wait look again.
fn wake(state: MutexGuard<'_, State>) {
    let first = state.waiting.front().filter(|_| state.free > 0).map(|first| first.thread.clone());
    drop(state);
    if let Some(thread) = first {
        thread.unpark();
    }
}

/// A call under way.
pub(crate) struct Call<'a>(&'a Threads);

impl Call<'_> {
    /// Runs `work` of the caller's, which may take long and needs no threads.
    pub(crate) fn outside<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a Threads);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.state().calls += 1;
            }
        }
        self.0.state().calls -= 1;
        let _back = Back(self.0);
        work()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.state().calls -= 1;
    }
}

/// Threads of a pass.
pub(crate) struct Lease<'a> {
    threads: &'a Threads,
    count: usize,
}

impl Lease<'_> {
    /// At least one.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.threads.state();
        state.free += self.count;
        state.passes -= 1;
        wake(state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::stop::Canceller;

    fn now(threads: &Threads) -> Option<Lease<'_>> {
        let past = Stop::new(Canceller::default(), Some(Instant::now()));
        threads.take(&past).ok()
    }

    fn counts(all: usize, calls: usize, passes: usize) -> Vec<usize> {
        let threads = Threads::new(all);
        let _calls: Vec<_> = (0..calls).map(|_| threads.call()).collect();
        let leases: Vec<_> = (0..passes).map_while(|_| now(&threads)).collect();
        leases.iter().map(Lease::count).collect()
    }

    #[test]
    fn threads_are_shared_out_among_calls() {
        assert_eq!(counts(1, 1, 2), [1]);
        assert_eq!(counts(4, 1, 2), [4]);
        assert_eq!(counts(4, 2, 3), [2, 2]);
        assert_eq!(counts(4, 3, 4), [2, 1, 1]);
        assert_eq!(counts(4, 8, 8), [1, 1, 1, 1]);
        // Loading is no call.
        assert_eq!(counts(3, 0, 2), [3]);
        assert_eq!(counts(0, 0, 2), [1]);
    }

    #[test]
    fn a_call_whose_caller_has_the_word_leaves_its_threads_to_others() {
        let threads = Threads::new(4);
        let (speaking, _other) = (threads.call(), threads.call());
        speaking.outside(|| assert_eq!(now(&threads).unwrap().count(), 4));
        assert_eq!(now(&threads).unwrap().count(), 2);
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| speaking.outside(|| panic!("a callback's"))));
        assert!(panic.is_err());
        assert_eq!(now(&threads).unwrap().count(), 2);
        drop(speaking);
        assert_eq!(now(&threads).unwrap().count(), 4);
    }

    #[test]
    fn who_waits_stops_when_told_to_and_is_forgotten() {
        let threads = Threads::new(2);
        let all = now(&threads).unwrap();
        let soon = Instant::now() + Duration::from_millis(30);
        let halt = threads.take(&Stop::new(Canceller::default(), Some(soon))).map(|_| ());
        assert_eq!(halt, Err(StopReason::Timeout));
        let canceller = Canceller::default();
        canceller.start();
        thread::scope(|scope| {
            let waits = scope.spawn(|| threads.take(&Stop::new(canceller.clone(), None)).map(|_| ()));
            thread::sleep(Duration::from_millis(30));
            assert!(!waits.is_finished());
            canceller.cancel();
            assert_eq!(waits.join().unwrap(), Err(StopReason::Cancelled));
        });
        assert!(threads.state().waiting.is_empty());
        drop(all);
        assert_eq!(now(&threads).unwrap().count(), 2);
    }

    #[test]
    fn turns_come_in_order() {
        let threads = Threads::new(2);
        let (tell, told) = mpsc::channel();
        let all = now(&threads);
        thread::scope(|scope| {
            for i in 0..6 {
                let (threads, tell) = (&threads, tell.clone());
                scope.spawn(move || {
                    let _lease = threads.take(&Stop::default());
                    tell.send(i).unwrap();
                });
                while threads.state().waiting.len() <= i {
                    thread::yield_now();
                }
            }
            drop(all);
        });
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn nobody_overtakes_who_waits() {
        let threads = Threads::new(2);
        // It is about to take them.
        threads.state().waiting.push_back(Waiting { number: u64::MAX, thread: thread::current() });
        assert!(now(&threads).is_none());
        threads.state().waiting.clear();
        assert_eq!(now(&threads).unwrap().count(), 2);
    }

    #[test]
    fn no_more_at_once_than_there_are_and_nobody_is_left_waiting() {
        let threads = Threads::new(3);
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                let (threads, now, most) = (&threads, &now, &most);
                scope.spawn(move || {
                    let _call = threads.call();
                    for pass in 0..200 {
                        let lease = threads.take(&Stop::default()).unwrap();
                        let at_work = now.fetch_add(lease.count(), Ordering::SeqCst) + lease.count();
                        most.fetch_max(at_work, Ordering::SeqCst);
                        std::hint::black_box(pass);
                        now.fetch_sub(lease.count(), Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 3);
        let state = threads.state();
        assert_eq!((state.free, state.passes, state.calls, state.waiting.len()), (3, 0, 0, 0));
    }
}
