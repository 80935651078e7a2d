//! What a generation cost: one stopwatch per stage.

use std::time::Instant;

use crate::options::Placement;

/// Times and counts of one generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Decoding files, resizing, cutting into tiles.
    pub preprocess_ms: f64,
    /// Vision encoder and connector.
    pub vision_ms: f64,
    /// The prompt through the decoder.
    pub prefill_ms: f64,
    /// The answer's tokens through the decoder, sampler and callback included.
    pub decode_ms: f64,
    /// From the call to the first token; 0 if there was none.
    pub time_to_first_token_ms: f64,
    /// The whole call.
    pub total_ms: f64,
    /// Tiles of all new pictures, global ones included.
    pub tiles: usize,
    pub image_tokens: usize,
    /// All tokens of the prompt, image tokens included.
    pub prompt_tokens: usize,
    /// Those of them that the KV cache already held.
    pub cached_tokens: usize,
    pub generated_tokens: usize,
    /// What really computed.
    pub placement: Placement,
}

impl Metrics {
    pub(crate) fn new(placement: Placement) -> Self {
        Self {
            preprocess_ms: 0.0,
            vision_ms: 0.0,
            prefill_ms: 0.0,
            decode_ms: 0.0,
            time_to_first_token_ms: 0.0,
            total_ms: 0.0,
            tiles: 0,
            image_tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            placement,
        }
    }
}

/// Milliseconds since `start`.
pub(crate) fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
