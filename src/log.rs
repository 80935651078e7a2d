//! What the library has to say while it works; without a listener, nothing is formatted.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use crate::fork::{self, ForkMutex, Process};

/// How important a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something works, but not as it should.
    Warn,
    /// What was chosen: device, precision, threads.
    Info,
    /// Details for developers.
    Debug,
}

/// Who listens; called on any thread, from several at once.
pub type Sink = dyn Fn(Level, &str) + Send + Sync;

struct Listener {
    sink: Arc<Sink>,
    /// Read during each call. Written to only once it is nobody's to call any more, by who waits
    /// for the calls that run.
    calls: RwLock<()>,
    /// Whose threads make the calls.
    process: Process,
}

impl Listener {
    fn new(sink: Arc<Sink>) -> Arc<Self> {
        Arc::new(Self { sink, calls: RwLock::new(()), process: Process::current() })
    }
}

static LISTENER: ForkMutex<Option<Arc<Listener>>> = ForkMutex::new(None);

/// With calls of this process only: those of a parent's threads do not end in a child.
fn of_this_process(listener: &mut Option<Arc<Listener>>) -> Option<Arc<Listener>> {
    if let Some(parents) = listener.as_ref().filter(|listener| listener.process != Process::current()) {
        *listener = Some(Listener::new(parents.sink.clone()));
    }
    listener.clone()
}

thread_local! {
    /// A sink that caused a message would listen to itself, and wait for itself.
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Sets who listens, once the former listener is done. False, and nothing is set, from inside a
/// sink.
pub fn set(sink: Option<Box<Sink>>) -> bool {
    if LISTENING.get() {
        return false;
    }
    let former = {
        let mut listener = LISTENER.lock();
        let former = of_this_process(&mut listener);
        *listener = sink.map(|sink| Listener::new(sink.into()));
        former
    };
    if let Some(former) = former {
        drop(former.calls.write().unwrap_or_else(PoisonError::into_inner));
    }
    true
}

/// Something is broken.
#[cfg(feature = "onnx")]
pub(crate) fn error(message: fmt::Arguments<'_>) {
    write(Level::Error, message);
}

/// Something works, but not as it should.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    write(Level::Warn, message);
}

/// Details for developers.
#[cfg(feature = "onnx")]
pub(crate) fn debug(message: fmt::Arguments<'_>) {
    write(Level::Debug, message);
}

/// What was chosen: device, precision, threads.
pub(crate) fn info(message: fmt::Arguments<'_>) {
    write(Level::Info, message);
}

fn write(level: Level, message: fmt::Arguments<'_>) {
    if LISTENING.get() {
        return;
    }
    let later = fork::in_no_fork();
    let mut listener = LISTENER.lock();
    let Some(to) = of_this_process(&mut listener) else { return };
    if later {
        let message = message.to_string();
        fork::later(move || write(level, format_args!("{message}")));
        return;
    }
    // At once: nobody writes while it is the listener.
    let _call = to.calls.read().unwrap_or_else(PoisonError::into_inner);
    drop(listener);
    LISTENING.set(true);
    // Reset even if the sink panics.
    struct Done;
    impl Drop for Done {
        fn drop(&mut self) {
            LISTENING.set(false);
        }
    }
    let _done = Done;
    (to.sink)(level, &message.to_string());
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The listener is the process's.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_listener_hears_and_neither_hears_nor_replaces_itself() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let sink = move |level, message: &str| {
            listener.lock().unwrap().push((level, message.to_owned()));
            info(format_args!("from inside"));
            assert!(!set(None));
        };
        assert!(set(Some(Box::new(sink))));
        info(format_args!("{} threads", 2));
        assert!(set(None));
        info(format_args!("nobody listens"));
        let heard = heard.lock().unwrap();
        let ours: Vec<_> = heard.iter().filter(|(_, m)| !m.starts_with("model") && !m.starts_with("kernels")).collect();
        assert_eq!(ours, [&(Level::Info, "2 threads".to_owned())]);
    }
    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_does_not_wait_for_its_parent_s_listener() {
        use std::sync::mpsc;

        use crate::fork::tests::in_a_child;

        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (inside, wait) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        let once = Mutex::new(Some(inside));
        // The first message keeps its thread inside.
        let sink = move |_, message: &str| {
            if message == "stay"
                && let Some(inside) = once.lock().unwrap().take()
            {
                inside.send(()).unwrap();
                ended.lock().unwrap().recv().unwrap();
            }
        };
        assert!(set(Some(Box::new(sink))));
        let other = std::thread::spawn(|| info(format_args!("stay")));
        wait.recv().unwrap();
        let child = || {
            info(format_args!("in the child"));
            set(Some(Box::new(|_, _| {}))) && set(None)
        };
        assert!(in_a_child(child));
        // Another waits for its end.
        let waiting = std::thread::spawn(|| set(None));
        while LISTENER.lock().is_some() {
            std::thread::yield_now();
        }
        assert!(in_a_child(child));
        end.send(()).unwrap();
        other.join().unwrap();
        assert!(waiting.join().unwrap() && set(None));
    }

    #[test]
    fn no_fork_waits_for_a_listener() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        assert!(set(Some(Box::new(move |_, message: &str| {
            if message.starts_with("part") {
                listener.lock().unwrap().push((message.to_owned(), fork::in_no_fork()));
            }
        }))));
        {
            let _outer = fork::no_fork();
            {
                let _inner = fork::no_fork();
                info(format_args!("part {}", 1));
            }
            info(format_args!("part {}", 2));
            assert!(heard.lock().unwrap().is_empty());
        }
        assert_eq!(*heard.lock().unwrap(), [("part 1".to_owned(), false), ("part 2".to_owned(), false)]);
        assert!(set(None));
    }
}
