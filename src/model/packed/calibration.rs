//! A few tokens that go through the decoder while it is loaded: what they bring to each matrix says
//! which errors of its rounded weights matter.
//!
//! What is the same for all tokens matters most, and a few channels that are large for all of them;
//! so that it hardly matters which tokens they are. These are drawn from the vocabulary with the
//! frequencies that words have: Zipf's, since merged tokens are numbered from frequent ones on.

use super::super::Matrix;
use super::layer::Shape;
use super::text::angles;
use crate::config::{Rotary, TextConfig};
use crate::kernels::{Cpu, Hessian, KeyValueCache, PackedLinear, Precision, Rotation, Rows, Then, gather};

/// Tokens that are drawn.
const TOKENS: usize = 64;

/// Tokens on their way; without any, all that they are asked for is unknown.
#[derive(Default)]
pub(super) struct Calibration {
    tokens: usize,
    /// The residual stream [tokens, hidden].
    x: Vec<f32>,
    /// What goes into the next matrix.
    rows: Rows,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inside: Vec<f32>,
    /// [tokens, head_dim / 2]
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Calibration {
    /// Tokens at the decoder's beginning, whose stream `rotation` turns.
    pub(super) fn new(embeddings: &Matrix, config: &TextConfig, rotation: Option<&Rotation>, rotary: &Rotary) -> Self {
        let mut pass = Self { tokens: TOKENS, x: vec![0.0; TOKENS * config.hidden_size], ..Self::default() };
        for (number, row) in pass.x.chunks_exact_mut(config.hidden_size).enumerate() {
            // Evenly over the logarithms, in no order.
            let part = (number * 29 % TOKENS) as f64 / TOKENS as f64;
            embeddings.row(((config.vocab_size as f64).powf(part) as usize).min(config.vocab_size - 1), row);
        }
        if let Some(rotation) = rotation {
            rotation.turn_rows(&mut pass.x, Cpu::detect());
        }
        angles(rotary, 0..TOKENS, &mut pass.cosines, &mut pass.sines);
        pass
    }

    /// What comes into the matrix behind a norm.
    pub(super) fn norm(&mut self, precision: Precision, gains: &[f32], eps: f32) -> Option<Hessian> {
        self.step(precision, |Self { x, rows, .. }| rows.rms_norm(precision, x, gains, eps, Cpu::detect()))
    }

    /// What comes out of attention.
    pub(super) fn attend(&mut self, shape: &Shape, qkv_proj: &PackedLinear) -> Option<Hessian> {
        self.step(qkv_proj.precision(), |Self { tokens, rows, qkv, mixed, cosines, sines, .. }| {
            let cpu = Cpu::detect();
            qkv.resize(*tokens * shape.qkv_width(), 0.0);
            mixed.resize(*tokens * shape.width(), 0.0);
            qkv_proj.multiply(rows, qkv, Then::Store);
            let mut cache = KeyValueCache::new(shape.kv_heads, shape.head_dim, qkv_proj.precision(), cpu);
            let room = cache.append(*tokens);
            // SAFETY: nobody else has the cache.
            unsafe { shape.put(qkv, (cosines, sines), &room, 0) };
            shape.attend(qkv, &cache.stored(), 0, mixed, &[]);
            rows.convert(qkv_proj.precision(), mixed, shape.width(), cpu);
        })
    }

    /// What the gates let through.
    pub(super) fn gate(&mut self, shape: &Shape, gate_up_proj: &PackedLinear) -> Option<Hessian> {
        self.step(gate_up_proj.precision(), |Self { tokens, rows, inside, .. }| {
            inside.resize(*tokens * 2 * shape.inner, 0.0);
            gate_up_proj.multiply(rows, inside, Then::Store);
            rows.silu_mul(gate_up_proj.precision(), inside, (shape.inner, shape.spread), Cpu::detect());
        })
    }

    /// Adds a matrix's results to the stream.
    pub(super) fn add(&mut self, matrix: &PackedLinear) {
        if self.tokens > 0 {
            gather(|| matrix.multiply(&self.rows, &mut self.x, Then::Add));
        }
    }

    /// The second moments of the rows that `make` makes for a matrix in `precision`, if there are
    /// tokens.
    fn step(&mut self, precision: Precision, make: impl FnOnce(&mut Self) + Send) -> Option<Hessian> {
        if self.tokens == 0 {
            return None;
        }
        gather(|| make(self));
        Hessian::new(&self.rows, precision, Cpu::detect())
    }
}
