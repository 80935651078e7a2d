//! Pictures as callers have them: borrowed camera pixels with a stride, or the bytes of an image
//! file.
//!
//! Bounds are checked once, in the constructors; everything below may index without fear.

mod alpha;
mod file;
mod jpeg;
mod limits;
mod unheard;

use image::{DynamicImage, RgbImage};

use crate::error::{Error, Result};

pub use alpha::composite_on_white;
pub use file::{FORMATS, encoded_size};
use limits::check_size;
pub use limits::{MAX_EDGE, MAX_PIXELS, METADATA_BYTES};

/// The memory layout of one raw pixel: 8 bits per channel, but for [`PixelFormat::Gray16`].
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
    /// Luminance or depth of 16 bits in the byte order of this machine, at any address; `mono16`
    /// and `16UC1` in ROS. Scaled as [`ImageView::encoded`] says.
    Gray16,
}

impl PixelFormat {
    /// Bytes of one pixel.
    pub fn bytes(self) -> usize {
        match self {
            Self::Gray8 => 1,
            Self::Gray16 => 2,
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

    /// The bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file; of several pictures
    /// the first. It is turned upright as its EXIF orientation says; a TIFF's own tag counts as
    /// that.
    ///
    /// Of 16 bits, a gray picture is scaled so that its largest value becomes white: depth cameras
    /// and thermal ones fill a small part of the range, and the reference's way, which cuts at 255,
    /// would leave white alone of it. 0 stays black, which is where depth cameras saw nothing; a
    /// sensor that marks that with 65535 needs it replaced by 0. Colours of 16 bits keep their high
    /// byte, as in the reference.
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

    /// A picture that the `image` crate holds, as it lies there: `image::open` does not turn it, so
    /// where a file may have an EXIF orientation, [`ImageView::encoded`] is the way, or
    /// `DynamicImage::apply_orientation`. 16 bits are as with [`ImageView::encoded`].
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
            Source::Encoded { data, orient } => flatten(file::decode(data, orient)?),
            Source::Decoded(image) => {
                check_size(image.width(), image.height())?;
                flatten(image.clone())
            }
        }
    }
}

fn raw_to_rgb(data: &[u8], stride: usize, width: u32, height: u32, format: PixelFormat) -> RgbImage {
    let row_bytes = width as usize * format.bytes();
    let rows = || data.chunks(stride).take(height as usize).map(|row| &row[..row_bytes]);
    // Two bytes of a gray of 16 bits stand at any address.
    let deep = |pixel: &[u8]| pixel.try_into().map_or(0, u16::from_ne_bytes);
    let largest = match format {
        PixelFormat::Gray16 => rows().flat_map(|row| row.chunks_exact(2).map(deep)).max().unwrap_or(0),
        _ => 0,
    };
    let mut out = RgbImage::new(width, height);
    for (row, out) in rows().zip(out.chunks_exact_mut(width as usize * 3)) {
        let pixels = row.chunks_exact(format.bytes());
        for (out, pixel) in out.chunks_exact_mut(3).zip(pixels) {
            let rgb = match *pixel {
                [gray] => [gray; 3],
                [_, _] => [to_white(deep(pixel), largest); 3],
                [a, b, c, ..] if matches!(format, PixelFormat::Bgr8 | PixelFormat::Bgra8) => [c, b, a],
                [a, b, c, ..] => [a, b, c],
                _ => continue,
            };
            out.copy_from_slice(&rgb);
        }
    }
    out
}

/// Eight bits a channel, on white. Colours of 16 bits keep their high byte; a gray of 16 bits does
/// not: see [`ImageView::encoded`].
fn flatten(image: DynamicImage) -> Result<RgbImage> {
    let image = match image {
        DynamicImage::ImageLuma16(gray) => {
            let largest = gray.iter().copied().max().unwrap_or(0);
            let value = |x, y| image::Luma([to_white(gray.get_pixel(x, y).0[0], largest)]);
            image::GrayImage::from_fn(gray.width(), gray.height(), value).into()
        }
        DynamicImage::ImageLumaA16(gray) => {
            let largest = gray.pixels().map(|pixel| pixel.0[0]).max().unwrap_or(0);
            let value = |x, y| {
                let [luma, alpha] = gray.get_pixel(x, y).0;
                image::LumaA([to_white(luma, largest), high_byte(alpha)])
            };
            DynamicImage::ImageLumaA8(image::ImageBuffer::from_fn(gray.width(), gray.height(), value))
        }
        DynamicImage::ImageRgb16(deep) => {
            let value = |x, y| image::Rgb(deep.get_pixel(x, y).0.map(high_byte));
            RgbImage::from_fn(deep.width(), deep.height(), value).into()
        }
        DynamicImage::ImageRgba16(deep) => {
            let value = |x, y| image::Rgba(deep.get_pixel(x, y).0.map(high_byte));
            image::RgbaImage::from_fn(deep.width(), deep.height(), value).into()
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err(Error::invalid_argument(
                "image: floating-point pixels; scale them and save 8 or 16 bits a channel",
            ));
        }
        other => other,
    };
    Ok(if image.color().has_alpha() { composite_on_white(&image.into_rgba8()) } else { image.into_rgb8() })
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

/// A value's share of the largest, in 255ths, rounded.
fn to_white(value: u16, largest: u16) -> u8 {
    let largest = u32::from(largest.max(1));
    ((u32::from(value) * 255 + largest / 2) / largest) as u8
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::ImageFormat;

    use super::*;
    use crate::error::ErrorKind;

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
        for len in (2..end - 4).step_by(7).chain([end - 4]) {
            assert!(ImageView::encoded(&file[..len]).to_rgb().is_err(), "{len} of {end}");
        }
        // Only the end marker is missing, as some cameras leave it out: every pixel is there.
        for len in [end - 2, end - 1] {
            assert_eq!(ImageView::encoded(&file[..len]).to_rgb(), ImageView::encoded(&file).to_rgb(), "{len} of {end}");
        }
    }

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

    fn refused(file: &[u8]) -> String {
        ImageView::encoded(file).to_rgb().unwrap_err().message().to_owned()
    }

    #[test]
    fn files_that_are_no_pictures_are_named() {
        assert!(refused(b"anything").contains("are not JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM"));
        assert!(refused(&[]).starts_with("image: 0 bytes"));
        for (file, name) in [
            (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1".as_slice(), "an AVIF file"),
            (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", "an AVIF file"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC file"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "an ISO media file, a video perhaps (brand \"isom\")"),
            (b"\xff\x0a\xff\xd8\xff", "a JPEG XL file"),
            (b"%PDF-1.7 \xff\xd8\xff", "a PDF file"),
            (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
            (b"<!DOCTYPE html>", "a web page"),
            (b"/9j/4AAQSkZJRg", "a JPEG in base64"),
        ] {
            let message = refused(file);
            assert!(message.starts_with(&format!("image: {name}")), "{message}");
            assert!(message.contains("which is not read; give JPEG"), "{message}");
        }
    }

    /// A file that `image` writes, and its pixels as the library reads them.
    fn through(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    #[test]
    fn lossless_formats_are_the_same_picture() {
        let picture = RgbImage::from_fn(13, 7, |x, y| image::Rgb([x as u8 * 19, y as u8 * 36, 7]));
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Pnm, ImageFormat::Tiff, ImageFormat::WebP] {
            let file = through(&picture.clone().into(), format);
            assert_eq!(ImageView::encoded(&file).to_rgb().unwrap(), picture, "{format:?}");
            assert_eq!(encoded_size(&file).unwrap(), (13, 7), "{format:?}");
            for len in 0..file.len() - 1 {
                let cut = ImageView::encoded(&file[..len]).to_rgb();
                // The end of a PNG or TIFF may lack what says nothing about pixels.
                assert!(cut.is_err() || cut.is_ok_and(|seen| seen == picture), "{format:?}: {len} of {}", file.len());
            }
        }
        let plain = b"P2 # depths\n2 1 15\n0 15\n";
        assert_eq!(ImageView::encoded(plain).to_rgb().unwrap().into_raw(), [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn the_first_frame_of_a_gif_is_seen() {
        let gif = |colours: &[[u8; 4]]| {
            let mut file = Vec::new();
            let mut encoder = image::codecs::gif::GifEncoder::new(&mut file);
            for colour in colours {
                let frame = image::RgbaImage::from_pixel(5, 4, image::Rgba(*colour));
                encoder.encode_frame(image::Frame::new(frame)).unwrap();
            }
            drop(encoder);
            file
        };
        let animated = gif(&[[250, 0, 0, 255], [0, 0, 250, 255]]);
        let seen = ImageView::encoded(&animated).to_rgb().unwrap();
        assert_eq!((seen.dimensions(), seen.get_pixel(4, 3).0), ((5, 4), [250, 0, 0]));
        let clear = gif(&[[250, 0, 0, 0]]);
        assert_eq!(ImageView::encoded(&clear).to_rgb().unwrap().get_pixel(0, 0).0, [255; 3]);
        assert!(ImageView::encoded(&animated[..30]).to_rgb().is_err());
    }

    #[test]
    fn sixteen_bits_have_one_rule() {
        let depths = image::ImageBuffer::from_fn(4, 1, |x, _| image::Luma([[0u16, 500, 1000, 2000][x as usize]]));
        let depths = DynamicImage::ImageLuma16(depths);
        let wanted: Vec<u8> = [0, 64, 128, 255].into_iter().flat_map(|v| [v; 3]).collect();
        assert_eq!(ImageView::decoded(&depths).to_rgb().unwrap().into_raw(), wanted);
        for format in [ImageFormat::Png, ImageFormat::Tiff, ImageFormat::Pnm] {
            let file = through(&depths, format);
            assert_eq!(ImageView::encoded(&file).to_rgb().unwrap().into_raw(), wanted, "{format:?}");
        }
        // Raw, at an odd address, with rows of an odd length.
        let mut rows = vec![99];
        for row in [[0u16, 500], [1000, 2000]] {
            rows.extend(row.iter().flat_map(|value| value.to_ne_bytes()));
            rows.push(255);
        }
        rows.pop();
        let view = ImageView::raw(&rows[1..], 5, 2, 2, PixelFormat::Gray16).unwrap();
        assert_eq!(view.to_rgb().unwrap().into_raw(), wanted);
        let black = ImageView::raw(&[0; 8], 0, 2, 2, PixelFormat::Gray16).unwrap();
        assert_eq!(black.to_rgb().unwrap().into_raw(), [0; 12]);
        let short = ImageView::raw(&rows[1..9], 5, 2, 2, PixelFormat::Gray16).unwrap_err();
        assert_eq!(short.message(), "data_size: 8 bytes given, 9 needed");
        let ten_bits = b"P5 4 1 4095\n\0\0\x01\xf4\x03\xe8\x07\xd0";
        assert_eq!(ImageView::encoded(ten_bits).to_rgb().unwrap().into_raw(), wanted);
        let colour = image::ImageBuffer::from_pixel(1, 1, image::Rgb([0u16, 257 * 3, 65535]));
        let file = through(&DynamicImage::ImageRgb16(colour), ImageFormat::Png);
        assert_eq!(ImageView::encoded(&file).to_rgb().unwrap().into_raw(), [0, 3, 255]);
        let colour = image::ImageBuffer::from_pixel(1, 1, image::Rgba([0x12ff_u16, 0x1300, 0x00ff, 65535]));
        let file = through(&DynamicImage::ImageRgba16(colour), ImageFormat::Png);
        assert_eq!(ImageView::encoded(&file).to_rgb().unwrap().into_raw(), [0x12, 0x13, 0]);
        let black = DynamicImage::ImageLuma16(image::ImageBuffer::new(2, 1));
        assert_eq!(ImageView::decoded(&black).to_rgb().unwrap().into_raw(), [0; 6]);
        let see_through =
            image::ImageBuffer::from_fn(2, 1, |x, _| image::LumaA([1000, if x == 0 { 0 } else { 65535 }]));
        let see_through = DynamicImage::ImageLumaA16(see_through);
        assert_eq!(ImageView::decoded(&see_through).to_rgb().unwrap().into_raw(), [255; 6]);
    }
}
