//! How large a picture may be.

use crate::error::{Error, Result};

/// Widest or highest picture accepted, in pixels.
pub const MAX_EDGE: u32 = 32_768;
/// Most pixels accepted in one picture: 100 megapixels decode to at most 800 MB (16-bit RGBA).
pub const MAX_PIXELS: u64 = 100_000_000;

/// Most memory for what a file holds besides its pixels: a compressed colour profile of a megabyte
/// may unpack to a gigabyte.
pub const METADATA_BYTES: u64 = 16 << 20;

/// Refuses what is empty, or over a limit.
pub(super) fn check_size(width: u32, height: u32) -> Result<()> {
    for (name, value) in [("width", width), ("height", height)] {
        if value == 0 || value > MAX_EDGE {
            return Err(Error::invalid_argument(format!("{name}: {value} pixels, 1 to {MAX_EDGE} accepted")));
        }
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(Error::invalid_argument(format!(
            "image: {width}x{height} is {pixels} pixels, at most {MAX_PIXELS} accepted"
        )));
    }
    Ok(())
}
