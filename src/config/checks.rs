//! Numbers of a configuration that must be in range.

use crate::error::{Error, Result};

/// Any one size in a configuration above this is a damaged file; real ones stay below 2^20.
const MAX_SIZE: usize = 1 << 24;

pub(super) fn in_range(name: &str, value: usize) -> Result<()> {
    at_most(name, value, MAX_SIZE)
}

pub(super) fn at_most(name: &str, value: usize, limit: usize) -> Result<()> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value}, 1 to {limit} expected")))
}

pub(super) fn multiple(name: &str, value: usize, of: &str, factor: usize) -> Result<()> {
    if value.is_multiple_of(factor) {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value} is not a multiple of {of} {factor}")))
}

pub(super) fn epsilon(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value}, a number between 0 and 1 expected")))
}
