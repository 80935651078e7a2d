//! Tokens on their way through the decoder's layers.

use std::ops::Range;

use super::chunks;
use crate::config::Rotary;
use crate::kernels::Split;

/// What the layers hand on to each other.
pub(super) struct Stream<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) qkv: &'a mut [f32],
    /// Of earlier passes, and of this one.
    pub(super) before: usize,
    pub(super) tokens: usize,
    /// Whether few tokens have 16 bits in products.
    pub(super) fine: bool,
}

/// Some tokens of it.
pub(super) struct Chunk<'a> {
    pub(super) tokens: Range<usize>,
    pub(super) x: &'a mut [f32],
    pub(super) qkv: &'a mut [f32],
}

impl Stream<'_> {
    /// Calls `work` with these tokens, a chunk at a time.
    pub(super) fn in_chunks(
        &mut self,
        tokens: Range<usize>,
        work: impl Fn(&mut Chunk<'_>, &mut chunks::Buffers) + Sync,
    ) {
        let (width, qkv_width) = (self.x.len() / self.tokens, self.qkv.len() / self.tokens);
        let (x, qkv) = (Split::new(self.x), Split::new(self.qkv));
        chunks::in_chunks(self.before, tokens, |tokens, buffers| {
            // SAFETY: no other task has these tokens.
            let (x, qkv) = unsafe {
                (
                    x.part(tokens.start * width, tokens.len() * width),
                    qkv.part(tokens.start * qkv_width, tokens.len() * qkv_width),
                )
            };
            buffers.rows.fine = self.fine;
            work(&mut Chunk { tokens, x, qkv }, buffers);
        });
    }
}

/// Cosines and sines of the angles of these positions, [positions, head_dim / 2].
pub(super) fn angles(rotary: &Rotary, positions: Range<usize>, cosines: &mut Vec<f32>, sines: &mut Vec<f32>) {
    cosines.clear();
    sines.clear();
    for angle in positions.flat_map(|p| rotary.inv_freq.iter().map(move |f| p as f32 * f)) {
        let (sin, cos) = angle.sin_cos();
        cosines.push(cos * rotary.scale);
        sines.push(sin * rotary.scale);
    }
}
