//! Versions, names, the last error and the log.

use std::ffi::{CStr, c_char, c_void};

use super::guard;
use super::types::{smolvlm_log_callback, smolvlm_log_level, smolvlm_status};
use crate::error::{Error, ErrorKind};
use crate::log::{self, Level};

/// Compile-time C strings from Cargo's variables.
macro_rules! c_str {
    ($($part:expr),+) => {
        match CStr::from_bytes_with_nul(concat!($($part,)+ "\0").as_bytes()) {
            Ok(text) => text,
            Err(_) => panic!("a NUL in a constant"),
        }
    };
}

const VERSION: &CStr = c_str!(env!("CARGO_PKG_VERSION"));

const BUILD_INFO: &CStr = c_str!(env!("CARGO_PKG_VERSION"), " ", env!("SMOLVLM_TARGET"), env!("SMOLVLM_BACKENDS"));

/// The version of the library that is loaded, e.g. "0.1.0"; the header's is
/// `SMOLVLM_VERSION_STRING`. A static string. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn smolvlm_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the library that is loaded, as `SMOLVLM_VERSION_NUMBER` is made: 10000 times
/// major, plus 100 times minor, plus patch. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn smolvlm_version_number() -> u32 {
    const fn number(text: &str) -> u32 {
        match u32::from_str_radix(text, 10) {
            Ok(number) => number,
            Err(_) => panic!("a version part that is no number"),
        }
    }
    const NUMBER: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) * 10_000
        + number(env!("CARGO_PKG_VERSION_MINOR")) * 100
        + number(env!("CARGO_PKG_VERSION_PATCH"));
    NUMBER
}

/// Version, target and backends of the library that is loaded, separated by spaces: a line
/// for a bug report. A static string. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn smolvlm_build_info() -> *const c_char {
    BUILD_INFO.as_ptr()
}

/// The name of a status, e.g. "INVALID_ARGUMENT"; "UNKNOWN" for a number that is none. A static
/// string. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn smolvlm_status_name(status: i32) -> *const c_char {
    use smolvlm_status as S;
    let names = [
        (S::Ok, c"OK"),
        (S::InvalidArgument, c"INVALID_ARGUMENT"),
        (S::NotFound, c"NOT_FOUND"),
        (S::InvalidModel, c"INVALID_MODEL"),
        (S::Unsupported, c"UNSUPPORTED"),
        (S::OutOfMemory, c"OUT_OF_MEMORY"),
        (S::ContextOverflow, c"CONTEXT_OVERFLOW"),
        (S::Busy, c"BUSY"),
        (S::Backend, c"BACKEND"),
        (S::Internal, c"INTERNAL"),
    ];
    names.iter().find(|(known, _)| *known as i32 == status).map_or(c"UNKNOWN", |(_, name)| name).as_ptr()
}

/// What went wrong in the last call on this thread that returned a status: one line of UTF-8, ""
/// after
/// `SMOLVLM_STATUS_OK` and before the first such call, never NULL. Owned by the library, valid
/// until this thread makes the next such call or ends.
#[unsafe(no_mangle)]
pub extern "C" fn smolvlm_last_error() -> *const c_char {
    guard::last_error()
}

/// Sends what the library has to say to `callback`, for the whole process; NULL ends that, and is
/// how it begins. When this returns, the callback that was set before is not running and will not
/// be called again.
///
/// Any thread. BUSY: called from inside a log callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn smolvlm_set_log_callback(
    callback: smolvlm_log_callback,
    user_data: *mut c_void,
) -> smolvlm_status {
    /// The caller's pointer, which the caller's callback takes on any thread.
    struct UserData(*mut c_void);
    // SAFETY: the caller of `smolvlm_set_log_callback` promises a callback for any thread.
    unsafe impl Send for UserData {}
    // SAFETY: as above, and for several at once.
    unsafe impl Sync for UserData {}

    guard::run(|| {
        let user_data = UserData(user_data);
        let sink = callback.map(|callback| -> Box<log::Sink> {
            Box::new(move |level, message| {
                let UserData(user_data) = &user_data;
                // SAFETY: the caller promises a callback that takes its own data and a message.
                unsafe { callback(*user_data, c_level(level) as i32, guard::c_string(message).as_ptr()) }
            })
        });
        if log::set(sink) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Busy, "callback: set from inside a log callback"))
        }
    })
}

fn c_level(level: Level) -> smolvlm_log_level {
    match level {
        Level::Error => smolvlm_log_level::Error,
        Level::Warn => smolvlm_log_level::Warn,
        Level::Info => smolvlm_log_level::Info,
        Level::Debug => smolvlm_log_level::Debug,
    }
}
