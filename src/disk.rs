//! Reading from the disk: regular files alone, errors that name them, digests as they are written.

use std::fs::File;
use std::io;
use std::path::{Component, Path};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Opens a regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    // A pipe would block, and a device might never end.
    match path.metadata() {
        Ok(data) if !data.is_file() => Err(Error::invalid_model(format!("{}: is not a file", path.display()))),
        Ok(_) => File::open(path).map_err(|e| io_error(path, e)),
        Err(e) => Err(io_error(path, e)),
    }
}

/// An error of the system, with the path.
pub(crate) fn io_error(path: &Path, error: io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    if error.kind() == io::ErrorKind::NotFound { Error::not_found(message) } else { Error::invalid_model(message) }
}

/// A digest's hexadecimal digits.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A relative name that stays inside the directory.
pub(crate) fn is_plain(name: &str) -> bool {
    Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}
