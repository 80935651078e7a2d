//! An RGB image becomes square tiles, byte for byte as the reference's image processor cuts them.

mod resample;

use image::RgbImage;

use crate::config::{MAX_LONGEST_EDGE, MAX_TILE_SIZE};
use crate::error::{Error, Result};
pub use crate::image::composite_on_white;
use resample::{Frame, FrameView, resize};

/// The reference never resizes beyond this edge before it rounds up to whole tiles.
const MAX_EDGE: usize = 4096;

/// Square 8-bit RGB tiles of one image, row-major, the global tile last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Bytes of shape `[count, size, size, 3]`.
    pub pixels: Vec<u8>,
    /// Width and height of a tile.
    pub size: usize,
    /// Rows of the grid of tiles; rows and columns are 0 for a single frame.
    pub rows: usize,
    /// Columns of the grid of tiles.
    pub cols: usize,
}

impl Tiles {
    /// How many tiles there are, the global one included.
    pub fn count(&self) -> usize {
        self.rows * self.cols + 1
    }

    /// The bytes of tile `i`, `[size, size, 3]`.
    pub fn tile(&self, i: usize) -> &[u8] {
        let bytes = self.size * self.size * 3;
        &self.pixels[i * bytes..][..bytes]
    }
}

/// How an image is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileOptions {
    /// Width and height of a tile: `max_image_size.longest_edge` of the checkpoint.
    pub tile_size: usize,
    /// The image's longest edge is resized to this first: `size.longest_edge` of the checkpoint, or
    /// less.
    pub longest_edge: usize,
    /// Whether the image is cut at all; if not, it becomes one tile.
    pub split: bool,
    /// On how many threads, at most. The tiles are the same.
    pub threads: usize,
}

/// Cuts `image` into tiles. `stop` is asked before every pass and every row of tiles; `None` means
/// that it said so.
pub fn tiles(image: &RgbImage, options: &TileOptions, stop: &mut dyn FnMut() -> bool) -> Result<Option<Tiles>> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let size = options.tile_size;
    check("image.width", width, MAX_LONGEST_EDGE)?;
    check("image.height", height, MAX_LONGEST_EDGE)?;
    check("longest_edge", options.longest_edge, MAX_LONGEST_EDGE)?;
    check("tile_size", size, MAX_TILE_SIZE)?;

    let input = FrameView { pixels: image.as_raw(), width, height };
    let scaled = scaled_size(width, height, options.longest_edge);
    let pass = |input: FrameView<'_>, size, stop: &mut dyn FnMut() -> bool| {
        if stop() { Ok(None) } else { resize(input, size, options.threads).map(Some) }
    };
    let Some(scaled) = pass(input, scaled, stop)? else { return Ok(None) };
    if !options.split {
        return Ok(pass(scaled.view(), (size, size), stop)?.map(|frame| single(frame, size)));
    }
    let grid = whole_tiles(scaled.width, scaled.height, size);
    let frame = if grid == (scaled.width, scaled.height) {
        scaled
    } else {
        let Some(frame) = pass(scaled.view(), grid, stop)? else { return Ok(None) };
        frame
    };
    if grid == (size, size) {
        return Ok(Some(single(frame, size)));
    }
    let (rows, cols) = (frame.height / size, frame.width / size);
    let mut pixels = Vec::with_capacity((rows * cols + 1) * size * size * 3);
    for row in 0..rows {
        if stop() {
            return Ok(None);
        }
        for col in 0..cols {
            for y in row * size..(row + 1) * size {
                pixels.extend_from_slice(&frame.view().row(y)[col * size * 3..][..size * 3]);
            }
        }
    }
    let Some(global) = pass(frame.view(), (size, size), stop)? else { return Ok(None) };
    pixels.extend_from_slice(&global.pixels);
    Ok(Some(Tiles { pixels, size, rows, cols }))
}

fn check(name: &str, value: usize, limit: usize) -> Result<()> {
    if value == 0 || value > limit {
        return Err(Error::invalid_argument(format!("{name}: {value} is not in 1..={limit}")));
    }
    Ok(())
}

fn single(frame: Frame, size: usize) -> Tiles {
    Tiles { pixels: frame.pixels, size, rows: 0, cols: 0 }
}

/// The size with its longest edge at `longest_edge`, the other made even, then both capped at
/// [`MAX_EDGE`].
fn scaled_size(width: usize, height: usize, longest_edge: usize) -> (usize, usize) {
    // The reference divides and multiplies by the aspect ratio in f64 and truncates: the order of
    // operations shows.
    let aspect = width as f64 / height as f64;
    let even = |edge: f64| (edge as usize).next_multiple_of(2).max(1);
    let (width, height) = if width >= height {
        (longest_edge, even(longest_edge as f64 / aspect))
    } else {
        (even(longest_edge as f64 * aspect), longest_edge)
    };
    let aspect = width as f64 / height as f64;
    if width >= height && width > MAX_EDGE {
        (MAX_EDGE, ((MAX_EDGE as f64 / aspect) as usize).max(1))
    } else if height > width && height > MAX_EDGE {
        (((MAX_EDGE as f64 * aspect) as usize).max(1), MAX_EDGE)
    } else {
        (width, height)
    }
}

/// Both edges rounded up to multiples of `size`, the shorter one after it followed the longer one.
fn whole_tiles(width: usize, height: usize, size: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height {
        let width = width.next_multiple_of(size);
        (width, ((width as f64 / aspect) as usize).next_multiple_of(size))
    } else {
        let height = height.next_multiple_of(size);
        (((height as f64 * aspect) as usize).next_multiple_of(size), height)
    }
}

/// Turns tile bytes into the vision encoder's input: rescaled, normalised, channels first.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalise {
    table: [[f32; 256]; 3],
}

impl Normalise {
    /// `rescale_factor`, `image_mean` and `image_std` of preprocessor_config.json.
    pub fn new(rescale_factor: f64, mean: [f64; 3], std: [f64; 3]) -> Self {
        // The reference rescales in f64, rounds to f32 and normalises in f32.
        let value = |channel: usize, byte: usize| {
            let rescaled = (byte as f64 * rescale_factor) as f32;
            (rescaled - mean[channel] as f32) / std[channel] as f32
        };
        Self { table: std::array::from_fn(|channel| std::array::from_fn(|byte| value(channel, byte))) }
    }

    /// The value of each byte in a channel (0, 1 or 2).
    pub fn channel(&self, channel: usize) -> &[f32; 256] {
        &self.table[channel]
    }

    /// Writes `tile`, `[size, size, 3]`, to `out`, `[3, size, size]`; what does not fit is left
    /// out.
    pub fn to_chw(&self, tile: &[u8], size: usize, out: &mut [f32]) {
        for ((channel, plane), table) in out.chunks_exact_mut((size * size).max(1)).enumerate().zip(&self.table) {
            for (value, pixel) in plane.iter_mut().zip(tile.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(tile_size: usize, longest_edge: usize, split: bool) -> TileOptions {
        TileOptions { tile_size, longest_edge, split, threads: 1 }
    }

    fn cut(image: &RgbImage, options: &TileOptions) -> Result<Option<Tiles>> {
        tiles(image, options, &mut || false)
    }

    #[test]
    fn a_camera_frame_becomes_thirteen_tiles() {
        assert_eq!(scaled_size(640, 480, 2048), (2048, 1536));
        assert_eq!(whole_tiles(2048, 1536, 512), (2048, 1536));
        assert_eq!(scaled_size(480, 640, 512), (384, 512));
        assert_eq!(whole_tiles(384, 512, 512), (512, 512));
    }

    #[test]
    fn extreme_sizes_keep_an_edge() {
        assert_eq!(scaled_size(5000, 7, 2048), (2048, 2));
        assert_eq!(scaled_size(5000, 1, 96), (96, 1));
        assert_eq!(scaled_size(1, 65535, 65535), (1, 4096));
        assert_eq!(scaled_size(300, 200, 5000), (4096, 2731));
    }

    #[test]
    fn tiles_lie_row_major_with_the_global_one_last() {
        let image = RgbImage::from_fn(4, 2, |x, y| image::Rgb([x as u8 * 10, y as u8 * 10, 0]));
        let cut = cut(&image, &options(2, 4, true)).unwrap().unwrap();
        assert_eq!((cut.rows, cut.cols, cut.count()), (1, 2, 3));
        assert_eq!(cut.tile(0)[..6], [0, 0, 0, 10, 0, 0]);
        assert_eq!(cut.tile(1)[..6], [20, 0, 0, 30, 0, 0]);
        assert_eq!(cut.pixels.len(), 3 * 2 * 2 * 3);
        assert_eq!(cut.tile(2).len(), 12);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let image = RgbImage::new(4, 4);
        let message = |image: &RgbImage, options| cut(image, &options).unwrap_err().message().to_owned();
        assert_eq!(message(&RgbImage::new(0, 4), options(2, 4, true)), "image.width: 0 is not in 1..=65535");
        assert_eq!(message(&RgbImage::new(1, 65536), options(2, 4, true)), "image.height: 65536 is not in 1..=65535");
        assert_eq!(message(&image, options(2, 65536, true)), "longest_edge: 65536 is not in 1..=65535");
        assert_eq!(message(&image, options(0, 4, true)), "tile_size: 0 is not in 1..=4096");
    }

    #[test]
    fn it_stops_at_every_question() {
        let image = RgbImage::new(5, 3);
        let mut questions = 0;
        let all = tiles(&image, &options(4, 9, true), &mut || {
            questions += 1;
            false
        });
        assert!(all.unwrap().is_some());
        assert!(questions >= 4);
        for stop_at in 0..questions {
            let mut asked = 0;
            let stopped = tiles(&image, &options(4, 9, true), &mut || {
                asked += 1;
                asked > stop_at
            });
            assert_eq!(stopped.unwrap(), None, "at question {stop_at}");
        }
    }

    #[test]
    fn channels_come_first() {
        let normalise = Normalise::new(1.0 / 255.0, [0.5; 3], [0.5; 3]);
        let mut out = [9.0; 12];
        normalise.to_chw(&[0, 255, 0, 255, 255, 0, 0, 255, 0, 0, 255, 0], 2, &mut out);
        assert_eq!(out, [-1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]);
    }
}
