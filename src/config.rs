//! What a checkpoint's JSON files say, with the published defaults filled in and every number
//! checked.

pub(crate) mod foreign;
mod image;
mod lookalike;
mod rope;
mod text;
mod vision;

pub use image::{ImageConfig, MAX_LONGEST_EDGE, MAX_TILE_SIZE};
pub use rope::{Rope, Rotary};
pub use text::TextConfig;
pub use vision::VisionConfig;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use text::RawTextConfig;

use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// `config.json` of an Idefics3 or SmolVLM checkpoint.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    pub vision: VisionConfig,
    pub text: TextConfig,
    /// Pixel shuffle: one image token stands for `scale_factor` x `scale_factor` patches.
    pub scale_factor: usize,
    /// The id whose embeddings are replaced by image rows.
    pub image_token_id: u32,
    /// The head's weights are the token embedding's, says the flag at top level: the one that
    /// transformers 5 reads.
    pub tie_word_embeddings: bool,
    /// The same of `text_config`'s flag, which transformers 4 reads.
    pub text_tie_word_embeddings: bool,
}

impl ModelConfig {
    /// Reads and checks `config.json`.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        foreign::check(files)?;
        let raw: RawConfig = parse(files, CONFIG)?;
        raw.check().map_err(|e| e.at(files.path(CONFIG).display()))
    }

    /// Image tokens of one tile.
    pub fn tokens_per_tile(&self) -> usize {
        self.vision.patches() / self.scale_factor.pow(2)
    }
}

const CONFIG: &str = "config.json";

/// Any one size in a configuration above this is a damaged file; real ones stay below 2^20.
const MAX_SIZE: usize = 1 << 24;

#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    #[serde(default)]
    vision_config: VisionConfig,
    #[serde(default)]
    text_config: RawTextConfig,
    #[serde(default = "default_scale_factor")]
    scale_factor: usize,
    #[serde(default = "default_image_token_id")]
    image_token_id: u32,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

fn default_scale_factor() -> usize {
    2
}

fn default_image_token_id() -> u32 {
    128_257
}

impl RawConfig {
    fn check(self) -> Result<ModelConfig> {
        if !matches!(self.model_type.as_str(), "idefics3" | "smolvlm") {
            return Err(Error::unsupported(format!(
                "model_type: \"{}\" is neither idefics3 nor smolvlm",
                self.model_type
            )));
        }
        lookalike::check_top(&self.others)?;
        let vision = self.vision_config;
        vision.check()?;
        in_range("scale_factor", self.scale_factor)?;
        multiple("vision_config: patches per side", vision.patches_per_side(), "scale_factor", self.scale_factor)?;

        Ok(ModelConfig {
            vision,
            text_tie_word_embeddings: self.text_config.tie_word_embeddings == Some(true),
            text: self.text_config.check()?,
            scale_factor: self.scale_factor,
            image_token_id: self.image_token_id,
            tie_word_embeddings: self.tie_word_embeddings == Some(true),
        })
    }
}

fn in_range(name: &str, value: usize) -> Result<()> {
    at_most(name, value, MAX_SIZE)
}

fn at_most(name: &str, value: usize, limit: usize) -> Result<()> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value}, 1 to {limit} expected")))
}

fn multiple(name: &str, value: usize, of: &str, factor: usize) -> Result<()> {
    if value.is_multiple_of(factor) {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value} is not a multiple of {of} {factor}")))
}

fn epsilon(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 && value < 1.0 {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value}, a number between 0 and 1 expected")))
}

/// `processor_config.json`: only what it repeats is read, to be checked.
pub fn check_processor(files: &ModelFiles, model: &ModelConfig) -> Result<()> {
    const FILE: &str = "processor_config.json";
    #[derive(Deserialize)]
    struct Raw {
        image_seq_len: Option<usize>,
    }
    if !files.has(FILE) {
        return Ok(());
    }
    let raw: Raw = parse(files, FILE)?;
    match raw.image_seq_len {
        Some(n) if n != model.tokens_per_tile() => {
            let expected = model.tokens_per_tile();
            let message = format!("image_seq_len: {n}, but config.json makes {expected} image tokens a tile");
            Err(Error::invalid_model(message).at(files.path(FILE).display()))
        }
        _ => Ok(()),
    }
}

/// Parses a JSON file of the checkpoint; errors name the file.
pub(crate) fn parse<T: DeserializeOwned>(files: &ModelFiles, name: &str) -> Result<T> {
    let bytes = files.read(name)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid_model(e.to_string()).at(files.path(name).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> Result<ModelConfig> {
        serde_json::from_value::<RawConfig>(json).unwrap().check()
    }

    #[test]
    fn omitted_vision_fields_take_the_references_defaults() {
        let c = config(serde_json::json!({
            "model_type": "smolvlm", "scale_factor": 4,
            "vision_config": {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
            "text_config": {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0},
        }))
        .unwrap();
        assert_eq!((c.vision.num_hidden_layers, c.vision.intermediate_size), (12, 3072));
        assert_eq!((c.vision.patches(), c.tokens_per_tile()), (1024, 64));
        assert_eq!((c.text.head_dim, c.text.rms_norm_eps), (64, 1e-6));
    }

    #[test]
    fn rope_theta_is_found_nested_and_missed_when_absent() {
        let text = |text: serde_json::Value| {
            config(serde_json::json!({"model_type": "idefics3", "vision_config": {"image_size": 384, "patch_size": 14},
                "scale_factor": 3, "text_config": text}))
        };
        let c = text(serde_json::json!({"rope_parameters": {"rope_theta": 273768.0, "rope_type": "default"}})).unwrap();
        assert_eq!(c.text.rope_theta, 273_768.0);
        assert_eq!(c.vision.patches_per_side(), 27);
        assert!(text(serde_json::json!({})).unwrap_err().message().contains("rope_theta"));
        let other = text(serde_json::json!({"rope_parameters": {"rope_theta": 1e5, "rope_type": "su"}}));
        assert!(other.unwrap_err().message().contains("\"su\""));
        let qwen = text(serde_json::json!({"model_type": "qwen2", "rope_theta": 1e5}));
        assert!(qwen.unwrap_err().message().starts_with("text_config.model_type: \"qwen2\""));
    }

    #[test]
    fn contradictions_are_named() {
        let e = config(serde_json::json!({"model_type": "llava"})).unwrap_err();
        assert_eq!(e.message(), "model_type: \"llava\" is neither idefics3 nor smolvlm");
        let e = config(serde_json::json!({"model_type": "idefics3", "vision_config": {"patch_size": 0}})).unwrap_err();
        assert_eq!(e.message(), "vision_config.patch_size: 0, 1 to 16777216 expected");
        let e = config(
            serde_json::json!({"model_type": "idefics3", "vision_config": {"image_size": 512, "patch_size": 16},
            "scale_factor": 3}),
        );
        assert_eq!(e.unwrap_err().message(), "vision_config: patches per side: 32 is not a multiple of scale_factor 3");
    }
}
