//! Lanczos resampling that equals Pillow 13's bit for bit: fixed-point weights, two passes, 8 bits
//! between them.

use std::f64::consts::PI;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// Lobes of the Lanczos window on each side.
const LOBES: f64 = 3.0;
/// Fraction bits of a weight; with 8-bit pixels and weights that add up to 1, sums stay inside an
/// `i32`.
const FRACTION_BITS: u32 = 22;
/// Rows that the horizontal pass handles together, so that its inner loop runs over rows instead of
/// over taps.
const STRIP_ROWS: usize = 16;
const STRIP_LANES: usize = STRIP_ROWS * 3;
/// Bytes of a row that the vertical pass handles together.
const BLOCK_LANES: usize = 64;

/// An RGB image, 3 bytes a pixel, rows without gaps.
pub(super) struct Frame {
    pub pixels: Vec<u8>,
    pub width: usize,
    pub height: usize,
}

/// A borrowed [`Frame`].
#[derive(Clone, Copy)]
pub(super) struct FrameView<'a> {
    pub pixels: &'a [u8],
    pub width: usize,
    pub height: usize,
}

impl Frame {
    pub fn view(&self) -> FrameView<'_> {
        FrameView { pixels: &self.pixels, width: self.width, height: self.height }
    }
}

impl<'a> FrameView<'a> {
    pub fn row(&self, y: usize) -> &'a [u8] {
        &self.pixels[y * self.width * 3..][..self.width * 3]
    }
}

/// The weights of one pass: for every output position the first input position and its run of
/// weights.
struct Weights {
    starts: Vec<usize>,
    ends: Vec<usize>,
    values: Vec<i32>,
    stride: usize,
}

impl Weights {
    /// Follows Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`, the order of its f64
    /// operations included.
    fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = LOBES * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut weights = Self {
            starts: Vec::with_capacity(output),
            ends: Vec::with_capacity(output),
            values: vec![0; output * stride],
            stride,
        };
        let mut exact = Vec::with_capacity(stride);
        for (position, values) in weights.values.chunks_exact_mut(stride).enumerate() {
            let centre = (position as f64 + 0.5) * scale;
            // A cast from below zero saturates at zero, as Pillow's clamp does.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((start..end).map(|x| lanczos((x as f64 - centre + 0.5) * (1.0 / filter_scale))));
            let sum: f64 = exact.iter().sum();
            for (value, weight) in values.iter_mut().zip(&exact) {
                let scaled = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1 << FRACTION_BITS);
                *value = (scaled + 0.5_f64.copysign(scaled)) as i32;
            }
            weights.starts.push(start);
            weights.ends.push(end);
        }
        weights
    }

    fn at(&self, position: usize) -> (usize, &[i32]) {
        let (start, end) = (self.starts[position], self.ends[position]);
        (start, &self.values[position * self.stride..][..end - start])
    }
}

fn lanczos(x: f64) -> f64 {
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

/// The weighted sum of equally long runs of bytes, rounded and clipped to bytes.
#[inline(always)]
fn weigh<'a, const N: usize>(runs: impl Iterator<Item = &'a [u8; N]>, weights: &[i32], out: &mut [u8; N]) {
    let mut sums = [1_i32 << (FRACTION_BITS - 1); N];
    for (run, &weight) in runs.zip(weights) {
        for (sum, &byte) in sums.iter_mut().zip(run) {
            *sum += i32::from(byte) * weight;
        }
    }
    for (byte, sum) in out.iter_mut().zip(sums) {
        *byte = (sum >> FRACTION_BITS).clamp(0, 255) as u8;
    }
}

/// Rows resampled horizontally, held only as long as the vertical pass needs them.
struct RowRing {
    bytes: Vec<u8>,
    stride: usize,
    rows: usize,
    filled: usize,
    strip_in: Vec<[u8; STRIP_LANES]>,
    strip_out: Vec<[u8; STRIP_LANES]>,
}

impl RowRing {
    /// None yet, the first of them `first`.
    fn new(input: FrameView<'_>, width: usize, window: usize, first: usize) -> Self {
        let stride = (width * 3).next_multiple_of(BLOCK_LANES);
        let rows = window.min(input.height) + STRIP_ROWS;
        let strip_out = if width == input.width { 0 } else { width };
        Self {
            bytes: vec![0; rows * stride],
            stride,
            rows,
            filled: first,
            strip_in: vec![[0; STRIP_LANES]; if strip_out == 0 { 0 } else { input.width }],
            strip_out: vec![[0; STRIP_LANES]; strip_out],
        }
    }

    fn block(&self, y: usize, block: usize) -> &[u8; BLOCK_LANES] {
        let start = (y % self.rows) * self.stride + block * BLOCK_LANES;
        self.bytes[start..].first_chunk().expect("a row is a whole number of blocks")
    }

    /// Adds the next rows of `input`; `weights` is `None` where the width stays.
    #[inline(always)]
    fn fill(&mut self, input: FrameView<'_>, weights: Option<&Weights>) {
        let count = STRIP_ROWS.min(input.height - self.filled);
        let Some(weights) = weights else {
            for y in self.filled..self.filled + count {
                self.bytes[(y % self.rows) * self.stride..][..input.width * 3].copy_from_slice(input.row(y));
            }
            self.filled += count;
            return;
        };
        for row in 0..count {
            for (lanes, pixel) in self.strip_in.iter_mut().zip(input.row(self.filled + row).chunks_exact(3)) {
                lanes[row * 3..][..3].copy_from_slice(pixel);
            }
        }
        for (x, out) in self.strip_out.iter_mut().enumerate() {
            let (start, weights) = weights.at(x);
            weigh(self.strip_in[start..].iter(), weights, out);
        }
        for row in 0..count {
            let line = &mut self.bytes[((self.filled + row) % self.rows) * self.stride..];
            for (pixel, lanes) in line.chunks_exact_mut(3).zip(&self.strip_out) {
                pixel.copy_from_slice(&lanes[row * 3..][..3]);
            }
        }
        self.filled += count;
    }
}

/// A pass: where a size stays, Pillow has no pass, and there are no weights.
struct Pass<'a> {
    input: FrameView<'a>,
    width: usize,
    horizontal: Option<Weights>,
    vertical: Option<Weights>,
}

impl Pass<'_> {
    fn vertical(&self, y: usize) -> (usize, &[i32]) {
        self.vertical.as_ref().map_or((y, &[1 << FRACTION_BITS]), |weights| weights.at(y))
    }

    /// The rows of the result from `first` on, as many as there is room for.
    #[inline(always)]
    fn resample(&self, first: usize, out: &mut [u8]) {
        let window = self.vertical.as_ref().map_or(1, |weights| weights.stride);
        let mut ring = RowRing::new(self.input, self.width, window, self.vertical(first).0);
        for (i, line) in out.chunks_exact_mut(self.width * 3).enumerate() {
            let (start, weights) = self.vertical(first + i);
            while ring.filled < start + weights.len() {
                ring.fill(self.input, self.horizontal.as_ref());
            }
            for (block, bytes) in line.chunks_mut(BLOCK_LANES).enumerate() {
                let mut sums = [0; BLOCK_LANES];
                let rows = (start..start + weights.len()).map(|row| ring.block(row, block));
                weigh(rows, weights, &mut sums);
                bytes.copy_from_slice(&sums[..bytes.len()]);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn resample_avx2(&self, first: usize, out: &mut [u8]) {
        self.resample(first, out);
    }

    fn run(&self, first: usize, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, asked on the line above.
            unsafe { self.resample_avx2(first, out) };
            return;
        }
        self.resample(first, out);
    }
}

/// Resizes to `width` x `height` on so many threads, or fewer. Both images' sizes are the caller's
/// to bound; none may be zero.
pub(super) fn resize(input: FrameView<'_>, (width, height): (usize, usize), threads: usize) -> Result<Frame> {
    if [input.width, input.height, width, height].contains(&0) {
        let from = format!("{}x{}", input.width, input.height);
        return Err(Error::invalid_argument(format!("image: cannot resize {from} to {width}x{height}")));
    }
    if vertical_first(input, width, height) {
        let shrunk = run(input, (input.width, height), threads);
        return Ok(run(shrunk.view(), (width, height), threads));
    }
    Ok(run(input, (width, height), threads))
}

/// Since version 13 Pillow begins with the vertical pass where the height loses more than twice
/// what the width does. Both orders round between the passes, so they differ in a few bytes.
fn vertical_first(input: FrameView<'_>, width: usize, height: usize) -> bool {
    input.height > height && input.height - height > 2 * input.width.saturating_sub(width)
}

/// Rows of the result that are worth a thread.
const BAND: usize = 64;

fn run(input: FrameView<'_>, (width, height): (usize, usize), threads: usize) -> Frame {
    let pass = Pass {
        input,
        width,
        horizontal: (width != input.width).then(|| Weights::new(input.width, width)),
        vertical: (height != input.height).then(|| Weights::new(input.height, height)),
    };
    let mut pixels = vec![0; width * height * 3];
    let threads = threads.min(height / BAND).max(1);
    let rows = height.div_ceil(threads);
    let bands = Mutex::new(pixels.chunks_mut(rows * width * 3).enumerate());
    let work = || {
        while let Some((i, band)) = next(&bands) {
            pass.run(i * rows, band);
        }
    };
    std::thread::scope(|scope| {
        // Where there are no more threads to be had, those that are there do it all.
        let start = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..threads).map_while(start).collect();
        work();
        // The scope itself would not wait until they have ended.
        helpers.into_iter().for_each(|helper| helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
    Frame { pixels, width, height }
}

/// The next one, for whichever thread asks.
fn next<T>(of: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    of.lock().unwrap_or_else(PoisonError::into_inner).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_to_one() {
        for (input, output) in [(1, 1), (1, 512), (2, 3), (5000, 7), (640, 2048), (2048, 512), (65535, 1)] {
            let weights = Weights::new(input, output);
            for position in 0..output {
                let (start, values) = weights.at(position);
                assert!(start + values.len() <= input, "{input} to {output} at {position}");
                let error = values.iter().map(|&v| i64::from(v)).sum::<i64>() - (1 << FRACTION_BITS);
                // Each weight is rounded by at most half a unit.
                assert!(error.unsigned_abs() as usize <= values.len() / 2 + 1, "{input} to {output}: {error}");
            }
        }
    }

    #[test]
    fn sums_fit_32_bits() {
        for (input, output) in [(2, 3), (2, 512), (3, 2), (3, 4096), (7, 5), (640, 2048), (5000, 4096), (4096, 512)] {
            let weights = Weights::new(input, output);
            for position in 0..output {
                let positive: i64 = weights.at(position).1.iter().map(|&v| i64::from(v.max(0))).sum();
                assert!(positive * 255 + (1 << (FRACTION_BITS - 1)) <= i64::from(i32::MAX), "{input} to {output}");
            }
        }
    }

    #[test]
    fn constant_images_stay_constant() {
        let pixels = vec![200; 33 * 21 * 3];
        let input = FrameView { pixels: &pixels, width: 33, height: 21 };
        for (width, height) in [(33, 21), (33, 40), (7, 21), (100, 3), (1, 1)] {
            let out = resize(input, (width, height), 1).unwrap();
            assert_eq!(out.pixels.len(), width * height * 3);
            assert!(out.pixels.iter().all(|&byte| byte == 200), "{width}x{height}");
        }
    }

    #[test]
    fn the_portable_version_agrees() {
        let pixels: Vec<u8> = (0..61_u32 * 47 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let input = FrameView { pixels: &pixels, width: 61, height: 47 };
        for (width, height) in [(61, 100), (20, 47), (150, 13), (22, 21)] {
            let horizontal = (width != 61).then(|| Weights::new(61, width));
            let vertical = (height != 47).then(|| Weights::new(47, height));
            let mut portable = vec![0; width * height * 3];
            Pass { input, width, horizontal, vertical }.resample(0, &mut portable);
            assert!(portable == run(input, (width, height), 1).pixels, "{width}x{height}");
        }
    }

    #[test]
    fn threads_make_no_difference() {
        let pixels: Vec<u8> = (0..90_u32 * 300 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let input = FrameView { pixels: &pixels, width: 90, height: 300 };
        for size in [(90, 700), (40, 300), (70, 129), (200, 1000), (90, 300)] {
            let one = resize(input, size, 1).unwrap().pixels;
            for threads in [2, 3, 1000] {
                assert!(one == resize(input, size, threads).unwrap().pixels, "{size:?} {threads}");
            }
        }
    }

    #[test]
    fn the_vertical_pass_comes_first_where_the_height_loses_most() {
        let input = |width, height| FrameView { pixels: &[], width, height };
        assert!(!vertical_first(input(40, 140), 20, 100));
        assert!(vertical_first(input(40, 141), 20, 100));
        assert!(vertical_first(input(40, 101), 41, 100));
        assert!(!vertical_first(input(40, 100), 41, 100));
        assert!(!vertical_first(input(30, 4096), 384, 4224));
    }

    #[test]
    fn zero_sizes_are_refused() {
        let input = FrameView { pixels: &[], width: 0, height: 3 };
        assert!(resize(input, (4, 4), 1).is_err());
    }
}
