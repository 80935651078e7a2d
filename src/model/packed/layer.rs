//! A layer of the decoder on the kernels.

use super::calibration::Calibration;
use super::chunks;
use super::recipe::Recipe;
use super::shape::Shape;
use super::stream::Chunk;
use crate::config::TextConfig;
use crate::error::Result;
use crate::kernels::{CacheRoom, Cpu, Mix, PackedLinear, Precision, Rotation, Stored, Then, grow};
use crate::model::loader::Loader;
use crate::model::weights::matrix::Fold;

/// What a matrix takes over from the norm before it, whose rows come turned by `rotation`; without
/// one, nothing.
pub(super) fn fold_norm<'a>(gains: &'a [f32], rotation: Option<&'a Rotation>) -> Fold<'a> {
    Fold { gains: rotation.map_or(&[], |_| gains), inputs: rotation, ..Fold::default() }
}

/// The norm's own gains, where they are not folded.
pub(super) fn unfolded(gains: &[f32], rotation: Option<&Rotation>) -> Vec<f32> {
    if rotation.is_some() { vec![1.0; gains.len()] } else { gains.to_vec() }
}

pub(super) struct Layer {
    shape: Shape,
    input_layernorm: Vec<f32>,
    /// Queries, keys and values side by side.
    qkv_proj: PackedLinear,
    o_proj: PackedLinear,
    post_attention_layernorm: Vec<f32>,
    /// Gates, and the numbers they gate, side by side.
    gate_up_proj: PackedLinear,
    down_proj: PackedLinear,
}

impl Layer {
    /// Reads the weights below `at`. What `pass` brings says how they are rounded; it goes through
    /// the layer meanwhile.
    pub(super) fn load(
        at: &Loader<'_>,
        config: &TextConfig,
        recipe: &Recipe,
        rotation: Option<&Rotation>,
        pass: &mut Calibration<'_>,
    ) -> Result<Self> {
        let shape = Shape::new(config, rotation);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (shape.width(), config.num_key_value_heads * config.head_dim);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        let back = Fold { outputs: rotation, ..Fold::default() };

        let gains = at.at("input_layernorm").floats("weight", &[hidden])?;
        let input_layernorm = unfolded(&gains, rotation);
        let hessian = pass.norm(recipe.queries_keys, &input_layernorm, shape.eps);
        let qkv_proj = attention.packed(
            config.attention_bias,
            &["q_proj", "k_proj", "v_proj"],
            hidden,
            &[queries, keys, keys],
            Mix { first: recipe.queries_keys, count: queries + keys, rest: recipe.values },
            &Fold { hessian: hessian.as_ref(), ..fold_norm(&gains, rotation) },
        )?;
        let hessian = pass.attend(&shape, &qkv_proj);
        let o_proj = attention.packed(
            config.attention_bias,
            &["o_proj"],
            queries,
            &[hidden],
            recipe.o,
            &Fold { spread: shape.head_spread, hessian: hessian.as_ref(), ..back },
        )?;
        pass.add(&o_proj);

        let gains = at.at("post_attention_layernorm").floats("weight", &[hidden])?;
        let post_attention_layernorm = unfolded(&gains, rotation);
        let hessian = pass.norm(recipe.gate_up, &post_attention_layernorm, shape.eps);
        let gate_up_proj = mlp.packed(
            config.mlp_bias,
            &["gate_proj", "up_proj"],
            hidden,
            &[inner; 2],
            recipe.gate_up,
            &Fold { hessian: hessian.as_ref(), ..fold_norm(&gains, rotation) },
        )?;
        let hessian = pass.gate(&shape, &gate_up_proj);
        let down_proj = mlp.packed(
            config.mlp_bias,
            &["down_proj"],
            inner,
            &[hidden],
            recipe.down,
            &Fold { spread: shape.spread, hessian: hessian.as_ref(), ..back },
        )?;
        pass.add(&down_proj);
        Ok(Self { shape, input_layernorm, qkv_proj, o_proj, post_attention_layernorm, gate_up_proj, down_proj })
    }

    /// What its products' rows are in.
    pub(super) fn precision(&self) -> Precision {
        self.qkv_proj.precision()
    }

    /// Weights that it begins with, for who comes before it to fetch.
    pub(super) fn first(&self) -> &[u8] {
        self.qkv_proj.first()
    }

    /// Queries, keys and values of a chunk, turned; `angles` are all tokens'. Keys and values go to
    /// `room`.
    pub(super) fn project(
        &self,
        chunk: &mut Chunk<'_>,
        angles: (&[f32], &[f32]),
        room: &CacheRoom<'_>,
        buffers: &mut chunks::Buffers,
    ) {
        let rows = &mut buffers.rows;
        rows.rms_norm(self.precision(), chunk.x, &self.input_layernorm, self.shape.eps, Cpu::detect());
        self.qkv_proj.multiply(rows, chunk.qkv, Then::Store);
        let half = self.shape.head_dim / 2;
        let of_chunk = chunk.tokens.start * half..chunk.tokens.end * half;
        let angles = (&angles.0[of_chunk.clone()], &angles.1[of_chunk]);
        // SAFETY: no other task has these tokens, and `chunks::in_chunks` begins none but the first
        // chunk within a pair.
        unsafe { self.shape.put(chunk.qkv, angles, room, chunk.tokens.start) };
    }

    /// What follows when `all` keys and values are there; `before` of them are of earlier tokens.
    pub(super) fn finish(
        &self,
        chunk: &mut Chunk<'_>,
        all: &Stored<'_>,
        before: usize,
        next: &[u8],
        buffers: &mut chunks::Buffers,
    ) {
        let chunks::Buffers { rows, mixed, inside } = buffers;
        let (shape, cpu, tokens) = (&self.shape, Cpu::detect(), chunk.tokens.len());

        let mixed = grow(mixed, tokens * shape.width());
        shape.attend(chunk.qkv, all, before + chunk.tokens.start, mixed, self.o_proj.first());
        rows.convert(self.o_proj.precision(), mixed, shape.width(), cpu);
        self.o_proj.multiply_and_fetch(rows, chunk.x, Then::Add, self.gate_up_proj.first());

        rows.rms_norm(self.gate_up_proj.precision(), chunk.x, &self.post_attention_layernorm, shape.eps, cpu);
        // Gates, and the numbers they gate.
        let gate_up = grow(inside, tokens * 2 * shape.inner);
        self.gate_up_proj.multiply_and_fetch(rows, gate_up, Then::Store, self.down_proj.first());
        rows.silu_mul(self.down_proj.precision(), gate_up, (shape.inner, shape.spread), cpu);
        self.down_proj.multiply_and_fetch(rows, chunk.x, Then::Add, next);
    }
}
