//! What the library has to say while it works; without a listener, nothing is formatted.

use std::cell::Cell;
use std::fmt;
use std::sync::{PoisonError, RwLock};

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

static SINK: RwLock<Option<Box<Sink>>> = RwLock::new(None);

thread_local! {
    /// A sink that caused a message would listen to itself, and wait for itself.
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Sets who listens, once the former listener is done. False, and nothing is set, from inside a sink.
pub fn set(sink: Option<Box<Sink>>) -> bool {
    if LISTENING.get() {
        return false;
    }
    let former = std::mem::replace(&mut *SINK.write().unwrap_or_else(PoisonError::into_inner), sink);
    drop(former);
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
    if let Some(sink) = &*SINK.read().unwrap_or_else(PoisonError::into_inner) {
        LISTENING.set(true);
        // Reset even if the sink panics.
        struct Done;
        impl Drop for Done {
            fn drop(&mut self) {
                LISTENING.set(false);
            }
        }
        let _done = Done;
        sink(level, &message.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_listener_hears_and_neither_hears_nor_replaces_itself() {
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
}
