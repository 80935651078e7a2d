//! Pictures as callers have them: borrowed camera pixels with a stride, or the bytes of an image
//! file.
//!
//! Bounds are checked once, in the constructors; everything below may index without fear.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::error::{Error, Result};
use crate::preprocess::composite_on_white;

/// Widest or highest picture accepted, in pixels.
pub const MAX_EDGE: u32 = 32_768;
/// Most pixels accepted in one picture: 100 megapixels decode to at most 800 MB (16-bit RGBA).
pub const MAX_PIXELS: u64 = 100_000_000;

/// Most memory for what a file holds besides its pixels: a compressed colour profile of a megabyte
/// may unpack to a gigabyte.
pub const METADATA_BYTES: u64 = 16 << 20;

/// The memory layout of one raw pixel, 8 bits per channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Red, green, blue; `rgb8` in ROS.
    Rgb8,
    /// Blue, green, red; `bgr8` in ROS, the default of OpenCV.
    Bgr8,
    /// Red, green, blue and a fourth byte that is ignored.
    Rgba8,
    /// Blue, green, red and a fourth byte that is ignored.
    Bgra8,
    /// One luminance byte; `mono8` in ROS.
    Gray8,
}

impl PixelFormat {
    /// Bytes of one pixel.
    pub fn bytes(self) -> usize {
        match self {
            Self::Gray8 => 1,
            Self::Rgb8 | Self::Bgr8 => 3,
            Self::Rgba8 | Self::Bgra8 => 4,
        }
    }
}

/// A picture borrowed from the caller.
#[derive(Clone, Copy, Debug)]
pub struct ImageView<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Raw { data: &'a [u8], stride: usize, width: u32, height: u32, format: PixelFormat },
    Encoded { data: &'a [u8], orient: bool },
    Decoded(&'a DynamicImage),
}

impl<'a> ImageView<'a> {
    /// Raw pixels, top row first. `stride` is the distance in bytes from one row to the next, 0 for
    /// rows without padding; the last row needs no padding.
    ///
    /// Errors with `InvalidArgument` where the dimensions are zero or over [`MAX_EDGE`] or
    /// [`MAX_PIXELS`], the stride is shorter than a row, or `data` is shorter than the picture.
    pub fn raw(data: &'a [u8], stride: usize, width: u32, height: u32, format: PixelFormat) -> Result<Self> {
        check_size(width, height)?;
        let row = width as usize * format.bytes();
        let stride = if stride == 0 { row } else { stride };
        if stride < row {
            return Err(Error::invalid_argument(format!("stride: {stride} bytes given, a row has {row}")));
        }
        let needed = stride
            .checked_mul(height as usize - 1)
            .and_then(|n| n.checked_add(row))
            .ok_or_else(|| Error::invalid_argument(format!("stride: {stride} bytes times {height} rows overflows")))?;
        if data.len() < needed {
            return Err(Error::invalid_argument(format!("data_size: {} bytes given, {needed} needed", data.len())));
        }
        Ok(Self(Source::Raw { data, stride, width, height, format }))
    }

    /// The bytes of a JPEG, PNG, WebP or BMP file. The EXIF orientation is applied.
    ///
    /// The bytes are looked at when the picture is used, not here.
    pub fn encoded(data: &'a [u8]) -> Self {
        Self(Source::Encoded { data, orient: true })
    }

    /// Like [`ImageView::encoded`], with the pixels taken as they are stored, whatever the EXIF
    /// orientation says; so does the reference.
    pub fn encoded_unoriented(data: &'a [u8]) -> Self {
        Self(Source::Encoded { data, orient: false })
    }

    /// A picture that the `image` crate holds.
    pub fn decoded(image: &'a DynamicImage) -> Self {
        Self(Source::Decoded(image))
    }

    /// The bytes of an image file, and whether they are to be turned upright.
    pub(crate) fn file(&self) -> Option<(&'a [u8], bool)> {
        match self.0 {
            Source::Encoded { data, orient } => Some((data, orient)),
            _ => None,
        }
    }

    /// An owned 8-bit RGB copy: gray is repeated; transparency of a file is composited onto white.
    pub fn to_rgb(&self) -> Result<RgbImage> {
        match self.0 {
            Source::Raw { data, stride, width, height, format } => Ok(raw_to_rgb(data, stride, width, height, format)),
            Source::Encoded { data, orient } => Ok(flatten(decode(data, orient)?)),
            Source::Decoded(image) => {
                check_size(image.width(), image.height())?;
                Ok(flatten(image.clone()))
            }
        }
    }
}

fn check_size(width: u32, height: u32) -> Result<()> {
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

fn raw_to_rgb(data: &[u8], stride: usize, width: u32, height: u32, format: PixelFormat) -> RgbImage {
    let row_bytes = width as usize * format.bytes();
    let mut out = RgbImage::new(width, height);
    for (row, out) in data.chunks(stride).zip(out.chunks_exact_mut(width as usize * 3)) {
        let pixels = row[..row_bytes].chunks_exact(format.bytes());
        for (out, pixel) in out.chunks_exact_mut(3).zip(pixels) {
            let rgb = match *pixel {
                [gray] => [gray; 3],
                [a, b, c, ..] if matches!(format, PixelFormat::Bgr8 | PixelFormat::Bgra8) => [c, b, a],
                [a, b, c, ..] => [a, b, c],
                _ => continue,
            };
            out.copy_from_slice(&rgb);
        }
    }
    out
}

fn decode(data: &[u8], orient: bool) -> Result<DynamicImage> {
    let invalid = |e: image::ImageError| Error::invalid_argument(format!("image: {e}"));
    let mut reader = ImageReader::new(Cursor::new(data)).with_guessed_format().map_err(|e| invalid(e.into()))?;
    match reader.format() {
        Some(ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp) => {}
        _ => {
            let start = &data[..data.len().min(8)];
            return Err(Error::invalid_argument(format!(
                "image: {} bytes starting {start:02x?} are not JPEG, PNG, WebP or BMP",
                data.len()
            )));
        }
    }
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_is_whole(data) {
        let len = data.len();
        return Err(Error::invalid_argument(format!("image: a JPEG of {len} bytes that ends before its end marker")));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(METADATA_BYTES);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(invalid)?;
    // A header's numbers are checked before anything is allocated by them.
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    limits.max_alloc = Some(MAX_PIXELS * 8 + METADATA_BYTES);
    decoder.set_limits(limits).map_err(invalid)?;
    // Damaged metadata is no reason to refuse whole pixels.
    let orientation =
        if orient { decoder.orientation().unwrap_or(Orientation::NoTransforms) } else { Orientation::NoTransforms };
    let mut image = DynamicImage::from_decoder(decoder).map_err(invalid)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether the end marker comes; the decoder would make gray of what is missing, and the model an
/// answer of that.
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

fn flatten(image: DynamicImage) -> RgbImage {
    if image.color().has_alpha() { composite_on_white(&image.into_rgba8()) } else { image.into_rgb8() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_that_ends_early_is_no_picture() {
        let mut file = Vec::new();
        RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 7]))
            .write_to(&mut Cursor::new(&mut file), ImageFormat::Jpeg)
            .unwrap();
        assert!(ImageView::encoded(&file).to_rgb().is_ok());
        file.extend(b"a camera's own data");
        assert!(ImageView::encoded(&file).to_rgb().is_ok());
        let end = file.len() - b"a camera's own data".len();
        for len in (2..end).step_by(7).chain([end - 1]) {
            assert!(ImageView::encoded(&file[..len]).to_rgb().is_err(), "{len} of {end}");
        }
    }
    use crate::error::ErrorKind;

    #[test]
    fn strides_and_channel_orders_reach_rgb() {
        // Two rows of one pixel, padded to five bytes; the last row is not padded.
        let bgr = [3, 2, 1, 99, 99, 6, 5, 4];
        let view = ImageView::raw(&bgr, 5, 1, 2, PixelFormat::Bgr8).unwrap();
        assert_eq!(view.to_rgb().unwrap().into_raw(), [1, 2, 3, 4, 5, 6]);
        let rgba = [1, 2, 3, 0];
        let view = ImageView::raw(&rgba, 0, 1, 1, PixelFormat::Rgba8).unwrap();
        assert_eq!(view.to_rgb().unwrap().into_raw(), [1, 2, 3], "a camera's fourth byte is no alpha");
        let view = ImageView::raw(&[7], 0, 1, 1, PixelFormat::Gray8).unwrap();
        assert_eq!(view.to_rgb().unwrap().into_raw(), [7, 7, 7]);
    }

    #[test]
    fn bounds_are_refused_with_their_values() {
        let message = |r: Result<ImageView<'_>>| {
            let e = r.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::InvalidArgument);
            e.message().to_owned()
        };
        let data = [0; 20];
        assert_eq!(message(ImageView::raw(&data, 0, 7, 1, PixelFormat::Rgb8)), "data_size: 20 bytes given, 21 needed");
        assert_eq!(message(ImageView::raw(&data, 2, 1, 2, PixelFormat::Rgb8)), "stride: 2 bytes given, a row has 3");
        assert!(message(ImageView::raw(&data, 0, 0, 1, PixelFormat::Rgb8)).starts_with("width: 0 pixels"));
        assert!(message(ImageView::raw(&data, usize::MAX, 1, 3, PixelFormat::Rgb8)).ends_with("overflows"));
        assert!(message(ImageView::raw(&data, 0, 20_000, 20_000, PixelFormat::Gray8)).contains("400000000 pixels"));
    }

    #[test]
    fn files_that_are_no_pictures_are_named() {
        let e = ImageView::encoded(b"GIF89a..").to_rgb().unwrap_err();
        assert!(e.message().contains("not JPEG, PNG, WebP or BMP"), "{e}");
        assert!(ImageView::encoded(&[]).to_rgb().is_err());
    }
}
