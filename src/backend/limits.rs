//! How much at once: pieces of work, threads, memory.

use super::threads::Threads;
#[cfg(any(feature = "candle", feature = "onnx"))]
use crate::config::{ModelConfig, TextConfig};
#[cfg(any(feature = "candle", feature = "onnx"))]
use crate::error::{Error, Result};
use crate::options::EngineOptions;

/// Prompt tokens that run through the decoder at once: enough for full matrix products, few enough
/// for a small score matrix and a prompt answer to a stop.
pub(super) const PREFILL_CHUNK: usize = 384;

/// Patches that run through the vision encoder at once; at least one tile.
pub(super) const VISION_PATCHES: usize = 1024;

/// More threads than any machine this runs on has.
pub(super) const MAX_THREADS: usize = 1024;

/// The threads that the options ask for.
pub(super) fn threads(options: &EngineOptions) -> Threads {
    Threads::new(match options.num_threads {
        0 => std::thread::available_parallelism().map_or(1, Into::into),
        n => n,
    })
}

/// Numbers that the KV cache has for a position.
#[cfg(any(feature = "candle", feature = "onnx"))]
pub(super) fn cached_numbers(text: &TextConfig) -> u64 {
    let dimensions = [text.num_hidden_layers, text.num_key_value_heads, text.head_dim];
    dimensions.into_iter().fold(2, |numbers: u64, dimension| numbers.saturating_mul(dimension as u64))
}

/// Refuses before loading what would not fit: weights, and one session's full KV cache.
#[cfg(any(feature = "candle", feature = "onnx"))]
pub(super) fn check_memory(
    weights_bytes: u64,
    position_bytes: u64,
    model: &ModelConfig,
    options: &EngineOptions,
) -> Result<()> {
    if options.max_memory_bytes == 0 {
        return Ok(());
    }
    let context = if options.context_tokens > 0 { options.context_tokens } else { model.text.max_position_embeddings };
    let needed = weights_bytes.saturating_add(position_bytes.saturating_mul(context as u64));
    if needed > options.max_memory_bytes {
        return Err(Error::out_of_memory(format!(
            "max_memory_bytes: {} given, {needed} needed for the weights and the KV cache of {context} tokens",
            options.max_memory_bytes
        )));
    }
    Ok(())
}
