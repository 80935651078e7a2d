//! The image processor's settings: in `preprocessor_config.json`, or as transformers 5 saves them
//! in `processor_config.json`.

use serde::Deserialize;

use super::checks::at_most;
use super::json::parse;
use super::model::ModelConfig;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// Largest tile budget accepted, in pixels; far above any that makes sense.
pub const MAX_LONGEST_EDGE: usize = 65_535;
/// Largest tile accepted, in pixels: the longest edge that the reference resizes to.
pub const MAX_TILE_SIZE: usize = 4096;

/// How a picture becomes tiles.
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

/// What is absent or null has the default of the reference's `Idefics3ImageProcessor`: its fast
/// kind writes nulls.
#[derive(Deserialize)]
struct RawImageConfig {
    size: Option<LongestEdge>,
    max_image_size: Option<LongestEdge>,
    do_image_splitting: Option<bool>,
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    rescale_factor: Option<f64>,
    image_mean: Option<Channels>,
    image_std: Option<Channels>,
    resample: Option<u32>,
}

#[derive(Deserialize)]
struct LongestEdge {
    longest_edge: usize,
}

/// A number of each channel, or of all.
#[derive(Deserialize)]
#[serde(untagged)]
enum Channels {
    All(f64),
    Each([f64; 3]),
}

impl Channels {
    fn or_half(channels: Option<Self>) -> [f64; 3] {
        match channels {
            None => [0.5; 3],
            Some(Self::All(x)) => [x; 3],
            Some(Self::Each(each)) => each,
        }
    }
}

/// `PIL.Image.Resampling.LANCZOS`.
const LANCZOS: u32 = 1;

impl ImageConfig {
    /// Reads them, and checks them against the vision encoder's tile. Errors name the file.
    pub fn load(files: &ModelFiles, model: &ModelConfig) -> Result<Self> {
        let (raw, place) = RawImageConfig::find(files)?;
        raw.check(model).map_err(|e| e.at(place))
    }
}

impl RawImageConfig {
    /// Where the reference finds them, in its order: what is nested in `processor_config.json`
    /// wins.
    fn find(files: &ModelFiles) -> Result<(Self, String)> {
        const NESTED: &str = "processor_config.json";
        const FLAT: &str = "preprocessor_config.json";
        #[derive(Deserialize)]
        struct Processor {
            image_processor: Option<RawImageConfig>,
        }
        if files.has(NESTED)
            && let Some(nested) = parse::<Processor>(files, NESTED)?.image_processor
        {
            return Ok((nested, format!("{}: image_processor", files.path(NESTED).display())));
        }
        let path = files.path(FLAT).display().to_string();
        if !files.has(FLAT) && files.path(FLAT).symlink_metadata().is_err() {
            return Err(Error::not_found(format!(
                "{path}: not there, and no image_processor in {NESTED}; save the processor beside the model \
                 (processor.save_pretrained), or copy its files from the checkpoint that this one was trained from"
            )));
        }
        Ok((parse(files, FLAT)?, path))
    }

    fn check(self, model: &ModelConfig) -> Result<ImageConfig> {
        let tile_size = self.max_image_size.map_or(364, |size| size.longest_edge);
        let longest_edge = self.size.map_or(4 * 364, |size| size.longest_edge);
        if tile_size != model.vision.image_size {
            let image_size = model.vision.image_size;
            return Err(Error::invalid_model(format!(
                "max_image_size.longest_edge: {tile_size}, but config.json's image_size is {image_size}"
            )));
        }
        at_most("size.longest_edge", longest_edge, MAX_LONGEST_EDGE)?;
        at_most("max_image_size.longest_edge", tile_size, MAX_TILE_SIZE)?;
        for (name, done) in
            [("do_resize", self.do_resize), ("do_rescale", self.do_rescale), ("do_normalize", self.do_normalize)]
        {
            if done == Some(false) {
                return Err(Error::unsupported(format!("{name}: false, only true is known")));
            }
        }
        if let Some(other) = self.resample.filter(|&r| r != LANCZOS) {
            return Err(Error::unsupported(format!("resample: {other}, only {LANCZOS} (Lanczos) is known")));
        }
        let rescale_factor = self.rescale_factor.unwrap_or(1.0 / 255.0);
        let [mean, std] = [self.image_mean, self.image_std].map(Channels::or_half);
        let usable = |x: f64, zero: bool| x.is_finite() && (zero || x != 0.0);
        for (name, values, zero) in
            [("rescale_factor", &[rescale_factor; 3], true), ("image_mean", &mean, true), ("image_std", &std, false)]
        {
            if let Some(bad) = values.iter().find(|x| !usable(**x, zero)) {
                return Err(Error::invalid_model(format!("{name}: {bad} is no usable number")));
            }
        }
        Ok(ImageConfig {
            longest_edge,
            tile_size,
            split: self.do_image_splitting.unwrap_or(true),
            rescale_factor,
            mean,
            std,
        })
    }
}
