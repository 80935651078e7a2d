//! The seam between the pipeline and what computes: plain data in, plain data out.

use super::threads::Threads;
use crate::error::Result;
use crate::largest::Largest;
use crate::options::Placement;
use crate::preprocess::Tiles;
use crate::stop::{Run, Stop};

/// Image features as the decoder takes them: one row for each image token.
#[derive(Clone, Debug, Default)]
pub struct ImageRows {
    /// [rows, width].
    pub values: Vec<f32>,
    pub width: usize,
}

/// Loaded weights, shared by every session.
pub trait Backend: Send + Sync {
    /// Vision encoder and connector.
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows>;
    /// A decoder with an empty KV cache.
    fn decoder(&self) -> Result<Box<dyn Decoder>>;
    fn placement(&self) -> Placement;
    /// Those that compute, for all calls together.
    fn threads(&self) -> &Threads;
}

/// One sequence and its KV cache.
pub trait Decoder: Send {
    /// Appends `ids`, whose image tokens take `image_rows` ([rows, width]) in order; the logits
    /// after the last one. What was appended before a halt stays.
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]>;
    /// Appends one id; the logits after it. After a halt the cache is as it was.
    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]>;
    /// The same; what becomes of the logits are the largest of them.
    fn step_to(&mut self, id: u32, largest: &mut Largest, stop: &Stop) -> Run<()> {
        largest.clear();
        largest.take_in(0, self.step(id, stop)?);
        Ok(())
    }
    /// Appends `ids`, all of them text; `each` is given the logits after every one, in order. What
    /// was appended before a halt stays.
    fn score(&mut self, ids: &[u32], each: &mut (dyn FnMut(&[f32]) + Send), stop: &Stop) -> Run<()> {
        ids.iter().try_for_each(|&id| {
            each(self.step(id, stop)?);
            Ok(())
        })
    }
    /// Tokens in the cache.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Rewinds to the first `len` tokens.
    fn truncate(&mut self, len: usize);
}

/// Work of the caller's that a backend may do while it loads, on a thread that has nothing else to
/// do then, once at most.
pub(crate) type Beside<'a> = dyn FnMut() + Send + 'a;
