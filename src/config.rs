//! What a checkpoint's JSON files say, with the published defaults filled in and every number checked.

use serde::Deserialize;
use serde::de::DeserializeOwned;

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
    /// The head's weights are the token embedding's.
    pub tie_word_embeddings: bool,
}

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
        }
    }
}

impl VisionConfig {
    /// Patches along one side of a tile; the pixels of a started patch at the right and bottom fall away.
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
}

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

impl ModelConfig {
    /// Reads and checks `config.json`.
    pub fn load(files: &ModelFiles) -> Result<Self> {
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
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn default_scale_factor() -> usize {
    2
}

fn default_image_token_id() -> u32 {
    128_257
}

#[derive(Deserialize)]
#[serde(default)]
struct RawTextConfig {
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

impl RawConfig {
    fn check(self) -> Result<ModelConfig> {
        if !matches!(self.model_type.as_str(), "idefics3" | "smolvlm") {
            return Err(Error::unsupported(format!(
                "model_type: \"{}\" is neither idefics3 nor smolvlm",
                self.model_type
            )));
        }
        let vision = self.vision_config;
        for (name, value) in [
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.num_hidden_layers", vision.num_hidden_layers),
            ("vision_config.num_attention_heads", vision.num_attention_heads),
            ("vision_config.image_size", vision.image_size),
            ("vision_config.patch_size", vision.patch_size),
            ("scale_factor", self.scale_factor),
        ] {
            in_range(name, value)?;
        }
        multiple("vision_config.hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads)?;
        if vision.num_channels != 3 {
            return Err(Error::unsupported(format!(
                "vision_config.num_channels: {}, only 3 is known",
                vision.num_channels
            )));
        }
        if vision.hidden_act != "gelu_pytorch_tanh" {
            return Err(Error::unsupported(format!(
                "vision_config.hidden_act: \"{}\" is not gelu_pytorch_tanh",
                vision.hidden_act
            )));
        }
        epsilon("vision_config.layer_norm_eps", vision.layer_norm_eps)?;
        in_range("vision_config: patches per side", vision.patches_per_side())?;
        multiple("vision_config: patches per side", vision.patches_per_side(), "scale_factor", self.scale_factor)?;

        Ok(ModelConfig {
            vision,
            text: self.text_config.check()?,
            scale_factor: self.scale_factor,
            image_token_id: self.image_token_id,
            tie_word_embeddings: self.tie_word_embeddings,
        })
    }
}

impl RawTextConfig {
    fn check(self) -> Result<TextConfig> {
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

fn in_range(name: &str, value: usize) -> Result<()> {
    if (1..=MAX_SIZE).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid_model(format!("{name}: {value}, 1 to {MAX_SIZE} expected")))
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

/// The ids that end a generation, from `generation_config.json`, else from `config.json`'s text part.
pub fn eos_token_ids(files: &ModelFiles) -> Result<Vec<u32>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
    }
    #[derive(Deserialize)]
    struct Raw {
        eos_token_id: Option<Ids>,
    }
    const FILE: &str = "generation_config.json";
    if !files.has(FILE) {
        return Ok(Vec::new());
    }
    let raw: Raw = parse(files, FILE)?;
    Ok(match raw.eos_token_id {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
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
        let yarn = text(serde_json::json!({"rope_parameters": {"rope_theta": 1e5, "rope_type": "yarn"}}));
        assert!(yarn.unwrap_err().message().contains("yarn"));
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
