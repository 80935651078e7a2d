//! The SigLIP vision transformer and the pixel-shuffle connector on the kernels.

use super::super::Loader;
use crate::config::{ModelConfig, VisionConfig};
use crate::error::Result;
use crate::kernels::{
    self, Attend, Columns, Cpu, Int8KeysValues, KeyValueCache, PackedLinear, Precision, Rows, Then, grow,
};
use crate::preprocess::Normalise;

/// Patches whose inner activations are held at once: these and the layer's weights stay in the second-level cache.
const MLP_ROWS: usize = 192;

/// Vision encoder and connector.
pub struct VisionModel {
    config: VisionConfig,
    normalise: Normalise,
    /// [hidden, 3 * patch * patch].
    patch_embedding: PackedLinear,
    /// [patches, hidden]; position ids are row-major identity for full tiles.
    position_embedding: Vec<f32>,
    layers: Vec<Layer>,
    post_layernorm: Norm,
    scale_factor: usize,
    /// [text hidden, hidden * scale_factor^2].
    projection: PackedLinear,
}

impl VisionModel {
    /// Reads the weights; `loader` stands at `model`. In int4 these have 8 bits: products of many rows are not bound by memory.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, precision: Precision, normalise: Normalise) -> Result<Self> {
        let precision = if precision == Precision::Int4 { Precision::Int8 } else { precision };
        let vision = &config.vision;
        let hidden = vision.hidden_size;
        let at = loader.at("vision_model");
        let embeddings = at.at("embeddings");
        let (patch, inputs) = (vision.patch_size, hidden * config.scale_factor.pow(2));
        let kernel = embeddings.at("patch_embedding").matrix_of(&[hidden, 3, patch, patch])?;
        let bias = embeddings.at("patch_embedding").floats("bias", &[hidden])?;
        Ok(Self {
            patch_embedding: kernel.pack(bias, precision),
            position_embedding: embeddings.at("position_embedding").floats("weight", &[vision.patches(), hidden])?,
            layers: (0..vision.num_hidden_layers)
                .map(|i| Layer::load(&at.at("encoder.layers").at(i), vision, precision))
                .collect::<Result<_>>()?,
            post_layernorm: Norm::load(&at.at("post_layernorm"), vision)?,
            scale_factor: config.scale_factor,
            projection: loader.at("connector.modality_projection").packed(
                &["proj"],
                inputs,
                &[config.text.hidden_size],
                precision,
            )?,
            config: vision.clone(),
            normalise,
        })
    }

    /// The bytes of a tile [size, size, 3] -> hidden states after the last norm [patches, hidden], in `buffers`.
    ///
    /// `check` is asked before each layer, and its error ends the work.
    pub fn encode<'b, E>(
        &self,
        tile: &[u8],
        buffers: &'b mut VisionBuffers,
        check: &mut (dyn FnMut() -> Result<(), E> + Send),
    ) -> Result<&'b [f32], E> {
        let (patches, hidden) = (self.config.patches(), self.config.hidden_size);
        self.patchify(tile, &mut buffers.rows);
        let x = grow(&mut buffers.x, patches * hidden);
        x.copy_from_slice(&self.position_embedding);
        self.patch_embedding.multiply(&buffers.rows, x, Then::Add);
        for layer in &self.layers {
            check()?;
            layer.forward(patches, buffers);
        }
        let x = &mut buffers.x[..patches * hidden];
        let Norm { weight, bias, eps } = &self.post_layernorm;
        kernels::layer_norm(x, (weight, bias), *eps, Cpu::detect());
        Ok(x)
    }

    /// The last tile's hidden states -> image rows [tokens per tile, text hidden], appended to `out`.
    pub fn connect(&self, buffers: &mut VisionBuffers, out: &mut Vec<f32>) {
        let (hidden, s) = (self.config.hidden_size, self.scale_factor);
        let (per_side, side) = (self.config.patches_per_side(), self.config.patches_per_side() / s);
        let VisionBuffers { x, rows, .. } = buffers;
        // Output token (y, x) is the concatenation over dy, then dx, of patch (y * s + dy, x * s + dx).
        rows.set(self.projection.precision(), (side * side, s * s * hidden), Cpu::detect(), |token, row| {
            for (i, part) in row.chunks_exact_mut(s * hidden).enumerate() {
                let patch = (token / side * s + i) * per_side + token % side * s;
                part.copy_from_slice(&x[patch * hidden..][..s * hidden]);
            }
        });
        let start = out.len();
        out.resize(start + side * side * self.projection.outputs(), 0.0);
        self.projection.multiply(rows, &mut out[start..], Then::Store);
    }

    /// Cuts a tile into patches [patches, 3 * patch * patch]: channel, then row, then column, normalised.
    fn patchify(&self, tile: &[u8], rows: &mut Rows) {
        let (size, patch, side) = (self.config.image_size, self.config.patch_size, self.config.patches_per_side());
        let shape = (side * side, 3 * patch * patch);
        rows.set(self.patch_embedding.precision(), shape, Cpu::detect(), |number, out| {
            let corner = number / side * patch * size + number % side * patch;
            for (channel, plane) in out.chunks_exact_mut(patch * patch).enumerate() {
                let table = self.normalise.channel(channel);
                for (y, row) in plane.chunks_exact_mut(patch).enumerate() {
                    let pixels = &tile[(corner + y * size) * 3..][..patch * 3];
                    for (value, pixel) in row.iter_mut().zip(pixels.chunks_exact(3)) {
                        *value = table[usize::from(pixel[channel])];
                    }
                }
            }
        });
    }
}

/// The memory that a tile passes through.
#[derive(Default)]
pub struct VisionBuffers {
    /// The residual stream [patches, hidden].
    x: Vec<f32>,
    /// What goes into a product.
    rows: Rows,
    /// Queries, keys and values [patches, 3 * hidden].
    qkv: Vec<f32>,
    /// [patches, hidden]
    mixed: Vec<f32>,
    /// [MLP_ROWS, intermediate]
    inner: Vec<f32>,
    /// Of the layer at work, in bf16 or 8 bits.
    cache: Option<KeyValueCache>,
    tile: Option<Int8KeysValues>,
}

struct Layer {
    layer_norm1: Norm,
    /// Queries, keys and values side by side.
    qkv_proj: PackedLinear,
    out_proj: PackedLinear,
    layer_norm2: Norm,
    fc1: PackedLinear,
    fc2: PackedLinear,
    heads: usize,
    head_dim: usize,
}

impl Layer {
    fn load(at: &Loader<'_>, config: &VisionConfig, precision: Precision) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        Ok(Self {
            layer_norm1: Norm::load(&at.at("layer_norm1"), config)?,
            qkv_proj: attention.packed_bias(&["q_proj", "k_proj", "v_proj"], hidden, &[hidden; 3], precision)?,
            out_proj: attention.packed_bias(&["out_proj"], hidden, &[hidden], precision)?,
            layer_norm2: Norm::load(&at.at("layer_norm2"), config)?,
            fc1: mlp.packed_bias(&["fc1"], hidden, &[inner], precision)?,
            fc2: mlp.packed_bias(&["fc2"], inner, &[hidden], precision)?,
            heads: config.num_attention_heads,
            head_dim: config.head_dim(),
        })
    }

    fn forward(&self, patches: usize, buffers: &mut VisionBuffers) {
        let VisionBuffers { x, rows, qkv, mixed, inner, cache, tile } = buffers;
        let cpu = Cpu::detect();
        let precision = self.qkv_proj.precision();
        let (hidden, width) = (self.heads * self.head_dim, self.fc1.outputs());
        let x = &mut x[..patches * hidden];
        let qkv = grow(qkv, patches * 3 * hidden);
        let mixed = grow(mixed, patches * hidden);

        let Norm { weight, bias, eps } = &self.layer_norm1;
        rows.layer_norm(precision, x, (weight, bias), *eps, cpu);
        self.qkv_proj.multiply(rows, qkv, Then::Store);
        // Attention over all patches of a tile. All tiles are full: no mask.
        let part = |part| Columns::new(qkv, 3 * hidden, part * hidden, hidden);
        let stored = if precision == Precision::Bf16 {
            let cache = cache.get_or_insert_with(|| KeyValueCache::new(self.heads, self.head_dim, cpu));
            cache.truncate(0);
            cache.reserve(patches);
            cache.append(part(1), part(2));
            cache.stored()
        } else {
            let tile = tile.get_or_insert_with(|| Int8KeysValues::new(self.heads, self.head_dim, cpu));
            tile.set(part(1), part(2));
            tile.stored()
        };
        stored.attend(part(0), (self.head_dim as f32).powf(-0.5), Attend::Everywhere, mixed);
        rows.convert(precision, mixed, hidden, cpu);
        self.out_proj.multiply(rows, x, Then::Add);

        let Norm { weight, bias, eps } = &self.layer_norm2;
        for x in x.chunks_mut(MLP_ROWS * hidden) {
            let inner = grow(inner, x.len() / hidden * width);
            rows.layer_norm(precision, x, (weight, bias), *eps, cpu);
            self.fc1.multiply(rows, inner, Then::Gelu);
            rows.convert(precision, inner, width, cpu);
            self.fc2.multiply(rows, x, Then::Add);
        }
    }
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl Norm {
    fn load(at: &Loader<'_>, config: &VisionConfig) -> Result<Self> {
        let shape = [config.hidden_size];
        Ok(Self {
            weight: at.floats("weight", &shape)?,
            bias: at.floats("bias", &shape)?,
            eps: config.layer_norm_eps as f32,
        })
    }
}
