//! Pictures out of a request: their headers are held to the limits before any pixel is decoded.

use axum::body::Bytes;
use smolvlm::image::{MAX_EDGE, encoded_size};

use crate::error::{ApiError, Result};
use crate::options::Options;
use crate::{data_url, image_files};

/// Looks at what the file's header says. A worker decodes it, in the request's time.
pub fn checked(name: &str, file: Bytes, limits: &Options) -> Result<Bytes> {
    let invalid = |message: &str| ApiError::invalid(name, message.strip_prefix("image: ").unwrap_or(message));
    let (width, height) = encoded_size(&file).map_err(|e| invalid(e.message()))?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        let most = limits.max_pixels;
        return Err(invalid(&format!("{width}x{height} is {pixels} pixels, at most {most} accepted")));
    }
    if pixels == 0 || width.max(height) > MAX_EDGE {
        return Err(invalid(&format!("{width}x{height} pixels, edges of 1 to {MAX_EDGE} accepted")));
    }
    Ok(file)
}

/// The file in a `data:` URL or in plain base64, or the one that a `file:` URL names.
pub fn from_url(name: &str, url: &str, limits: &Options) -> Result<Bytes> {
    let shown: String = url.trim_ascii().chars().take(40).collect();
    let invalid = |message: String| ApiError::invalid(name, format!("\"{shown}\": {message}"));
    // Base64 has no colon.
    let (scheme, rest) = url.trim_ascii().split_once(':').unwrap_or(("", url));
    if scheme.eq_ignore_ascii_case("file") {
        // A disk may take its time, and other requests are served in it.
        let read = || image_files::read(rest, &limits.allow_image_dir, limits.max_body_bytes());
        return tokio::task::block_in_place(read).map_err(invalid);
    }
    if !scheme.is_empty() && !scheme.eq_ignore_ascii_case("data") && !scheme.contains(';') {
        return Err(invalid(
            "this server fetches nothing; send the picture itself, as data:image/jpeg;base64,...".into(),
        ));
    }
    let bytes = data_url::decode(url).map_err(|message| ApiError::invalid(name, message))?;
    Ok(bytes.into())
}
