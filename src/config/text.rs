//! The decoder's part of `config.json`.

use serde::Deserialize;

use super::{epsilon, in_range, multiple};
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
    /// Longest context the checkpoint was trained for, in tokens.
    pub max_position_embeddings: usize,
}

impl TextConfig {
    /// Rotary frequencies [head_dim / 2].
    pub fn inv_freq(&self) -> Vec<f32> {
        let frequency = |i: usize| self.rope_theta.powf(-(i as f64) / self.head_dim as f64) as f32;
        (0..self.head_dim).step_by(2).map(frequency).collect()
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct RawTextConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<RopeParameters>,
    max_position_embeddings: usize,
    hidden_act: String,
    attention_bias: bool,
    mlp_bias: bool,
}

impl Default for RawTextConfig {
    // `LlamaConfig` of transformers 5. Idefics3's own epsilon, 1e-5, holds only where there is no text_config at
    // all, and such a file has no rope_theta either.
    fn default() -> Self {
        Self {
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
            hidden_act: "silu".into(),
            attention_bias: false,
            mlp_bias: false,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RopeParameters {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

impl RawTextConfig {
    pub(super) fn check(self) -> Result<TextConfig> {
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
        if self.hidden_act != "silu" {
            return Err(Error::unsupported(format!("text_config.hidden_act: \"{}\" is not silu", self.hidden_act)));
        }
        if self.attention_bias || self.mlp_bias {
            return Err(Error::unsupported("text_config: attention_bias and mlp_bias are not known in this family"));
        }

        let nested = [&self.rope_parameters, &self.rope_scaling];
        for rope_type in nested.iter().filter_map(|r| r.as_ref()?.rope_type.as_deref()) {
            if rope_type != "default" {
                return Err(Error::unsupported(format!("text_config: rope_type \"{rope_type}\" is not \"default\"")));
            }
        }
        // There is no sensible default: the published values span 100,000 to 273,768.
        let rope_theta = nested.iter().find_map(|r| r.as_ref()?.rope_theta).or(self.rope_theta).ok_or_else(|| {
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
            max_position_embeddings: self.max_position_embeddings,
        })
    }
}
