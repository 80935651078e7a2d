//! The wall between Rust and C: catches panics, turns errors into status codes, keeps the last
//! message.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::types::smolvlm_status;
use crate::error::{Error, Result};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of a fallible C function. This is the only place that writes the last error.
pub(super) fn run(body: impl FnOnce() -> Result<()>) -> smolvlm_status {
    // What a panic can leave half-done is behind a mutex, which it poisons, or is dropped with the
    // body.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(panicked(payload.as_ref())));
    let (status, message) = match &outcome {
        Ok(()) => (smolvlm_status::Ok, ""),
        Err(error) => (smolvlm_status::from(error.kind()), error.message()),
    };
    // A thread that is ending has no last error any more.
    let _ = LAST_ERROR.try_with(|slot| slot.replace(c_string(message)));
    status
}

/// Runs the body of a C function that has no way to fail.
pub(super) fn infallible<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// The message that [`run`] stored last on this thread; valid until it runs here again.
pub(super) fn last_error() -> *const c_char {
    LAST_ERROR.try_with(|slot| slot.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// `text` for C: a NUL inside it would hide the rest.
pub(super) fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Error::internal(format!("panic: {}", text.and_then(|t| t.lines().next()).unwrap_or("no message")))
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn message() -> String {
        // SAFETY: `last_error` returns a NUL-terminated string of this thread; nothing ran in
        // between.
        unsafe { CStr::from_ptr(last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_last_error_is_this_thread_s_last_call_s() {
        assert_eq!(message(), "", "before any call");
        assert_eq!(run(|| Err(Error::not_found("config.json: missing\0!"))), smolvlm_status::NotFound);
        assert_eq!(message(), "config.json: missing\u{fffd}!");
        std::thread::spawn(|| assert_eq!(message(), "")).join().unwrap();
        assert_eq!(run(|| Ok(())), smolvlm_status::Ok);
        assert_eq!(message(), "");
    }

    #[test]
    fn a_panic_is_a_status_with_its_message() {
        assert_eq!(run(|| panic!("tile {} of 4\nmore", 5)), smolvlm_status::Internal);
        assert_eq!(message(), "panic: tile 5 of 4");
        assert_eq!(infallible(7, || panic!("dropped")), 7);
    }
}
