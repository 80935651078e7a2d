//! Keeps ONNX Runtime from reporting home, and from the thread that would do it.
//!
//! Since 1.29 its builds for Linux report that they are started before anybody can call what turns
//! that off, and have a thread for it until the process exits: in a child of fork, which has no
//! such thread, `exit` waits for it for ever. Only a variable of the environment is asked early
//! enough.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicPtr, Ordering};

const VARIABLE: &CStr = c"ORT_DISABLE_TELEMETRY";
const SETTING: &CStr = c"ORT_DISABLE_TELEMETRY=1";

unsafe extern "C" {
    /// The C library's own.
    static environ: AtomicPtr<*const c_char>;
}

/// Sets the variable, unless the host has; to be called before ONNX Runtime is started.
///
/// Not by `setenv`, which moves and frees what `getenv` on another thread reads. Nothing that could
/// be read is freed or changed here; the C library allows a program to replace the array, and
/// copies it when it grows it.
pub(super) fn disable() {
    // SAFETY: two NUL-terminated strings. The host may change the environment meanwhile; then this
    // is as safe as its own calls are.
    if !unsafe { libc::getenv(VARIABLE.as_ptr()) }.is_null() {
        return;
    }
    // SAFETY: a pointer has the layout of an atomic one.
    let variables = unsafe { &environ };
    let old = variables.load(Ordering::Acquire);
    let mut new = vec![SETTING.as_ptr()];
    if !old.is_null() {
        // SAFETY: a NULL ends the array.
        new.extend((0..).map(|i| unsafe { *old.add(i) }).take_while(|variable| !variable.is_null()));
    }
    new.push(std::ptr::null());
    // Lives as long as the process, as whoever has read it may.
    let new = Vec::leak(new).as_mut_ptr();
    // Where another thread was first, it has set something that must not be lost; the runtime then
    // reports that it was started.
    let _ = variables.compare_exchange(old, new, Ordering::Release, Ordering::Relaxed);
}
