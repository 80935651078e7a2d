//! `config.json`: the networks of an Idefics3 or SmolVLM checkpoint.

use serde::Deserialize;

use super::checks::{in_range, multiple};
use super::json::parse;
use super::text::{RawTextConfig, TextConfig};
use super::vision::VisionConfig;
use super::{foreign, lookalike};
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
