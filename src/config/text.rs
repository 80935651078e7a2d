//! The decoder's part of `config.json`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::checks::{epsilon, in_range, multiple};
use super::lookalike;
use super::rope::{self, Rope, Rotary};
use crate::error::{Error, Result};

/// The Llama decoder.
#[derive(Clone, Debug)]
pub struct TextConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope: Rope,
    /// Queries, keys, values and attention's output have biases.
    pub attention_bias: bool,
    /// Gates, what they gate, and their product's projection have biases.
    pub mlp_bias: bool,
    /// Longest context the checkpoint was trained for, in tokens.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// What turns queries and keys.
    pub fn rotary(&self) -> Rotary {
        self.rope.rotary(self.rope_theta, self.head_dim)
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct RawTextConfig {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<Map<String, Value>>,
    rope_scaling: Option<Map<String, Value>>,
    max_position_embeddings: usize,
    original_max_position_embeddings: Option<usize>,
    hidden_act: String,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    pub(super) tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Default for RawTextConfig {
    // `LlamaConfig` of transformers 5. Idefics3's own epsilon, 1e-5, holds only where there is no
    // text_config at all, and such a file has no rope_theta either.
    fn default() -> Self {
        Self {
            model_type: None,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            vocab_size: 32_000,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_parameters: None,
            rope_scaling: None,
            max_position_embeddings: 2048,
            original_max_position_embeddings: None,
            hidden_act: "silu".into(),
            attention_bias: None,
            mlp_bias: None,
            tie_word_embeddings: None,
            others: Map::new(),
        }
    }
}

impl RawTextConfig {
    pub(super) fn check(self) -> Result<TextConfig> {
        if let Some(other) = self.model_type.as_deref().filter(|kind| *kind != "llama") {
            let message = format!("text_config.model_type: \"{other}\" is not llama, the family's decoder");
            return Err(Error::unsupported(message));
        }
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        for (name, value) in [
            ("text_config.hidden_size", self.hidden_size),
            ("text_config.intermediate_size", self.intermediate_size),
            ("text_config.num_hidden_layers", self.num_hidden_layers),
            ("text_config.num_attention_heads", self.num_attention_heads),
            ("text_config.num_key_value_heads", kv_heads),
            ("text_config.vocab_size", self.vocab_size),
            ("text_config.max_position_embeddings", self.max_position_embeddings),
        ] {
            in_range(name, value)?;
        }
        let head_dim = match self.head_dim {
            Some(d) => d,
            None => {
                multiple("text_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)?;
                self.hidden_size / self.num_attention_heads
            }
        };
        in_range("text_config.head_dim", head_dim)?;
        multiple("text_config.head_dim", head_dim, "2 (rotary halves)", 2)?;
        multiple("text_config.num_attention_heads", self.num_attention_heads, "num_key_value_heads", kv_heads)?;
        epsilon("text_config.rms_norm_eps", self.rms_norm_eps)?;
        // The reference knows it by both names.
        if !matches!(self.hidden_act.as_str(), "silu" | "swish") {
            return Err(Error::unsupported(format!("text_config.hidden_act: \"{}\" is not silu", self.hidden_act)));
        }
        lookalike::check_text(&self.others, head_dim)?;

        let around = rope::Around {
            head_dim,
            max_position_embeddings: self.max_position_embeddings,
            original: self.original_max_position_embeddings,
        };
        let read = rope::read(self.rope_scaling.as_ref(), self.rope_parameters.as_ref(), &around)?;
        // There is no sensible default: the published values span 100,000 to 273,768.
        let rope_theta = read.theta.or(self.rope_theta).ok_or_else(|| {
            Error::invalid_model("text_config: rope_theta is in neither rope_parameters nor text_config")
        })?;
        if !(rope_theta.is_finite() && rope_theta > 1.0) {
            return Err(Error::invalid_model(format!(
                "text_config.rope_theta: {rope_theta}, a number above 1 expected"
            )));
        }

        Ok(TextConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            rope: read.rope,
            attention_bias: self.attention_bias.unwrap_or_default(),
            mlp_bias: self.mlp_bias.unwrap_or_default(),
            max_position_embeddings: read.max_position_embeddings,
        })
    }
}
