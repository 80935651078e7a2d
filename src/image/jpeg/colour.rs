//! From a frame's components to RGB: libjpeg's integers, and Pillow's for the ink colours.

use image::RgbImage;

use super::frame::{Colours, Frame};
use super::upsample::Upsampler;

pub fn to_rgb(frame: &Frame, colours: Colours) -> RgbImage {
    let mut out = RgbImage::new(frame.width as u32, frame.height as u32);
    fill(frame, colours, &mut out);
    out
}

vectorised! {
    fn fill(frame: &Frame, colours: Colours, out: &mut [u8]) {
        let mut rows: Vec<Upsampler<'_>> = frame.components.iter().map(|c| Upsampler::new(frame, c)).collect();
        for (y, out) in out.chunks_exact_mut(frame.width * 3).enumerate() {
            let pixels = out.as_chunks_mut::<3>().0.iter_mut();
            match rows.as_mut_slice() {
                [gray] => pixels.zip(gray.row(y)).for_each(|(out, &gray)| *out = [gray; 3]),
                [a, b, c] => {
                    let samples = pixels.zip(a.row(y)).zip(b.row(y)).zip(c.row(y));
                    if colours == Colours::Rgb {
                        samples.for_each(|(((out, &a), &b), &c)| *out = [a, b, c]);
                    } else {
                        samples.for_each(|(((out, &a), &b), &c)| *out = ycc(a, b, c));
                    }
                }
                [a, b, c, d] => {
                    let samples = pixels.zip(a.row(y)).zip(b.row(y)).zip(c.row(y)).zip(d.row(y));
                    for ((((out, &a), &b), &c), &black) in samples {
                        let ink = if colours == Colours::Ycck { ycc(a, b, c).map(|v| 255 - v) } else { [a, b, c] };
                        *out = ink.map(|ink| inked(ink, black));
                    }
                }
                _ => {}
            }
        }
    }
}

#[inline(always)]
fn ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16); // 1.402
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16); // 0.34414, 0.71414
    let blue = y + ((116_130 * cb + HALF) >> 16); // 1.772
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// One channel of light where ink and black are stored inverted, as Adobe does and Pillow takes for granted.
#[inline(always)]
fn inked(ink: u8, black: u8) -> u8 {
    let product = (255 - i32::from(ink)) * i32::from(black) + 128;
    (i32::from(black) - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
}
