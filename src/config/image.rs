//! `preprocessor_config.json`.

use serde::Deserialize;

use super::{ModelConfig, at_most, parse};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// Largest tile budget accepted, in pixels; far above any that makes sense.
pub const MAX_LONGEST_EDGE: usize = 65_535;
/// Largest tile accepted, in pixels: the longest edge that the reference resizes to.
pub const MAX_TILE_SIZE: usize = 4096;

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
        at_most("size.longest_edge", self.size.longest_edge, MAX_LONGEST_EDGE)?;
        at_most("max_image_size.longest_edge", tile_size, MAX_TILE_SIZE)?;
        for (name, done) in
            [("do_resize", self.do_resize), ("do_rescale", self.do_rescale), ("do_normalize", self.do_normalize)]
        {
            if !done {
                return Err(Error::unsupported(format!("{name}: false, only true is known")));
            }
        }
        if self.resample != LANCZOS {
            return Err(Error::unsupported(format!("resample: {}, only {LANCZOS} (Lanczos) is known", self.resample)));
        }
        let usable = |x: f64, zero: bool| x.is_finite() && (zero || x != 0.0);
        for (name, values, zero) in [
            ("rescale_factor", &[self.rescale_factor; 3], true),
            ("image_mean", &self.image_mean, true),
            ("image_std", &self.image_std, false),
        ] {
            if let Some(bad) = values.iter().find(|x| !usable(**x, zero)) {
                return Err(Error::invalid_model(format!("{name}: {bad} is no usable number")));
            }
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
