//! The SigLIP vision transformer and the pixel-shuffle connector on the kernels.

use rayon::prelude::*;

use super::chunks::{self, Buffers};
use crate::config::{ModelConfig, VisionConfig};
use crate::error::Result;
use crate::kernels::{
    self, Attend, CacheRoom, Cpu, Heads, Int8KeysValues, Int16KeysValues, Int16Room, KeyValueCache, PackedLinear,
    Precision, Rotation, Rows, Split, Stored, Then, grow,
};
use crate::model::loader::Loader;
use crate::model::weights::matrix::Fold;
use crate::preprocess::Normalise;
use crate::stop::{Run, Stop};

/// Vision encoder and connector.
pub struct VisionModel {
    config: VisionConfig,
    normalise: Normalise,
    /// [hidden, 3 * patch * patch].
    patch_embedding: PackedLinear,
    /// What 8 bits leave of it, in as many: nothing behind it is better than this. Both then take
    /// pixels as they are, and have the normalisation in them.
    patch_rest: Option<PackedLinear>,
    /// [patches, hidden]; position ids are row-major identity for full tiles.
    position_embedding: Vec<f32>,
    layers: Vec<Layer>,
    post_layernorm: Norm,
    /// Where activations have 8 bits: by what the residual stream is turned, and what the connector
    /// has of the last norm.
    turned: Option<(Rotation, Norm)>,
    scale_factor: usize,
    /// [text hidden, hidden * scale_factor^2].
    projection: PackedLinear,
}

impl VisionModel {
    /// Reads the weights; `loader` stands at `model`. In int4 these have 8 bits: products of many
    /// rows are not bound by memory.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, precision: Precision, normalise: Normalise) -> Result<Self> {
        let precision = if precision == Precision::Int4 { Precision::Int8 } else { precision };
        let vision = &config.vision;
        let hidden = vision.hidden_size;
        let at = loader.at("vision_model");
        let embeddings = at.at("embeddings");
        let (patch, parts) = (vision.patch_size, config.scale_factor.pow(2));
        let kernel = embeddings.at("patch_embedding").matrix_of(&[hidden, 3, patch, patch])?;
        let bias = embeddings.at("patch_embedding").floats("bias", &[hidden])?;
        // A few channels of a trained model's stream are tens of times larger than the others. Of
        // 16 bits each has its own exponent.
        let turns = (precision == Precision::Int8).then(|| Turns::new(vision));
        let rotation = turns.as_ref().map(|turns| &turns.stream);
        // A pixel's value is a gain times its byte less 128, and a shift.
        let of_pixels = |of: fn(&[f32; 256]) -> f32| -> Vec<f32> {
            (0..3).flat_map(|channel| std::iter::repeat_n(of(normalise.channel(channel)), patch * patch)).collect()
        };
        let (gains, shift) = match &turns {
            None => Default::default(),
            Some(_) => (of_pixels(|values| (values[255] - values[0]) / 255.0), of_pixels(|values| values[128])),
        };
        let of_patches = Fold { gains: &gains, outputs: rotation, ..Fold::default() };
        let patch_rest = turns
            .as_ref()
            .map(|_| kernel.pack(Vec::new(), precision, &Fold { rest: true, ..of_patches }, loader.store));
        let mut position_embedding =
            embeddings.at("position_embedding").floats("weight", &[vision.patches(), hidden])?;
        if let Some(rotation) = rotation {
            let rows = position_embedding.par_chunks_exact_mut(hidden);
            rows.for_each(|row| rotation.turn(row, Cpu::detect()));
        }
        let post_layernorm = Norm::load(&at.at("post_layernorm"), vision)?;
        // The connector reads patches side by side.
        let beside = post_layernorm.repeat(parts);
        Ok(Self {
            patch_rest: patch_rest.transpose()?,
            patch_embedding: kernel.pack(bias, precision, &Fold { shift: &shift, ..of_patches }, loader.store)?,
            position_embedding,
            layers: (0..vision.num_hidden_layers)
                .map(|i| Layer::load(&at.at("encoder.layers").at(i), vision, precision, turns.as_ref()))
                .collect::<Result<_>>()?,
            post_layernorm: post_layernorm.rest(rotation),
            scale_factor: config.scale_factor,
            projection: loader.at("connector.modality_projection").packed(
                false,
                &["proj"],
                hidden * parts,
                &[config.text.hidden_size],
                precision,
                &beside.fold(rotation),
            )?,
            turned: turns.map(|turns| (turns.stream, post_layernorm)),
            config: vision.clone(),
            normalise,
        })
    }

    /// The bytes of a tile [size, size, 3] -> what the last layer leaves, in `buffers`.
    ///
    /// `stop` is asked before each layer.
    pub fn encode(&self, tile: &[u8], buffers: &mut VisionBuffers, stop: &Stop) -> Run<()> {
        let (patches, hidden) = (self.config.patches(), self.config.hidden_size);
        self.patchify(tile, &mut buffers.rows);
        let x = grow(&mut buffers.x, patches * hidden);
        x.copy_from_slice(&self.position_embedding);
        self.patch_embedding.multiply(&buffers.rows, x, Then::Add);
        if let Some(rest) = &self.patch_rest {
            rest.multiply(&buffers.rows, x, Then::Add);
        }
        let VisionBuffers { x, normed, packed, .. } = buffers;
        normed.resize_with(patches, Rows::default);
        let mut stream = Stream { x: &mut x[..patches * hidden], normed, hidden };
        if let Some(first) = self.layers.first() {
            let packed = packed.get_or_insert_with(|| Packed::new(first));
            let (_, room) = packed.halves(patches);
            stream.in_chunks(|chunk, buffers| first.project(chunk, &room, &[], buffers));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            stop.check()?;
            let packed = packed.get_or_insert_with(|| Packed::new(layer));
            packed.turn();
            let (seen, room) = packed.halves(patches);
            let next = self.layers.get(i + 1);
            // A task goes on with its patches into the next layer: only keys and values are for
            // all.
            stream.in_chunks(|chunk, buffers| {
                layer.finish(chunk, &seen, next.map_or(&[], |next| next.k_proj.first()), buffers);
                if let Some(next) = next {
                    next.project(chunk, &room, layer.q_proj.first(), buffers);
                }
            });
        }
        Ok(())
    }

    /// Appends the last tile's hidden states after the last norm [patches, hidden] to `out`.
    pub fn hidden_states(&self, buffers: &VisionBuffers, out: &mut Vec<f32>) {
        let (patches, hidden) = (self.config.patches(), self.config.hidden_size);
        let start = out.len();
        out.resize(start + patches * hidden, 0.0);
        for (x, out) in buffers.x.chunks_exact(hidden).zip(out[start..].chunks_exact_mut(hidden)) {
            self.post_layernorm.row(x, out);
            if let Some((rotation, Norm { weight, bias, .. })) = self.turned.as_ref() {
                rotation.turn_back(out, Cpu::detect());
                for ((x, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
                    *x = *x * weight + bias;
                }
            }
        }
    }

    /// The last tile's hidden states -> image rows [tokens per tile, text hidden], appended to
    /// `out`.
    pub fn connect(&self, buffers: &mut VisionBuffers, out: &mut Vec<f32>) {
        let (hidden, s) = (self.config.hidden_size, self.scale_factor);
        let (per_side, side) = (self.config.patches_per_side(), self.config.patches_per_side() / s);
        let VisionBuffers { x, rows, .. } = buffers;
        // Output token (y, x) is the concatenation over dy, then dx, of patch (y * s + dy, x * s +
        // dx).
        rows.set(self.projection.precision(), (side * side, s * s * hidden), Cpu::detect(), |token, row| {
            for (i, part) in row.chunks_exact_mut(s * hidden).enumerate() {
                let patch = (token / side * s + i) * per_side + token % side * s;
                let patches = x[patch * hidden..][..s * hidden].chunks_exact(hidden);
                for (x, out) in patches.zip(part.chunks_exact_mut(hidden)) {
                    self.post_layernorm.row(x, out);
                }
            }
        });
        let start = out.len();
        out.resize(start + side * side * self.projection.outputs(), 0.0);
        self.projection.multiply(rows, &mut out[start..], Then::Store);
    }

    /// Cuts a tile into patches [patches, 3 * patch * patch]: channel, then row, then column;
    /// normalised, or as they are.
    fn patchify(&self, tile: &[u8], rows: &mut Rows) {
        let (size, patch, side) = (self.config.image_size, self.config.patch_size, self.config.patches_per_side());
        let shape = (side * side, 3 * patch * patch);
        let corner = |number: usize| number / side * patch * size + number % side * patch;
        if self.patch_rest.is_some() {
            return rows.set_bytes(shape, |number, out| {
                cut(&tile[corner(number) * 3..], (size, patch), out, |_, byte| byte);
            });
        }
        rows.set(self.patch_embedding.precision(), shape, Cpu::detect(), |number, out| {
            let value = |channel: usize, byte: u8| self.normalise.channel(channel)[usize::from(byte)];
            cut(&tile[corner(number) * 3..], (size, patch), out, value);
        });
    }
}

/// One patch of a tile [size, size, 3], which begins with its corner; `value` is what a channel's
/// byte is.
fn cut<T>(tile: &[u8], (size, patch): (usize, usize), out: &mut [T], value: impl Fn(usize, u8) -> T) {
    for (channel, plane) in out.chunks_exact_mut(patch * patch).enumerate() {
        for (y, row) in plane.chunks_exact_mut(patch).enumerate() {
            let pixels = &tile[y * size * 3..][..patch * 3];
            for (out, pixel) in row.iter_mut().zip(pixels.as_chunks::<3>().0) {
                *out = value(channel, pixel[channel]);
            }
        }
    }
}

/// The memory that a tile passes through.
#[derive(Default)]
pub struct VisionBuffers {
    /// The residual stream [patches, hidden].
    x: Vec<f32>,
    /// What goes into a product of all patches.
    rows: Rows,
    /// What queries, keys and values are made of: of a chunk's patches, at the first one's place.
    normed: Vec<Rows>,
    packed: Option<Packed>,
}

/// Keys and values of the layer at work, as attention takes them, and what of the next layer's is
/// there.
enum Packed {
    Bf16(KeyValueCache, KeyValueCache),
    Int8(Int8KeysValues, Int16KeysValues),
}

/// Where keys and values of the next layer go.
enum Room<'a> {
    Bf16(CacheRoom<'a>),
    Int8(Int16Room<'a>),
}

impl Packed {
    fn new(layer: &Layer) -> Self {
        let (heads, head_dim) = layer.heads;
        let cpu = Cpu::detect();
        match layer.k_proj.precision() {
            Precision::Bf16 => {
                let empty = || KeyValueCache::new(heads, head_dim, Precision::Bf16, cpu);
                Packed::Bf16(empty(), empty())
            }
            _ => Packed::Int8(Int8KeysValues::new(heads, head_dim, cpu), Int16KeysValues::new(heads, head_dim, cpu)),
        }
    }

    /// What the layer at work looks at, and room for `patches` of the next one.
    fn halves(&mut self, patches: usize) -> (Stored<'_>, Room<'_>) {
        match self {
            Packed::Bf16(now, next) => {
                next.truncate(0);
                (now.stored(), Room::Bf16(next.append(patches)))
            }
            Packed::Int8(now, next) => (now.stored(), Room::Int8(next.room(patches))),
        }
    }

    /// The next layer comes to work: all of its keys and values are there.
    fn turn(&mut self) {
        match self {
            Packed::Bf16(now, next) => std::mem::swap(now, next),
            Packed::Int8(now, next) => now.set(next),
        }
    }
}

/// What the layers hand on to each other; see [`VisionBuffers`].
struct Stream<'a> {
    x: &'a mut [f32],
    normed: &'a mut [Rows],
    hidden: usize,
}

/// Some patches of it.
struct Chunk<'a> {
    first: usize,
    count: usize,
    /// [count, hidden]
    x: &'a mut [f32],
    normed: &'a mut Rows,
}

impl Stream<'_> {
    /// Calls `work` with all patches, a chunk at a time.
    fn in_chunks(&mut self, work: impl Fn(&mut Chunk<'_>, &mut Buffers) + Sync) {
        let hidden = self.hidden;
        let patches = self.x.len() / hidden;
        let (x, normed) = (Split::new(self.x), Split::new(self.normed));
        chunks::in_chunks(0, 0..patches, |of_chunk, buffers| {
            let (first, count) = (of_chunk.start, of_chunk.len());
            // SAFETY: no other task has these patches.
            let (x, normed) = unsafe { (x.part(first * hidden, count * hidden), &mut normed.part(first, 1)[0]) };
            buffers.rows.fine = false;
            work(&mut Chunk { first, count, x, normed }, buffers);
        });
    }
}

/// By what a tile's activations are turned where they have 8 bits.
struct Turns {
    stream: Rotation,
    /// Blocks in which what goes into `fc2` is spread.
    spread: usize,
}

impl Turns {
    fn new(config: &VisionConfig) -> Self {
        Self { stream: Rotation::centred(config.hidden_size), spread: kernels::spread_of(config.intermediate_size) }
    }
}

/// What a layer's matrices take over.
struct Folds<'a> {
    qkv: Fold<'a>,
    out: Fold<'a>,
    fc1: Fold<'a>,
    fc2: Fold<'a>,
}

impl<'a> Folds<'a> {
    fn new(norms: [&'a Norm; 2], turns: Option<&'a Turns>) -> Self {
        let stream = turns.map(|turns| &turns.stream);
        let [first, second] = norms.map(|norm| norm.fold(stream));
        let back = Fold { outputs: stream, ..Fold::default() };
        Self {
            // Heads are left as they are: turned, they gain next to nothing, and a load takes longer.
            qkv: first,
            out: back,
            fc1: second,
            fc2: Fold { spread: turns.map_or(1, |turns| turns.spread), ..back },
        }
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
    /// Blocks in which what goes into `fc2` is spread.
    spread: usize,
    /// How many, and head_dim.
    heads: (usize, usize),
}

impl Layer {
    fn load(at: &Loader<'_>, config: &VisionConfig, precision: Precision, turns: Option<&Turns>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        let norms = [Norm::load(&at.at("layer_norm1"), config)?, Norm::load(&at.at("layer_norm2"), config)?];
        let Folds { qkv, out, fc1, fc2 } = Folds::new([&norms[0], &norms[1]], turns);
        let stream = turns.map(|turns| &turns.stream);
        Ok(Self {
            layer_norm1: norms[0].rest(stream),
            q_proj: attention.packed(true, &["q_proj"], hidden, &[hidden], precision, &qkv)?,
            k_proj: attention.packed(true, &["k_proj"], hidden, &[hidden], precision, &qkv)?,
            v_proj: attention.packed(true, &["v_proj"], hidden, &[hidden], precision, &qkv)?,
            out_proj: attention.packed(true, &["out_proj"], hidden, &[hidden], precision, &out)?,
            layer_norm2: norms[1].rest(stream),
            fc1: mlp.packed(true, &["fc1"], hidden, &[inner], precision, &fc1)?,
            spread: fc2.spread,
            fc2: mlp.packed(true, &["fc2"], inner, &[hidden], precision, &fc2)?,
            heads: (config.num_attention_heads, config.head_dim()),
        })
    }

    /// Keys and values of a chunk, and what its queries will be made of.
    fn project(&self, chunk: &mut Chunk<'_>, room: &Room<'_>, next: &[u8], buffers: &mut Buffers) {
        let (rows, hidden) = (&mut *chunk.normed, self.k_proj.outputs());
        self.layer_norm1.rows(self.k_proj.precision(), chunk.x, rows);
        let (keys, values) = grow(&mut buffers.inside, 2 * chunk.count * hidden).split_at_mut(chunk.count * hidden);
        self.k_proj.multiply_and_fetch(rows, keys, Then::Store, self.v_proj.first());
        self.v_proj.multiply_and_fetch(rows, values, Then::Store, next);
        let [keys, values] = [keys, values].map(|all| Heads::beside(all, hidden, 0, self.heads));
        // SAFETY: no other task has these patches, and `chunks::in_chunks` begins none within a
        // pair.
        unsafe {
            match room {
                Room::Bf16(room) => room.put(chunk.first, keys, values),
                Room::Int8(room) => room.put(chunk.first, keys, values),
            }
        }
    }

    /// What follows when all keys and values are there.
    fn finish(&self, chunk: &mut Chunk<'_>, all: &Stored<'_>, next: &[u8], buffers: &mut Buffers) {
        let Buffers { rows, mixed, inside } = buffers;
        let cpu = Cpu::detect();
        let (heads, head_dim) = self.heads;
        let (hidden, inner) = (heads * head_dim, self.fc1.outputs());

        // All tiles are full: no mask.
        let queries = grow(inside, chunk.count * hidden);
        self.q_proj.multiply_and_fetch(chunk.normed, queries, Then::Store, all.first());
        let mixed = grow(mixed, chunk.count * hidden);
        let queries = Heads::beside(queries, hidden, 0, self.heads);
        all.attend(queries, (head_dim as f32).powf(-0.5), Attend::Everywhere, mixed, self.out_proj.first());
        rows.convert(self.out_proj.precision(), mixed, hidden, cpu);
        self.out_proj.multiply_and_fetch(rows, chunk.x, Then::Add, self.fc1.first());

        self.layer_norm2.rows(self.fc1.precision(), chunk.x, rows);
        let inside = grow(inside, chunk.count * inner);
        self.fc1.multiply_and_fetch(rows, inside, Then::Store, self.fc2.first());
        rows.gelu(self.fc2.precision(), inside, (inner, self.spread), cpu);
        self.fc2.multiply_and_fetch(rows, chunk.x, Then::Add, next);
    }
}

/// LayerNorm, or what is left of it when matrices have the rest: RMSNorm.
struct Norm {
    weight: Vec<f32>,
    /// Empty: RMSNorm.
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

    /// Of so many rows side by side.
    fn repeat(&self, times: usize) -> Self {
        Self { weight: self.weight.repeat(times), bias: self.bias.repeat(times), eps: self.eps }
    }

    /// What a matrix takes over from it, whose rows come turned by `rotation`; without one, nothing.
    fn fold<'a>(&'a self, rotation: Option<&'a Rotation>) -> Fold<'a> {
        match rotation {
            None => Fold::default(),
            Some(_) => Fold { gains: &self.weight, shift: &self.bias, inputs: rotation, ..Fold::default() },
        }
    }

    /// What is left of it for rows that come turned by `rotation`, without their mean; without one,
    /// all.
    fn rest(&self, rotation: Option<&Rotation>) -> Self {
        match rotation {
            None => self.repeat(1),
            Some(_) => Self { weight: vec![1.0; self.weight.len()], bias: Vec::new(), eps: self.eps },
        }
    }

    fn rows(&self, precision: Precision, x: &[f32], rows: &mut Rows) {
        let (Self { weight, bias, eps }, cpu) = (self, Cpu::detect());
        if bias.is_empty() {
            rows.rms_norm(precision, x, weight, *eps, cpu);
        } else {
            rows.layer_norm(precision, x, (weight, bias), *eps, cpu);
        }
    }

    fn row(&self, x: &[f32], out: &mut [f32]) {
        let (Self { weight, bias, eps }, cpu) = (self, Cpu::detect());
        if bias.is_empty() {
            kernels::rms_norm(x, weight, *eps, out, cpu);
        } else {
            kernels::layer_norm(x, (weight, bias), *eps, out, cpu);
        }
    }
}

#[cfg(test)]
mod tests;
