//! What files say of themselves that the `image` crate does not pass on.

use std::io::Cursor;

use image::DynamicImage;
use image::metadata::Orientation;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

/// The orientation in a PNG's EXIF, wherever that stands: the crate has only what comes before the
/// pixels.
pub fn png_orientation(mut data: &[u8]) -> Option<Orientation> {
    const SIGNATURE: usize = 8;
    const CRC: usize = 4;
    data = data.get(SIGNATURE..)?;
    loop {
        let (size, rest) = data.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let size = u32::from_be_bytes(*size) as usize;
        let body = rest.get(..size)?;
        if kind == b"eXIf" {
            return Orientation::from_exif_chunk(body);
        }
        data = rest.get(size + CRC..)?;
    }
}

/// Whether a TIFF's colours are multiplied with its alpha already.
pub fn is_premultiplied(tiff: &[u8]) -> bool {
    const ASSOCIATED: u16 = 1;
    let tag = Decoder::new(Cursor::new(tiff)).and_then(|mut d| d.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples));
    tag.is_ok_and(|extra| extra.is_some_and(|extra| extra.first() == Some(&ASSOCIATED)))
}

/// Colours as they were before they were multiplied with alpha.
pub fn unmultiply(image: &mut DynamicImage) {
    let whole = |value: u32, alpha: u32, most: u32| (value * most).checked_div(alpha).map_or(value, |v| v.min(most));
    let bytes = |pixel: &mut [u8]| {
        let Some((&mut alpha, colours)) = pixel.split_last_mut() else { return };
        colours.iter_mut().for_each(|value| *value = whole((*value).into(), alpha.into(), 255) as u8);
    };
    let words = |pixel: &mut [u16]| {
        let Some((&mut alpha, colours)) = pixel.split_last_mut() else { return };
        colours.iter_mut().for_each(|value| *value = whole((*value).into(), alpha.into(), 65535) as u16);
    };
    match image {
        DynamicImage::ImageRgba8(image) => image.pixels_mut().for_each(|pixel| bytes(&mut pixel.0)),
        DynamicImage::ImageRgba16(image) => image.pixels_mut().for_each(|pixel| words(&mut pixel.0)),
        DynamicImage::ImageLumaA8(image) => image.pixels_mut().for_each(|pixel| bytes(&mut pixel.0)),
        DynamicImage::ImageLumaA16(image) => image.pixels_mut().for_each(|pixel| words(&mut pixel.0)),
        _ => {}
    }
}
