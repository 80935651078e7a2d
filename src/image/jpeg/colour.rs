//! From a frame's components to RGB: libjpeg's integers, and Pillow's for the ink colours.

use image::RgbImage;

use super::frame::{Colours, Frame};
use super::upsample::Upsampler;
use super::vectorised::vectorised;

/// The picture, row by row.
pub struct Canvas {
    pub picture: RgbImage,
    colours: Colours,
    upsamplers: Vec<Upsampler>,
    rows_done: usize,
}

impl Canvas {
    pub fn new(frame: &Frame, colours: Colours) -> Self {
        let upsamplers = frame.components.iter().map(|c| Upsampler::new(frame, c)).collect();
        let picture = RgbImage::new(frame.width as u32, frame.height as u32);
        Self { picture, colours, upsamplers, rows_done: 0 }
    }

    /// Adds the rows for which the frame has samples.
    pub fn paint(&mut self, frame: &Frame) {
        paint(self, frame);
    }
}

vectorised! {
    fn paint(canvas: &mut Canvas, frame: &Frame) {
        let Canvas { picture, colours, upsamplers, rows_done } = canvas;
        let stride = frame.width * 3;
        let rows = *rows_done..frame.rows_ready();
        *rows_done = rows.end;
        let out = &mut picture.as_mut()[rows.start * stride..rows.end * stride];
        for (y, out) in rows.zip(out.chunks_exact_mut(stride)) {
            let pixels = out.as_chunks_mut::<3>().0.iter_mut();
            let mut rows = upsamplers.iter_mut().zip(&frame.components).map(|(u, c)| u.row(frame, c, y));
            match [rows.next(), rows.next(), rows.next(), rows.next()] {
                [Some(gray), None, ..] => pixels.zip(gray).for_each(|(out, &gray)| *out = [gray; 3]),
                [Some(a), Some(b), Some(c), None] => {
                    let samples = pixels.zip(a).zip(b).zip(c);
                    if *colours == Colours::Rgb {
                        samples.for_each(|(((out, &a), &b), &c)| *out = [a, b, c]);
                    } else {
                        samples.for_each(|(((out, &a), &b), &c)| *out = ycc(a, b, c));
                    }
                }
                [Some(a), Some(b), Some(c), Some(d)] => {
                    for ((((out, &a), &b), &c), &black) in pixels.zip(a).zip(b).zip(c).zip(d) {
                        let ink = if *colours == Colours::Ycck { ycc(a, b, c).map(|v| 255 - v) } else { [a, b, c] };
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

/// One channel of light where ink and black are stored inverted, as Adobe does and Pillow takes for
/// granted.
#[inline(always)]
fn inked(ink: u8, black: u8) -> u8 {
    let product = (255 - i32::from(ink)) * i32::from(black) + 128;
    (i32::from(black) - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
}
