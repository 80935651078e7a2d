//! A few tokens that go through the decoder while it is loaded: what they bring to each matrix says
//! which errors of its rounded weights matter.
//!
//! What is the same for all tokens matters most, and a few channels that are large for all of them;
//! so that it hardly matters which tokens they are. These are drawn from the vocabulary with the
//! frequencies that words have: Zipf's, since merged tokens are numbered from frequent ones on.

use super::shape::Shape;
use super::stream::angles;
use crate::config::TextConfig;
use crate::kernels::{Cpu, Hessian, KeyValueCache, PackedLinear, Precision, Rotation, Rows, Then, gather};
use crate::model::weights::matrix::Matrix;

/// Tokens that are drawn: for 8 bits more change nothing, and 4 take in twice as many directions.
fn tokens(precision: Precision) -> usize {
    if precision == Precision::Int4 { 64 } else { 16 }
}

/// Tokens on their way; without any, all that they are asked for is unknown.
#[derive(Default)]
pub(super) struct Calibration<'a> {
    tokens: usize,
    /// The residual stream [tokens, hidden].
    x: Vec<f32>,
    /// What goes into the next matrix.
    rows: Rows,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    inside: Vec<f32>,
    /// Until there are angles.
    config: Option<&'a TextConfig>,
    /// [tokens, head_dim / 2]
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl<'a> Calibration<'a> {
    /// Tokens at the decoder's beginning, whose stream `rotation` turns.
    pub(super) fn new(
        embeddings: &Matrix,
        config: &'a TextConfig,
        precision: Precision,
        rotation: Option<&Rotation>,
    ) -> Self {
        let tokens = tokens(precision);
        let mut pass = Self { tokens, x: vec![0.0; tokens * config.hidden_size], ..Self::default() };
        for (number, row) in pass.x.chunks_exact_mut(config.hidden_size).enumerate() {
            // Evenly over the logarithms, in no order.
            let part = (number * 7 % tokens) as f64 / tokens as f64;
            embeddings.row(((config.vocab_size as f64).powf(part) as usize).min(config.vocab_size - 1), row);
        }
        if let Some(rotation) = rotation {
            rotation.turn_rows(&mut pass.x, Cpu::detect());
        }
        pass.config = Some(config);
        pass
    }

    /// What comes into the matrix behind a norm.
    pub(super) fn norm(&mut self, precision: Precision, gains: &[f32], eps: f32) -> Option<Hessian> {
        self.step(precision, |Self { x, rows, .. }| rows.rms_norm(precision, x, gains, eps, Cpu::detect()))
    }

    /// What comes out of attention.
    pub(super) fn attend(&mut self, shape: &Shape, qkv_proj: &PackedLinear) -> Option<Hessian> {
        self.step(qkv_proj.precision(), |Self { tokens, rows, qkv, mixed, config, cosines, sines, .. }| {
            let cpu = Cpu::detect();
            // Once the first matrix is there: before that, a head's width is only a file's word.
            if let Some(config) = config.take() {
                angles(&config.rotary(), 0..*tokens, cosines, sines);
            }
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
