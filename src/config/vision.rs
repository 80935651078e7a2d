//! The vision encoder's part of `config.json`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::checks::{epsilon, in_range, multiple};
use super::lookalike;
use crate::error::{Error, Result};

/// Attention makes a matrix of patches by patches; the published models have 32 per side.
const MAX_PATCHES_PER_SIDE: usize = 128;

/// The SigLIP vision transformer.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: String,
    pub layer_norm_eps: f64,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Default for VisionConfig {
    // `Idefics3VisionConfig` of transformers 5; SmolVLM2 files omit several of these.
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "gelu_pytorch_tanh".into(),
            layer_norm_eps: 1e-6,
            others: Map::new(),
        }
    }
}

impl VisionConfig {
    /// Patches along one side of a tile; the pixels of a started patch at the right and bottom fall
    /// away.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of one tile.
    pub fn patches(&self) -> usize {
        self.patches_per_side().pow(2)
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.intermediate_size", self.intermediate_size),
            ("vision_config.num_hidden_layers", self.num_hidden_layers),
            ("vision_config.num_attention_heads", self.num_attention_heads),
            ("vision_config.image_size", self.image_size),
            ("vision_config.patch_size", self.patch_size),
        ] {
            in_range(name, value)?;
        }
        multiple("vision_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
        if self.num_channels != 3 {
            let message = format!("vision_config.num_channels: {}, only 3 is known", self.num_channels);
            return Err(Error::unsupported(message));
        }
        // All three are the tanh form in the reference.
        if !matches!(self.hidden_act.as_str(), "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") {
            let message = format!("vision_config.hidden_act: \"{}\" is not gelu_pytorch_tanh", self.hidden_act);
            return Err(Error::unsupported(message));
        }
        epsilon("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        lookalike::check_vision(&self.others)?;
        match self.patches_per_side() {
            0 => Err(Error::invalid_model("vision_config: patch_size is larger than image_size")),
            side if side > MAX_PATCHES_PER_SIDE => Err(Error::invalid_model(format!(
                "vision_config: {side} patches per side, at most {MAX_PATCHES_PER_SIDE} expected"
            ))),
            _ => Ok(()),
        }
    }
}
