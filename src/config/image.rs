//! `preprocessor_config.json`.

use serde::Deserialize;

use super::{ModelConfig, in_range, parse};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// `preprocessor_config.json`: how a picture becomes tiles.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// Default tile budget: the longest edge of the picture after the first resize, in pixels.
    pub longest_edge: usize,
    /// Edge of a tile, in pixels.
    pub tile_size: usize,
    pub split: bool,
    pub rescale_factor: f64,
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

#[derive(Deserialize)]
#[serde(default)]
struct RawImageConfig {
    size: LongestEdge,
    max_image_size: LongestEdge,
    do_image_splitting: bool,
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    rescale_factor: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
    resample: u32,
}

#[derive(Deserialize)]
struct LongestEdge {
    longest_edge: usize,
}

/// `PIL.Image.Resampling.LANCZOS`.
const LANCZOS: u32 = 1;

impl Default for RawImageConfig {
    // `Idefics3ImageProcessor` of transformers 5.
    fn default() -> Self {
        Self {
            size: LongestEdge { longest_edge: 4 * 364 },
            max_image_size: LongestEdge { longest_edge: 364 },
            do_image_splitting: true,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            resample: LANCZOS,
        }
    }
}

impl ImageConfig {
    /// Reads `preprocessor_config.json`, and checks it against the vision encoder's tile.
    pub fn load(files: &ModelFiles, model: &ModelConfig) -> Result<Self> {
        const FILE: &str = "preprocessor_config.json";
        let raw: RawImageConfig = parse(files, FILE)?;
        raw.check(model).map_err(|e| e.at(files.path(FILE).display()))
    }
}

impl RawImageConfig {
    fn check(self, model: &ModelConfig) -> Result<ImageConfig> {
        let tile_size = self.max_image_size.longest_edge;
        if tile_size != model.vision.image_size {
            let image_size = model.vision.image_size;
            return Err(Error::invalid_model(format!(
                "max_image_size.longest_edge: {tile_size}, but config.json's image_size is {image_size}"
            )));
        }
        in_range("size.longest_edge", self.size.longest_edge)?;
        if !(self.do_resize && self.do_rescale && self.do_normalize) {
            return Err(Error::unsupported("do_resize, do_rescale and do_normalize must all be true"));
        }
        if self.resample != LANCZOS {
            return Err(Error::unsupported(format!("resample: {}, only {LANCZOS} (Lanczos) is known", self.resample)));
        }
        let finite = |x: &f64| x.is_finite();
        let numbers_ok = self.rescale_factor.is_finite()
            && self.image_mean.iter().all(finite)
            && self.image_std.iter().all(|s| s.is_finite() && *s != 0.0);
        if !numbers_ok {
            return Err(Error::invalid_model("rescale_factor, image_mean or image_std: not a usable number"));
        }
        Ok(ImageConfig {
            longest_edge: self.size.longest_edge,
            tile_size,
            split: self.do_image_splitting,
            rescale_factor: self.rescale_factor,
            mean: self.image_mean,
            std: self.image_std,
        })
    }
}
