//! What `fork` does to a library with threads: a child must be told from its parent, and must find
//! no lock held by a thread that it lacks.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One process, as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Not enough: parent and child are both number 1 where each is the first of a PID namespace.
    pub(crate) id: u32,
    /// Forks between the process that began to count and this one. Not enough: a bare `clone` or
    /// `_Fork` calls no handler.
    pub(crate) forks: u32,
}

impl Process {
    pub(crate) fn current() -> Self {
        watch();
        Self { id: std::process::id(), forks: FORKS.load(Ordering::Relaxed) }
    }
}

static FORKS: AtomicU32 = AtomicU32::new(0);

/// The low half counts the threads that hold a [`NoFork`], the high half the forks that have begun.
static STATE: AtomicU64 = AtomicU64::new(0);
const FORK: u64 = 1 << 32;

thread_local! {
    /// This thread's, one in another.
    static OWN: Cell<u32> = const { Cell::new(0) };
    /// What is to be done once no fork waits for this thread.
    static LATER: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// How often the two look for each other.
const PAUSE: Duration = Duration::from_micros(100);
/// No `NoFork` is meant to last so long. A fork that has waited goes on: if it waits for a thread
/// that waits for it, that is better.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Forks on other threads wait until it is dropped.
///
/// It belongs around what a child would find half done for ever: the start of something that a
/// process has one of, and short locks that do not belong to a model. The log's listener is not
/// called inside, where it might need what the forking thread holds (in Python: the GIL); it hears
/// everything when the last one of the thread ends.
pub(crate) struct NoFork(PhantomData<*const ()>);

/// Begins a moment without forks.
pub(crate) fn no_fork() -> NoFork {
    watch();
    let own = OWN.get();
    if own == 0 {
        loop {
            let state = STATE.load(Ordering::Relaxed);
            if state >= FORK {
                std::thread::sleep(PAUSE);
            } else if STATE.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break;
            }
        }
    }
    OWN.set(own + 1);
    NoFork(PhantomData)
}

/// Whether this thread holds a [`NoFork`].
pub(crate) fn in_no_fork() -> bool {
    OWN.get() > 0
}

/// Has `work` done when the last [`NoFork`] of this thread ends, one of which it holds. A thread that
/// is ending does no more.
pub(crate) fn later(work: impl FnOnce() + 'static) {
    let _ = LATER.try_with(|later| later.borrow_mut().push(Box::new(work)));
}

impl Drop for NoFork {
    fn drop(&mut self) {
        OWN.set(OWN.get() - 1);
        if OWN.get() == 0 {
            STATE.fetch_sub(1, Ordering::Release);
            for work in LATER.try_with(RefCell::take).unwrap_or_default() {
                work();
            }
        }
    }
}

/// Has the C library call us around each fork, once in a process and its children.
fn watch() {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    // A `Once` would itself be something that a child can find half done.
    if !WATCHING.load(Ordering::Relaxed) && !WATCHING.swap(true, Ordering::Relaxed) {
        // SAFETY: the three functions live as long as the code: a library that is closed is
        // forgotten by the C library, and ours stays. Where there is no memory for them, the
        // numbers of processes still differ.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    }
}

/// Neither allocates nor locks: a signal handler may fork.
extern "C" fn before() {
    let others = |state: u64| state % FORK > u64::from(in_no_fork());
    let mut state = STATE.fetch_add(FORK, Ordering::Acquire);
    for _ in 0..LONGEST_WAIT.as_micros() / PAUSE.as_micros() {
        if !others(state) {
            break;
        }
        std::thread::sleep(PAUSE);
        state = STATE.load(Ordering::Acquire);
    }
}

extern "C" fn in_parent() {
    STATE.fetch_sub(FORK, Ordering::Release);
}

extern "C" fn in_child() {
    // Only this thread is left.
    STATE.store(in_no_fork().into(), Ordering::Relaxed);
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// A mutex that belongs to no model, and that a child finds free.
pub(crate) struct ForkMutex<T>(Mutex<T>);

impl<T> ForkMutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Only for a moment. Who panics while it is locked leaves the value as it is.
    pub(crate) fn lock(&self) -> ForkGuard<'_, T> {
        let no_fork = no_fork();
        ForkGuard { value: self.0.lock().unwrap_or_else(PoisonError::into_inner), _no_fork: no_fork }
    }
}

/// Its fields are dropped from the first to the last.
pub(crate) struct ForkGuard<'a, T> {
    value: MutexGuard<'a, T>,
    _no_fork: NoFork,
}

impl<T> Deref for ForkGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for ForkGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Whether `check` holds in a child of fork, which may take ten seconds.
    pub(crate) fn in_a_child(check: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child uses memory of its own, and ends without unwinding into the test.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: takes a number; SIGALRM ends the child.
                unsafe { libc::alarm(10) };
                let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).unwrap_or(false);
                // SAFETY: takes a number.
                unsafe { libc::_exit(i32::from(!held)) }
            }
            child => {
                let mut status = -1;
                // SAFETY: `status` is a place for the answer.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                status == 0
            }
        }
    }

    #[test]
    fn a_child_is_another_process_and_so_is_its_child() {
        let here = Process::current();
        assert_eq!(here, Process::current());
        assert!(in_a_child(|| {
            let child = Process::current();
            child.forks == here.forks + 1
                && child.id != here.id
                && in_a_child(|| Process::current().forks == child.forks + 1)
        }));
        assert_eq!(here, Process::current());
    }

    #[test]
    fn a_fork_waits_for_other_threads_and_not_for_its_own() {
        static LOCK: ForkMutex<u32> = ForkMutex::new(0);
        let (locked, wait) = mpsc::channel();
        let other = std::thread::spawn(move || {
            let mut guard = LOCK.lock();
            // Of one in another the outer counts.
            drop(no_fork());
            locked.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            *guard += 1;
        });
        wait.recv().unwrap();
        let _own = no_fork();
        let start = Instant::now();
        assert!(in_a_child(|| *LOCK.lock() == 1));
        // It has waited for the other thread, and not given up.
        assert!(start.elapsed() < LONGEST_WAIT, "{:?}", start.elapsed());
        other.join().unwrap();
    }

    #[test]
    fn a_fork_does_not_wait_for_ever() {
        let (held, wait) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            let _no_fork = no_fork();
            held.send(()).unwrap();
            ended.recv().unwrap();
        });
        wait.recv().unwrap();
        let start = Instant::now();
        // Nobody is left in the child who could hold it up.
        assert!(in_a_child(|| in_a_child(|| true)));
        assert!(start.elapsed() < LONGEST_WAIT * 4, "{:?}", start.elapsed());
        end.send(()).unwrap();
        other.join().unwrap();
    }
}
