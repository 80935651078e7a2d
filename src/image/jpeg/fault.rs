//! What is said of a file that is none, or not whole.

use crate::error::Error;

pub(super) fn bad(message: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("image: JPEG: {message}"))
}

pub(super) fn cut(data: &[u8]) -> Error {
    Error::invalid_argument(format!("image: a JPEG of {} bytes that ends before its picture does", data.len()))
}
