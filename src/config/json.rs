//! JSON files of a checkpoint.

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// Parses a JSON file of the checkpoint; errors name the file.
pub(crate) fn parse<T: DeserializeOwned>(files: &ModelFiles, name: &str) -> Result<T> {
    let bytes = files.read(name)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid_model(e.to_string()).at(files.path(name).display()))
}
