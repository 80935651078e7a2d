//! The threads of a pool, at one's call for as long as a forward pass takes.
//!
//! A decode step is some two hundred products of a few microseconds each: waking a sleeping thread
//! for one costs more than the product. So the pool's threads are woken once a pass, wait busily
//! for its products, and go back to sleep after it.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Looks at the next work before a waiting thread lets others have its core: some 20 microseconds.
const PATIENCE: u32 = 1000;

thread_local! {
    /// The team whose pass runs on this thread, or null.
    static CURRENT: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// Runs `pass` with the other threads of the caller's rayon pool in attendance: [`share`] in it
/// shares its work out to those that have come.
pub fn gather<R: Send>(pass: impl FnOnce() -> R + Send) -> R {
    // Outside a pool, asking for its size would start one.
    let helpers = rayon::current_thread_index().map_or(0, |_| rayon::current_num_threads() - 1);
    if helpers == 0 {
        return pass();
    }
    let team = Team::default();
    rayon::scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| team.help());
        }
        let _pass = Pass(&team);
        let _current = Current::set(&team);
        pass()
    })
}

/// Calls `work` with every number below `tasks`, on all threads of the team that this thread's pass
/// has, or else on this one. Work within work is done by whoever does the outer one.
pub fn share(tasks: usize, work: impl Fn(usize) + Sync) {
    let team = CURRENT.get();
    if team.is_null() || tasks < 2 {
        (0..tasks).for_each(work);
    } else {
        let _busy = Current::set(ptr::null());
        // SAFETY: `gather` set it, and takes it back before the team goes.
        unsafe { &*team }.run(tasks, &work);
    }
}

/// Threads of the team that this thread's pass has.
pub fn size() -> usize {
    if CURRENT.get().is_null() { 1 } else { rayon::current_num_threads() }
}

/// A slice that tasks share out between them.
pub struct Split<'a, T> {
    start: *mut T,
    len: usize,
    all: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever takes a part promises that no other thread has it.
unsafe impl<T: Send> Sync for Split<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Split<'_, T> {}

impl<'a, T> Split<'a, T> {
    pub fn new(all: &'a mut [T]) -> Self {
        Self { start: all.as_mut_ptr(), len: all.len(), all: PhantomData }
    }

    /// `len` elements from `first` on.
    ///
    /// # Safety
    /// No other part that is in use has any of them.
    pub unsafe fn part(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: it lies in the slice, and is the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }

    /// Where element `index` is. Its use follows the same rule.
    pub fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len);
        // SAFETY: it lies in the slice, or at its end.
        unsafe { self.start.add(index) }
    }
}

/// Sets the thread's team until it is dropped.
struct Current {
    before: *const Team,
}

impl Current {
    fn set(team: *const Team) -> Self {
        Self { before: CURRENT.replace(team) }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Sends a team's helpers home when it is dropped.
struct Pass<'a>(&'a Team);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// One work at a time, and who does it.
#[derive(Default)]
struct Team {
    /// The work's number in the upper half, how many of its tasks are still to be taken in the
    /// lower one.
    left: AtomicU64,
    /// The closure, and the function that calls it; they are the work's whose number `left` has.
    work: AtomicPtr<()>,
    call: AtomicPtr<()>,
    unfinished: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    over: AtomicBool,
}

type Call = unsafe fn(*const (), usize);

const TASKS: u64 = u32::MAX as u64;

impl Team {
    /// Calls `work` with every number below `tasks`; by the one thread whose pass it is.
    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, work: &F) {
        unsafe fn call<F: Fn(usize)>(work: *const (), task: usize) {
            // SAFETY: `run` waits until nobody uses its `work` any more.
            let work = unsafe { &*work.cast::<F>() };
            work(task);
        }
        assert!(tasks as u64 <= TASKS);
        self.work.store(ptr::from_ref(work).cast_mut().cast(), Ordering::Relaxed);
        self.call.store(call::<F> as Call as *mut (), Ordering::Relaxed);
        self.unfinished.store(tasks, Ordering::Relaxed);
        let number = (self.left.load(Ordering::Relaxed) >> 32) + 1;
        self.left.store(number << 32 | tasks as u64, Ordering::Release);
        while self.take() {}
        wait(|| self.unfinished.load(Ordering::Acquire) == 0);
        if let Some(panic) = self.panic.lock().ok().and_then(|mut panic| panic.take()) {
            resume_unwind(panic);
        }
    }

    /// Works along until the pass is over.
    fn help(&self) {
        while !self.over.load(Ordering::Acquire) {
            wait(|| self.left.load(Ordering::Relaxed) & TASKS > 0 || self.over.load(Ordering::Relaxed));
            while self.take() {}
        }
    }

    /// Takes one task and does it, or finds none.
    fn take(&self) -> bool {
        let mut left = self.left.load(Ordering::Acquire);
        loop {
            let tasks = left & TASKS;
            if tasks == 0 {
                return false;
            }
            let (work, call) = (self.work.load(Ordering::Relaxed), self.call.load(Ordering::Relaxed));
            // If nobody has changed it, both are this work's: a next one begins only when every
            // task of this one is finished.
            match self.left.compare_exchange_weak(left, left - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // SAFETY: `run` stored a `Call`, never null by then.
                    let call = unsafe { std::mem::transmute::<*mut (), Call>(call) };
                    // SAFETY: the closure lives until `unfinished` is 0, which it is not before
                    // this task is done.
                    let done = catch_unwind(AssertUnwindSafe(|| unsafe { call(work, tasks as usize - 1) }));
                    if let (Err(cause), Ok(mut panic)) = (done, self.panic.lock()) {
                        panic.get_or_insert(cause);
                    }
                    self.unfinished.fetch_sub(1, Ordering::Release);
                    return true;
                }
                Err(now) => left = now,
            }
        }
    }
}

/// Waits for what another thread does in a moment.
fn wait(come: impl Fn() -> bool) {
    for look in 0.. {
        if come() {
            return;
        }
        if look < PATIENCE {
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 5] {
            pool(threads).install(|| {
                gather(|| {
                    for tasks in (0..300).chain([10_000]) {
                        let done: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        share(tasks, |task| {
                            done[task].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1), "{threads} {tasks}");
                    }
                });
            });
        }
    }

    #[test]
    fn all_threads_come() {
        let seen = Mutex::new(HashSet::new());
        pool(3).install(|| {
            gather(|| {
                // Each waits for the others: only three threads at once get through.
                let waiting = AtomicUsize::new(0);
                share(3, |_| {
                    seen.lock().unwrap().insert(std::thread::current().id());
                    waiting.fetch_add(1, Ordering::AcqRel);
                    wait(|| waiting.load(Ordering::Acquire) == 3);
                });
            });
        });
        assert_eq!(seen.into_inner().unwrap().len(), 3);
    }

    #[test]
    fn a_panic_comes_out_where_the_work_was_given() {
        let pool = pool(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| gather(|| share(100, |task| assert_ne!(task, 50, "fifty"))));
        }));
        assert!(caught.unwrap_err().downcast_ref::<String>().unwrap().contains("fifty"));
        assert!(CURRENT.get().is_null());
        // The pool is as good as new.
        pool.install(|| gather(|| share(100, |_| ())));
    }

    #[test]
    fn without_a_pass_the_caller_works_alone() {
        let here = std::thread::current().id();
        share(10, |_| assert_eq!(std::thread::current().id(), here));
    }
}
