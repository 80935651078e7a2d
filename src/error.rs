//! The one error type: a kind to branch on and a one-line message that names the value at fault.

use std::fmt;

/// What went wrong. One-to-one with the non-zero values of `smolvlm_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A value from the caller is out of range, malformed or inconsistent.
    InvalidArgument,
    /// A file or directory is not there.
    NotFound,
    /// A checkpoint file is damaged, incomplete or contradicts another one.
    InvalidModel,
    /// Well-formed, but not something this build or this version does.
    Unsupported,
    /// A memory limit would be exceeded.
    OutOfMemory,
    /// The prompt is longer than the context.
    ContextOverflow,
    /// The session already runs a generation.
    Busy,
    /// The inference backend reported an error.
    Backend,
    /// A defect of this library.
    Internal,
}

impl ErrorKind {
    /// Lower-case words for people, e.g. `invalid argument`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::InvalidModel => "invalid model",
            Self::Unsupported => "unsupported",
            Self::OutOfMemory => "out of memory",
            Self::ContextOverflow => "context overflow",
            Self::Busy => "busy",
            Self::Backend => "backend",
            Self::Internal => "internal",
        }
    }
}

/// An error of this library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error; `message` has no final full stop. Other libraries' texts may have several
    /// lines, which become one.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        let one_line = !message.contains(['\n', '\r']);
        Self {
            kind,
            message: if one_line { message } else { message.split_whitespace().collect::<Vec<_>>().join(" ") },
        }
    }

    /// What went wrong, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What went wrong, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Puts `place` (a parameter, a file) in front of the message.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{place}: {}", self.message))
    }

    /// Says that the field which the message begins with belongs to `parent`.
    pub(crate) fn within(self, parent: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{parent}.{}", self.message))
    }

    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub(crate) fn invalid_model(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidModel, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn out_of_memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutOfMemory, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(feature = "candle")]
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // Candle appends a backtrace on further lines; a message of ours is one line.
        let text = error.to_string();
        Self::new(ErrorKind::Backend, text.lines().next().unwrap_or("unknown candle error"))
    }
}

#[cfg(feature = "onnx")]
impl From<ort::Error> for Error {
    fn from(error: ort::Error) -> Self {
        Self::new(ErrorKind::Backend, format!("onnxruntime: {}", error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        let error = Error::invalid_argument("image: Format error decoding Jpeg:\n  14 bytes\r\n");
        assert_eq!(error.message(), "image: Format error decoding Jpeg: 14 bytes");
    }
}
