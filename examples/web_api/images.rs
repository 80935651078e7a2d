//! Pictures out of a request: their headers are held to the limits before any pixel is decoded.

use std::io::Cursor;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageReader};
use smolvlm::image::{MAX_EDGE, METADATA_BYTES};

use crate::error::{ApiError, Result};
use crate::options::Options;

/// Looks at what the file's header says. A worker decodes it, in the request's time.
pub fn checked(name: &str, file: Bytes, limits: &Options) -> Result<Bytes> {
    let invalid = |message: String| ApiError::invalid(name, message);
    let mut reader = ImageReader::new(Cursor::new(&file)).with_guessed_format().map_err(|e| invalid(e.to_string()))?;
    if !matches!(reader.format(), Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) {
        return Err(invalid(format!("{} bytes that are not JPEG, PNG, WebP or BMP", file.len())));
    }
    let mut memory = image::Limits::default();
    memory.max_alloc = Some(METADATA_BYTES);
    reader.limits(memory);
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
