//! What filters and functions of a template need to know of the render that calls them.

use std::cell::Cell;

use chrono::NaiveDateTime;

/// One render's guard characters and time. They are the same for all renders of one prompt.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// The first and the last.
    pub(super) guards: (char, char),
    /// Local time.
    pub(super) now: NaiveDateTime,
}

thread_local! {
    /// A render runs on one thread from start to end.
    static CURRENT: Cell<Option<Moment>> = const { Cell::new(None) };
}

/// The moment of the render that runs on this thread.
pub(super) fn current() -> Moment {
    CURRENT.get().unwrap_or(Moment { guards: ('\u{E000}', '\u{E000}'), now: NaiveDateTime::default() })
}

/// Ends the moment when it goes.
pub(super) struct Entered;

impl Moment {
    pub(super) fn enter(self) -> Entered {
        CURRENT.set(Some(self));
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}
