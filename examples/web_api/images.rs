//! Pictures out of a request: their headers are held to the limits before any pixel is decoded.

use std::io::Cursor;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageReader};
use smolvlm::image::MAX_EDGE;

use crate::error::{ApiError, Result};
use crate::options::Options;

/// Looks at what the file's header says, and returns what is worth keeping of it. A worker decodes it, in the request's time.
pub fn checked(name: &str, file: Bytes, limits: &Options) -> Result<Bytes> {
    let invalid = |message: String| ApiError::invalid(name, message);
    let file = without_profile(file);
    let reader = ImageReader::new(Cursor::new(&file)).with_guessed_format().map_err(|e| invalid(e.to_string()))?;
    if !matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) {
        return Err(invalid(format!("{} bytes that are not JPEG, PNG, WebP or BMP", file.len())));
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_whole(&file) {
        return Err(invalid(format!("a JPEG of {} bytes that ends before its end marker", file.len())));
    }
    let (width, height) = reader.into_dimensions().map_err(|e| invalid(e.to_string()))?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        let most = limits.max_pixels;
        return Err(invalid(format!("{width}x{height} is {pixels} pixels, at most {most} accepted")));
    }
    if pixels == 0 || width.max(height) > MAX_EDGE {
        return Err(invalid(format!("{width}x{height} pixels, edges of 1 to {MAX_EDGE} accepted")));
    }
    Ok(file)
}

/// A PNG without its colour profile, which no model sees: packed, it could be one that fills half a gigabyte, and the
/// decoder unpacks it before it tells the picture's size.
fn without_profile(file: Bytes) -> Bytes {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    if !file.starts_with(SIGNATURE) {
        return file;
    }
    let mut kept = SIGNATURE.to_vec();
    let mut rest = &file[SIGNATURE.len()..];
    // Length, kind, data, checksum.
    while let [a, b, c, d, kind @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (chunk, after) = rest.split_at(length.saturating_add(12).min(rest.len()));
        if !kind.starts_with(b"iCCP") {
            kept.extend_from_slice(chunk);
        }
        rest = after;
    }
    kept.extend_from_slice(rest);
    kept.into()
}

/// Whether the end marker comes; the decoder would make gray of what is missing, and the model an answer of that.
fn jpeg_is_whole(file: &[u8]) -> bool {
    const RESTARTS: std::ops::RangeInclusive<u8> = 0xd0..=0xd7;
    const END: u8 = 0xd9;
    const SCAN: u8 = 0xda;
    // After the start marker, and at each marker from there on.
    let mut rest = file.get(2..).unwrap_or_default();
    while let [0xff, marker, after @ ..] = rest {
        match *marker {
            END => return true,
            // Markers may be padded with 0xff.
            0xff => rest = &rest[1..],
            marker => {
                let [high, low, ..] = *after else { return false };
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = after.get(length..).unwrap_or_default();
                if marker == SCAN {
                    // In a scan 0xff is a byte where 0x00 follows, or a restart.
                    let is_marker = |pair: &[u8]| pair[0] == 0xff && pair[1] != 0 && !RESTARTS.contains(&pair[1]);
                    rest = rest.windows(2).position(is_marker).map_or(&[], |at| &rest[at..]);
                }
            }
        }
    }
    false
}

/// The file in a `data:` URL.
pub fn from_url(name: &str, url: &str) -> Result<Bytes> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    if !scheme.eq_ignore_ascii_case("data") {
        let shown: String = url.chars().take(40).collect();
        let message =
            format!("\"{shown}\": this server fetches nothing; send the picture itself, as data:image/jpeg;base64,...");
        return Err(ApiError::invalid(name, message));
    }
    let Some((_, data)) = url.split_once(";base64,") else {
        return Err(ApiError::invalid(name, "a data URL without ;base64,"));
    };
    STANDARD.decode(data).map(Bytes::from).map_err(|e| ApiError::invalid(name, format!("base64: {e}")))
}
