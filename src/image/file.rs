//! Picture files: what they are by their first bytes, and their pixels.

use std::io::{Cursor, ErrorKind};

use image::error::{ImageError, UnsupportedErrorKind};
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::limits::{METADATA_BYTES, check_size};
use super::{jpeg, unheard};
use crate::error::{Error, Result};

/// Files that are read.
pub const FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM";

/// A multipart header or a part of the frame before: the most that may stand in front of a JPEG.
/// Unknown containers have previews in them, farther behind, which are another picture.
const GARBAGE: usize = 512;

enum Kind<'a> {
    /// From its start marker on.
    Jpeg(&'a [u8]),
    Other(ImageFormat),
}

/// Width and height that the header of a file says, as they are stored; no pixel is decoded.
pub fn encoded_size(data: &[u8]) -> Result<(u32, u32)> {
    match kind(data)? {
        Kind::Jpeg(data) => jpeg::header(data).map(|header| (header.width, header.height)),
        Kind::Other(format) => open(data, format).map(|decoder| decoder.dimensions()),
    }
}

/// Memory for a pixel: one of 16-bit RGBA, and as much again for what a decoder has beside.
const PIXEL_BYTES: u64 = 16;

/// All pixels of a file's first picture.
pub fn decode(data: &[u8], orient: bool) -> Result<DynamicImage> {
    let (mut image, orientation) = match kind(data)? {
        Kind::Jpeg(data) => {
            let header = jpeg::header(data)?;
            check_size(header.width, header.height)?;
            (DynamicImage::from(jpeg::decode(data)?), header.orientation)
        }
        Kind::Other(format) => {
            let mut decoder = open(data, format)?;
            // A header's numbers are checked before anything is allocated by them.
            let (width, height) = decoder.dimensions();
            check_size(width, height)?;
            let pixels = u64::from(width) * u64::from(height);
            decoder.set_limits(limits(pixels * PIXEL_BYTES + METADATA_BYTES)).map_err(invalid)?;
            // Damaged metadata is no reason to refuse whole pixels.
            let orientation = match format {
                ImageFormat::Png => unheard::png_orientation(data),
                _ => decoder.orientation().ok(),
            };
            let mut image = DynamicImage::from_decoder(decoder).map_err(invalid)?;
            if format == ImageFormat::Tiff && image.color().has_alpha() && unheard::is_premultiplied(data) {
                unheard::unmultiply(&mut image);
            }
            (image, orientation)
        }
    };
    if orient {
        image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    }
    Ok(image)
}

fn open(data: &[u8], format: ImageFormat) -> Result<impl ImageDecoder> {
    let mut reader = ImageReader::with_format(Cursor::new(data), format);
    reader.limits(limits(METADATA_BYTES));
    reader.into_decoder().map_err(invalid)
}

fn limits(bytes: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(bytes);
    limits
}

fn invalid(error: ImageError) -> Error {
    const CURE: &str = "save it as a PNG of 8 or 16 bits a channel";
    Error::invalid_argument(match &error {
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => {
            "image: the file ends before its picture does".to_owned()
        }
        ImageError::Unsupported(e) => match e.kind() {
            UnsupportedErrorKind::Color(ExtendedColorType::Unknown(bits)) => {
                let format = e.format_hint().to_string().to_uppercase();
                format!("image: {format} with pixels of {bits} bits, of a kind that is not read; {CURE}")
            }
            UnsupportedErrorKind::GenericFeature(what) => format!("image: {}: {what}; {CURE}", e.format_hint()),
            _ => format!("image: {error}; {CURE}"),
        },
        _ => format!("image: {error}"),
    })
}

fn kind(data: &[u8]) -> Result<Kind<'_>> {
    use ImageFormat::{Bmp, Gif, Png, Pnm, Tiff, WebP};
    if data.starts_with(b"\xff\xd8") {
        return Ok(Kind::Jpeg(data));
    }
    // BigTIFF, which the same decoder reads.
    if data.starts_with(b"II+\0") || data.starts_with(b"MM\0+") {
        return Ok(Kind::Other(Tiff));
    }
    if let Ok(format @ (Bmp | Gif | Png | Pnm | Tiff | WebP)) = image::guess_format(data) {
        return Ok(Kind::Other(format));
    }
    if let Some(name) = foreign(data) {
        return Err(Error::invalid_argument(format!("image: {name}, which is not read; give {FORMATS}")));
    }
    let front = &data[..data.len().min(GARBAGE)];
    if let Some(at) = front.windows(3).position(|bytes| bytes == b"\xff\xd8\xff") {
        return Ok(Kind::Jpeg(&data[at..]));
    }
    let start = &data[..data.len().min(8)];
    Err(Error::invalid_argument(format!("image: {} bytes starting {start:02x?} are not {FORMATS}", data.len())))
}

/// Files that are sent for pictures and are none, or none that is read: what they are.
fn foreign(data: &[u8]) -> Option<String> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, b"\xff\x0a", "a JPEG XL file"),
        (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
        (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
        (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
        (0, b"8BPS", "a Photoshop file"),
        (0, b"%PDF", "a PDF file"),
        (0, b"\0\0\x01\0", "an icon file"),
        (0, b"v/1\x01", "an OpenEXR file"),
        (0, b"#?RADIANCE", "a Radiance HDR file"),
        (0, b"DDS ", "a DDS file"),
        (0, b"qoif", "a QOI file"),
        (0, b"farbfeld", "a farbfeld file"),
        (0, b"Pf", "a PFM file"),
        (0, b"PF", "a PFM file"),
        (0, b"II\xbc\x01", "a JPEG XR file"),
        (0, b"FUJIFILM", "a raw camera file"),
        (0, b"IIRO", "a raw camera file"),
        (0, b"IIU\0", "a raw camera file"),
        (8, b"AVI ", "an AVI video"),
        (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
        (0, b"\x1f\x8b", "a gzip file"),
        (0, b"PK\x03\x04", "a zip file"),
        (0, b"\x93NUMPY", "a NumPy file (hand over its array)"),
        (0, b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches the file itself)"),
        (0, b"<svg", "an SVG drawing"),
        (0, b"<?xml", "an XML text, perhaps an SVG drawing"),
        (0, b"<!DOCTYPE", "a web page"),
        (0, b"<!doctype", "a web page"),
        (0, b"<html", "a web page"),
        (0, b"data:", "a data: URL (decode its base64)"),
        (0, b"/9j/", "a JPEG in base64 (decode it)"),
        (0, b"iVBORw0KGgo", "a PNG in base64 (decode it)"),
    ];
    if data.get(4..8) == Some(b"ftyp") {
        let brand = String::from_utf8_lossy(data.get(8..12).unwrap_or_default()).into_owned();
        return Some(match brand.as_str() {
            "avif" | "avis" => "an AVIF file".into(),
            "heic" | "heix" | "hevc" | "hevx" | "heim" | "heis" => "a HEIC file".into(),
            // Of any codec; the compatible brands say which.
            "mif1" | "msf1" if has(data, b"avif") => "an AVIF file".into(),
            "mif1" | "msf1" => "a HEIC file".into(),
            "crx " => "a raw camera file".into(),
            _ => format!("an ISO media file, a video perhaps (brand {brand:?})"),
        });
    }
    let found = SIGNATURES.iter().find(|(at, bytes, _)| data.get(*at..).is_some_and(|rest| rest.starts_with(bytes)));
    found.map(|(.., name)| (*name).to_owned())
}

fn has(data: &[u8], brand: &[u8]) -> bool {
    data[..data.len().min(64)].windows(4).any(|four| four == brand)
}
