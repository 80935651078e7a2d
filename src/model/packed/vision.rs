//! The SigLIP vision transformer and the pixel-shuffle connector on the kernels.

use super::super::Loader;
use super::chunks::{self, Buffers};
use crate::config::{ModelConfig, VisionConfig};
use crate::error::Result;
use crate::kernels::{
    self, Attend, Cpu, Heads, Int8KeysValues, KeyValueCache, PackedLinear, Precision, Rows, Split, Stored, Then, grow,
};
use crate::preprocess::Normalise;

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
        let VisionBuffers { x, queries, keys, values, packed, .. } = buffers;
        let mut stream = Stream {
            x: &mut x[..patches * hidden],
            queries: grow(queries, patches * hidden),
            keys: grow(keys, patches * hidden),
            values: grow(values, patches * hidden),
            hidden,
        };
        if let Some(first) = self.layers.first() {
            stream.in_chunks(|chunk, buffers| first.project(chunk, buffers));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            check()?;
            let [keys, values] = [&stream.keys, &stream.values].map(|all| Heads::beside(all, hidden, 0, layer.heads));
            let packed = packed.get_or_insert_with(|| Packed::new(layer)).set(keys, values);
            // A task goes on with its patches into the next layer: only keys and values are for all.
            stream.in_chunks(|chunk, buffers| {
                layer.finish(chunk, &packed, buffers);
                if let Some(next) = self.layers.get(i + 1) {
                    next.project(chunk, buffers);
                }
            });
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
    /// What goes into a product of all patches.
    rows: Rows,
    /// [patches, hidden], as the two that follow.
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    packed: Option<Packed>,
}

/// Keys and values of the layer at work, as attention takes them.
enum Packed {
    Bf16(KeyValueCache),
    Int8(Int8KeysValues),
}

impl Packed {
    fn new(layer: &Layer) -> Self {
        let (heads, head_dim) = layer.heads;
        match layer.k_proj.precision() {
            Precision::Bf16 => Packed::Bf16(KeyValueCache::new(heads, head_dim, Cpu::detect())),
            _ => Packed::Int8(Int8KeysValues::new(heads, head_dim, Cpu::detect())),
        }
    }

    fn set(&mut self, keys: Heads<'_>, values: Heads<'_>) -> Stored<'_> {
        match self {
            Packed::Bf16(cache) => {
                cache.truncate(0);
                cache.append(keys, values);
                cache.stored()
            }
            Packed::Int8(packed) => {
                packed.set(keys, values);
                packed.stored()
            }
        }
    }
}

/// What the layers hand on to each other; see [`VisionBuffers`].
struct Stream<'a> {
    x: &'a mut [f32],
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
    hidden: usize,
}

/// Some patches of it, each [count, hidden].
struct Chunk<'a> {
    count: usize,
    x: &'a mut [f32],
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl Stream<'_> {
    /// Calls `work` with all patches, a chunk at a time.
    fn in_chunks(&mut self, work: impl Fn(&mut Chunk<'_>, &mut Buffers) + Sync) {
        let hidden = self.hidden;
        let patches = self.x.len() / hidden;
        let all = [&mut *self.x, self.queries, self.keys, self.values].map(Split::new);
        chunks::in_chunks(patches, |of_chunk, buffers| {
            let count = of_chunk.len();
            // SAFETY: no other task has these patches.
            let [x, queries, keys, values] =
                all.each_ref().map(|all| unsafe { all.part(of_chunk.start * hidden, count * hidden) });
            work(&mut Chunk { count, x, queries, keys, values }, buffers);
        });
    }
}

struct Layer {
    layer_norm1: Norm,
    q_proj: PackedLinear,
    k_proj: PackedLinear,
    v_proj: PackedLinear,
    out_proj: PackedLinear,
    layer_norm2: Norm,
    fc1: PackedLinear,
    fc2: PackedLinear,
    /// How many, and head_dim.
    heads: (usize, usize),
}

impl Layer {
    fn load(at: &Loader<'_>, config: &VisionConfig, precision: Precision) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        Ok(Self {
            layer_norm1: Norm::load(&at.at("layer_norm1"), config)?,
            q_proj: attention.packed_bias(&["q_proj"], hidden, &[hidden], precision)?,
            k_proj: attention.packed_bias(&["k_proj"], hidden, &[hidden], precision)?,
            v_proj: attention.packed_bias(&["v_proj"], hidden, &[hidden], precision)?,
            out_proj: attention.packed_bias(&["out_proj"], hidden, &[hidden], precision)?,
            layer_norm2: Norm::load(&at.at("layer_norm2"), config)?,
            fc1: mlp.packed_bias(&["fc1"], hidden, &[inner], precision)?,
            fc2: mlp.packed_bias(&["fc2"], inner, &[hidden], precision)?,
            heads: (config.num_attention_heads, config.head_dim()),
        })
    }

    /// Queries, keys and values of a chunk.
    fn project(&self, chunk: &mut Chunk<'_>, buffers: &mut Buffers) {
        let rows = &mut buffers.rows;
        let Norm { weight, bias, eps } = &self.layer_norm1;
        rows.layer_norm(self.q_proj.precision(), chunk.x, (weight, bias), *eps, Cpu::detect());
        self.q_proj.multiply(rows, chunk.queries, Then::Store);
        self.k_proj.multiply(rows, chunk.keys, Then::Store);
        self.v_proj.multiply(rows, chunk.values, Then::Store);
    }

    /// What follows when all keys and values are there.
    fn finish(&self, chunk: &mut Chunk<'_>, all: &Stored<'_>, buffers: &mut Buffers) {
        let Buffers { rows, mixed, inside } = buffers;
        let (cpu, precision) = (Cpu::detect(), self.out_proj.precision());
        let (heads, head_dim) = self.heads;
        let (hidden, inner) = (heads * head_dim, self.fc1.outputs());

        // All tiles are full: no mask.
        let mixed = grow(mixed, chunk.count * hidden);
        let queries = Heads::beside(chunk.queries, hidden, 0, self.heads);
        all.attend(queries, (head_dim as f32).powf(-0.5), Attend::Everywhere, mixed);
        rows.convert(precision, mixed, hidden, cpu);
        self.out_proj.multiply(rows, chunk.x, Then::Add);

        let Norm { weight, bias, eps } = &self.layer_norm2;
        rows.layer_norm(precision, chunk.x, (weight, bias), *eps, cpu);
        let inside = grow(inside, chunk.count * inner);
        self.fc1.multiply(rows, inside, Then::Store);
        rows.gelu(precision, inside, inner, cpu);
        self.fc2.multiply(rows, chunk.x, Then::Add);
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
