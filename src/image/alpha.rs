//! Pictures with transparency.

use image::{RgbImage, RgbaImage};

/// Lays a picture with transparency on white, with the rounding of Pillow's `alpha_composite`.
pub fn composite_on_white(rgba: &RgbaImage) -> RgbImage {
    // Pillow's formula for an opaque background: weights of 15 bits, then a division by 255 that
    // rounds.
    const BITS: u32 = 7;
    let blend = |value: u8, alpha: u32| {
        let foreground = alpha << BITS;
        let background = (255 << BITS) - foreground;
        let sum = u32::from(value) * foreground + 255 * background + (0x80 << BITS);
        ((((sum >> 8) + sum) >> 8) >> BITS) as u8
    };
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [r, g, b, alpha] = pixel.0;
        out.0 = [r, g, b].map(|value| blend(value, u32::from(alpha)));
    }
    rgb
}
