//! The SigLIP vision transformer and the pixel-shuffle connector in candle's tensors: pixels to
//! image rows.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::layer_norm;

use super::linear::Linear;
use super::ops;
use crate::config::{ModelConfig, VisionConfig};
use crate::error::Result;
use crate::model::loader::Loader;
use crate::stop::{Run, Stop};

/// Vision encoder and connector.
pub struct VisionModel {
    config: VisionConfig,
    /// Patch embedding as a matrix product: [hidden, 3 * patch * patch].
    patch_embedding: Linear,
    /// [1, patches, hidden]; position ids are row-major identity for full tiles.
    position_embedding: Tensor,
    layers: Vec<Layer>,
    post_layernorm: Norm,
    scale_factor: usize,
    /// [text hidden, hidden * scale_factor^2].
    projection: Linear,
    device: Device,
    dtype: DType,
}

impl VisionModel {
    /// Reads the weights; `loader` stands at `model`.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<Self> {
        let vision = &config.vision;
        let hidden = vision.hidden_size;
        let at = loader.at("vision_model");
        let patch = vision.patch_size;
        let kernel = at.at("embeddings.patch_embedding").tensor("weight", &[hidden, 3, patch, patch])?;
        let bias = at.at("embeddings.patch_embedding").tensor("bias", &[hidden])?;
        let positions = at.at("embeddings.position_embedding").tensor("weight", &[vision.patches(), hidden])?;
        let layers = (0..vision.num_hidden_layers)
            .map(|i| Layer::load(&at.at("encoder.layers").at(i), vision))
            .collect::<Result<_>>()?;
        let inputs = hidden * config.scale_factor.pow(2);
        Ok(Self {
            patch_embedding: Linear { weight: kernel.reshape((hidden, 3 * patch * patch))?, bias: Some(bias) },
            position_embedding: positions.unsqueeze(0)?,
            layers,
            post_layernorm: Norm::load(&at, "post_layernorm", vision)?,
            scale_factor: config.scale_factor,
            projection: loader.at("connector.modality_projection").linear(
                &["proj"],
                inputs,
                &[config.text.hidden_size],
            )?,
            config: vision.clone(),
            device: loader.device.clone(),
            dtype: loader.dtype,
        })
    }

    /// Normalised pixels [tiles, 3, size, size] -> hidden states after the last norm [tiles,
    /// patches, hidden].
    ///
    /// `stop` is asked before each layer.
    pub fn encode(&self, pixels: &[f32], stop: &Stop) -> Run<Tensor> {
        let patches = self.patchify(pixels)?;
        let tiles = patches.dim(0)?;
        let rows = self.patch_embedding.forward(&patches.flatten_to(1)?)?;
        let rows = rows.reshape((tiles, self.config.patches(), self.config.hidden_size))?;
        let mut x = ops::add(rows, &self.position_embedding)?;
        for layer in &self.layers {
            stop.check()?;
            x = layer.forward(&x)?;
        }
        Ok(self.post_layernorm.forward(&x)?)
    }

    /// Hidden states [tiles, patches, hidden] -> image rows [tiles * tokens per tile, text hidden].
    pub fn connect(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let (tiles, _, width) = hidden.dims3()?;
        let s = self.scale_factor;
        let side = self.config.patches_per_side() / s;
        // Output token (y, x) is the concatenation over dy, then dx, of patch (y * s + dy, x * s +
        // dx).
        let shuffled = hidden
            .reshape(vec![tiles, side, s, side, s, width])?
            .permute(vec![0, 1, 3, 2, 4, 5])?
            .reshape((tiles * side * side, s * s * width))?;
        self.projection.forward(&shuffled)
    }

    /// Cuts tiles into patches: [tiles, patches, 3 * patch * patch], channel, then row, then
    /// column.
    fn patchify(&self, pixels: &[f32]) -> candle_core::Result<Tensor> {
        let (size, patch, side) = (self.config.image_size, self.config.patch_size, self.config.patches_per_side());
        let tiles = pixels.len() / (3 * size * size);
        let mut out = Vec::with_capacity(tiles * side * side * 3 * patch * patch);
        for tile in pixels.chunks_exact(3 * size * size) {
            for (py, px) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                for (channel, y) in (0..3).flat_map(|c| (0..patch).map(move |y| (c, y))) {
                    let start = (channel * size + py * patch + y) * size + px * patch;
                    out.extend_from_slice(&tile[start..start + patch]);
                }
            }
        }
        Tensor::from_vec(out, (tiles, side * side, 3 * patch * patch), &self.device)?.to_dtype(self.dtype)
    }
}

struct Layer {
    layer_norm1: Norm,
    /// Queries, keys and values side by side.
    qkv_proj: Linear,
    out_proj: Linear,
    layer_norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    head_dim: usize,
}

impl Layer {
    fn load(at: &Loader<'_>, config: &VisionConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        Ok(Self {
            layer_norm1: Norm::load(at, "layer_norm1", config)?,
            qkv_proj: attention.linear_bias(&["q_proj", "k_proj", "v_proj"], hidden, &[hidden; 3])?,
            out_proj: attention.linear_bias(&["out_proj"], hidden, &[hidden])?,
            layer_norm2: Norm::load(at, "layer_norm2", config)?,
            fc1: mlp.linear_bias(&["fc1"], hidden, &[inner])?,
            fc2: mlp.linear_bias(&["fc2"], inner, &[hidden])?,
            heads: config.num_attention_heads,
            head_dim: config.head_dim(),
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = ops::add(self.attention(&self.layer_norm1.forward(x)?)?, x)?;
        let normed = self.layer_norm2.forward(&x)?;
        let inner = ops::gelu(self.fc1.forward(&normed.flatten_to(1)?)?)?;
        ops::add(self.fc2.forward(&inner)?.reshape(x.shape())?, &x)
    }

    /// Bidirectional attention over all patches of a tile. All tiles are full: no mask.
    fn attention(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (tiles, patches, hidden) = x.dims3()?;
        let qkv = self.qkv_proj.forward(&x.flatten_to(1)?)?;
        let scale = (self.head_dim as f64).powf(-0.5);
        let qkv = qkv.reshape((tiles, patches, 3, hidden))?;
        let heads = |part: usize| {
            let rows = qkv.narrow(2, part, 1)?.reshape((tiles, patches, self.heads, self.head_dim))?;
            rows.transpose(1, 2)?.contiguous()
        };
        let scores = heads(0)?.matmul(&heads(1)?.transpose(2, 3)?)?;
        let mixed = ops::softmax(scores, scale, None)?.matmul(&heads(2)?)?;
        let rows = mixed.transpose(1, 2)?.reshape((tiles * patches, hidden))?;
        self.out_proj.forward(&rows)?.reshape((tiles, patches, hidden))
    }
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    fn load(at: &Loader<'_>, name: &str, config: &VisionConfig) -> Result<Self> {
        let at = at.at(name);
        let shape = [config.hidden_size];
        Ok(Self {
            weight: at.tensor("weight", &shape)?,
            bias: at.tensor("bias", &shape)?,
            eps: config.layer_norm_eps as f32,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
