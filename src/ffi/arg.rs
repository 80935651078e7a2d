//! What comes from C, checked: pointers, strings, codes and versioned structs, each named in its
//! error.

use std::ffi::{CStr, c_char, c_void};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::types::{smolvlm_metrics, smolvlm_options, smolvlm_request};
use crate::error::{Error, ErrorKind, Result};

/// A `struct_size` over this is an uninitialised variable, not a newer version of the library.
const MAX_STRUCT_BYTES: usize = 4096;
/// More images or stop strings than this are an uninitialised count.
const MAX_ELEMENTS: usize = 65_536;

/// A struct that begins with `struct_size: usize`.
///
/// # Safety
/// The type is `repr(C)`, begins with a `usize`, is valid with all its bytes zero, and where its
/// alignment divides the size of a part of it from the start, no pointer in it is cut.
pub(super) unsafe trait Versioned: Copy {}

// SAFETY: see types.rs: numbers, nullable pointers and nullable functions only, pointers aligned.
unsafe impl Versioned for smolvlm_options {}
// SAFETY: as above.
unsafe impl Versioned for smolvlm_request {}
// SAFETY: as above.
unsafe impl Versioned for smolvlm_metrics {}

fn null(name: impl Display) -> Error {
    Error::invalid_argument(format!("{name}: NULL"))
}

/// Refuses NULL, and an address that no such object can have.
fn checked<T>(pointer: *const T, name: impl Display) -> Result<*const T> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        return Err(Error::invalid_argument(format!(
            "{name}: {pointer:p} is not aligned to {} bytes",
            align_of::<T>()
        )));
    }
    Ok(pointer)
}

/// A handle that the library made, held for as long as the call lasts, even if the caller frees it
/// meanwhile.
///
/// # Safety
/// `handle` is NULL, or [`give`] made it and [`release`] did not take it yet.
pub(super) unsafe fn handle<T>(handle: *const T, name: &str) -> Result<Arc<T>> {
    let handle = checked(handle, name)?;
    // SAFETY: the caller of this function promises a live handle, which is an `Arc`'s raw pointer.
    unsafe {
        Arc::increment_strong_count(handle);
        Ok(Arc::from_raw(handle))
    }
}

/// A handle for C, to be freed by [`release`].
pub(super) fn give<T>(value: T) -> *mut T {
    Arc::into_raw(Arc::new(value)).cast_mut()
}

/// Frees a handle; NULL is fine.
///
/// # Safety
/// `handle` is NULL, or [`give`] made it and this is the only time that it is freed.
pub(super) unsafe fn release<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller of this function promises a live handle, which is an `Arc`'s raw
        // pointer.
        drop(unsafe { Arc::from_raw(handle.cast_const()) });
    }
}

/// A place for a result, NULL from now on.
///
/// # Safety
/// `out` is NULL or valid for a write during `'a`.
pub(super) unsafe fn out<'a, T>(out: *mut *mut T, name: &str) -> Result<&'a mut *mut T> {
    checked(out, name)?;
    // SAFETY: not NULL and aligned by `checked`; the caller of this function promises that it can
    // be written. What C left in there may be uninitialised, so it is overwritten before it is
    // borrowed.
    unsafe {
        out.write(std::ptr::null_mut());
        Ok(&mut *out)
    }
}

/// A string; NULL is an error.
///
/// # Safety
/// `text` is NULL or NUL-terminated and unchanged during `'a`.
pub(super) unsafe fn string<'a>(text: *const c_char, name: impl Display) -> Result<&'a str> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL; the caller of this function promises the rest.
    unsafe { CStr::from_ptr(text) }
        .to_str()
        .map_err(|e| Error::invalid_argument(format!("{name}: byte {} is not UTF-8", e.valid_up_to())))
}

/// A string; NULL is none.
///
/// # Safety
/// As [`string`].
pub(super) unsafe fn optional_string<'a>(text: *const c_char, name: impl Display) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller of this function promises what `string` needs.
    unsafe { string(text, name) }.map(Some)
}

/// An array; NULL is fine where there are no elements.
///
/// # Safety
/// `data` is NULL or valid for reads of `count` elements, unchanged during `'a`.
pub(super) unsafe fn array<'a, T>(data: *const T, count: usize, name: &str, count_name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if count > MAX_ELEMENTS {
        return Err(Error::invalid_argument(format!("{count_name}: {count} given, at most {MAX_ELEMENTS} accepted")));
    }
    let data = checked(data, name)?;
    // SAFETY: not NULL, aligned and not longer than an allocation can be; the caller of this
    // function promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(data, count) })
}

/// The bytes of a picture.
///
/// # Safety
/// `data` is NULL or valid for reads of `size` bytes, unchanged during `'a`.
pub(super) unsafe fn bytes<'a>(data: *const c_void, size: usize) -> Result<&'a [u8]> {
    if data.is_null() {
        return Err(null("data"));
    }
    if size > isize::MAX as usize {
        return Err(Error::invalid_argument(format!("data_size: {size} bytes given, more than memory can hold")));
    }
    // SAFETY: not NULL and not longer than an allocation can be; the caller of this function
    // promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(data.cast(), size) })
}

/// The choice that the code `value` stands for.
pub(super) fn code<T: Copy>(value: i32, choices: &[(i32, T)], name: impl Display) -> Result<T> {
    choices
        .iter()
        .find(|(code, _)| *code == value)
        .map(|(_, choice)| *choice)
        .ok_or_else(|| Error::invalid_argument(format!("{name}: {value} is unknown")))
}

/// Where the engine blames a value of the caller, says in which struct the value is.
pub(super) fn within<T>(parent: &str, result: Result<T>) -> Result<T> {
    result.map_err(|e| if e.kind() == ErrorKind::InvalidArgument { e.within(parent) } else { e })
}

/// Copies a growable struct of any version: fields that the caller's lacks are zero.
///
/// # Safety
/// `pointer` is NULL or valid for reads of `struct_size` bytes, its first field, or of that field.
pub(super) unsafe fn versioned<T: Versioned>(pointer: *const T, name: &str) -> Result<T> {
    // SAFETY: the caller of this function promises what `struct_size` needs.
    let size = unsafe { struct_size(pointer, name) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: the caller of this function promises that `size` bytes can be read.
    let rest = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if let Some(at) = rest.iter().position(|&byte| byte != 0) {
        return Err(Error::invalid_argument(format!(
            "{name}.struct_size: {size} bytes given, byte {} is set and this library knows {known}",
            known + at
        )));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes can be read as above, and `value` has room for them; a `Versioned` type
    // is valid with its remaining bytes zero.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        Ok(value.assume_init())
    }
}

/// Fills a growable struct of any version; fields that the library does not know become zero.
///
/// # Safety
/// `out` is NULL or valid for reads of its first field and writes of as many bytes as that says.
pub(super) unsafe fn fill<T: Versioned>(out: *mut T, value: &T, name: &str) -> Result<()> {
    // SAFETY: the caller of this function promises what `struct_size` needs.
    let size = unsafe { struct_size(out, name) }?;
    let known = size.min(size_of::<T>());
    let out = out.cast::<u8>();
    // SAFETY: the caller of this function promises that `size` bytes can be written; `struct_size`
    // itself is written back as it was.
    unsafe {
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast::<u8>(), out, known);
        out.add(known).write_bytes(0, size - known);
        out.cast::<usize>().write(size);
    }
    Ok(())
}

/// # Safety
/// `pointer` is NULL or its first field can be read.
unsafe fn struct_size<T: Versioned>(pointer: *const T, name: &str) -> Result<usize> {
    let pointer = checked(pointer, name)?;
    // SAFETY: not NULL and aligned; a `Versioned` type begins with its size, which the caller of
    // this function promises to be readable.
    let size = unsafe { pointer.cast::<usize>().read() };
    // The size of a C struct is a multiple of its alignment: another number was never a `sizeof`.
    if !(size_of::<usize>()..=MAX_STRUCT_BYTES).contains(&size) || !size.is_multiple_of(align_of::<T>()) {
        return Err(Error::invalid_argument(format!(
            "{name}.struct_size: {size} given, sizeof is {} in this version",
            size_of::<T>()
        )));
    }
    Ok(size)
}
