//! The decoder's two graphs, and one sequence on them: its KV cache stays in ONNX Runtime's hands
//! from step to step.

use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, OutputSelector, RunOptions};
use ort::value::{DynTensor, DynTensorValueType, Tensor, TensorElementType};

use super::graph::{ANY, Graph};
use super::tensor::{FLOATS, expect_shape, floats, read, read_last, shorten};
use crate::backend::limits::PREFILL_CHUNK;
use crate::backend::seam::Decoder;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::options::DeviceKind;
use crate::stop::{Halt, Run, Stop};

const INPUT_IDS: &str = "input_ids";
const INPUTS_EMBEDS: &str = "inputs_embeds";
const ATTENTION_MASK: &str = "attention_mask";
const POSITION_IDS: &str = "position_ids";
const CACHE_POSITION: &str = "cache_position";
/// By the exporters' two names of it.
const LOGITS_TO_KEEP: [&str; 2] = ["num_logits_to_keep", "logits_to_keep"];
const LOGITS: &str = "logits";
const INTEGER: [TensorElementType; 1] = [TensorElementType::Int64];

/// The embedding table and the decoder, shared by every sequence.
pub(super) struct DecoderGraph {
    embed: Graph,
    decoder: Graph,
    embeds: TensorElementType,
    cache: TensorElementType,
    /// The names of a layer's keys and values, as inputs and as outputs.
    layers: Vec<[(String, String); 2]>,
    wanted: Wanted,
    image_token_id: u32,
    hidden_size: usize,
    vocab_size: usize,
    /// [heads, head_dim] of a layer's cache.
    cache_shape: [i64; 2],
    cache_memory: MemoryInfo<'static>,
}

/// Which inputs a graph has beside embeddings and cache: exporters differ.
struct Wanted {
    mask: bool,
    positions: bool,
    cache_position: bool,
    /// Of how many tokens logits are wanted, and its shape: a number, or a list of one.
    logits_to_keep: Vec<(&'static str, Vec<i64>)>,
}

impl Wanted {
    fn of(decoder: &Graph) -> Result<Self> {
        let has =
            |name: &str, shape: &[i64]| Ok::<_, Error>(decoder.optional_input(name, &INTEGER, &[shape])?.is_some());
        let mut logits_to_keep = Vec::new();
        for name in LOGITS_TO_KEEP {
            if let Some(port) = decoder.optional_input(name, &INTEGER, &[&[], &[1]])? {
                logits_to_keep.push((name, vec![1; port.shape.len()]));
            }
        }
        Ok(Self {
            mask: has(ATTENTION_MASK, &[1, ANY])?,
            positions: has(POSITION_IDS, &[1, ANY])?,
            cache_position: has(CACHE_POSITION, &[ANY])?,
            logits_to_keep,
        })
    }

    /// Binds what they ask for: `total` tokens, of which the first `past` are in the cache.
    fn bind(&self, binding: &mut IoBinding, past: i64, total: i64) -> Result<()> {
        if self.mask {
            binding.bind_input(ATTENTION_MASK, &integers(vec![1; total as usize])?)?;
        }
        if self.positions {
            binding.bind_input(POSITION_IDS, &integers((past..total).collect())?)?;
        }
        if self.cache_position {
            binding.bind_input(
                CACHE_POSITION,
                &Tensor::from_array((vec![total - past], (past..total).collect::<Vec<_>>()))?,
            )?;
        }
        // Those of the last token are all that is read; 0 would mean all.
        for (name, shape) in &self.logits_to_keep {
            binding.bind_input(*name, &Tensor::from_array((shape.clone(), vec![1_i64]))?)?;
        }
        Ok(())
    }
}

impl DecoderGraph {
    pub(super) fn new(
        embed: Graph,
        decoder: Graph,
        model: &ModelConfig,
        (device, index): (DeviceKind, usize),
    ) -> Result<Self> {
        let text = &model.text;
        let (hidden, vocab) = (text.hidden_size as i64, text.vocab_size as i64);
        let cache_shape = [text.num_key_value_heads as i64, text.head_dim as i64];
        let cached = [1, cache_shape[0], ANY, cache_shape[1]];

        embed.input(INPUT_IDS, &INTEGER, &[1, ANY])?;
        embed.output(INPUTS_EMBEDS, &FLOATS, &[1, ANY, hidden])?;
        embed.expect_only(&[INPUT_IDS])?;

        let embeds = decoder.input(INPUTS_EMBEDS, &FLOATS, &[1, ANY, hidden])?.element;
        decoder.output(LOGITS, &FLOATS, &[1, ANY, vocab])?;
        let wanted = Wanted::of(&decoder)?;
        let mut layers = Vec::new();
        let mut cache = FLOATS.to_vec();
        // Layer by layer: the settings may name more of them than memory holds names for.
        for layer in 0..text.num_hidden_layers {
            let names = ["key", "value"]
                .map(|part| (format!("past_key_values.{layer}.{part}"), format!("present.{layer}.{part}")));
            for (past, present) in &names {
                // All layers are as precise as the first.
                cache = vec![decoder.input(past, &cache, &cached)?.element];
                decoder.output(present, &cache, &cached)?;
            }
            layers.push(names);
        }
        let mut known = vec![INPUTS_EMBEDS, ATTENTION_MASK, POSITION_IDS, CACHE_POSITION];
        known.extend(LOGITS_TO_KEEP);
        known.extend(layers.iter().flatten().map(|(past, _)| past.as_str()));
        decoder.expect_only(&known)?;

        let cache_memory = match device {
            DeviceKind::Cuda | DeviceKind::TensorRt => MemoryInfo::new(
                AllocationDevice::CUDA,
                i32::try_from(index).unwrap_or(i32::MAX),
                AllocatorType::Device,
                MemoryType::Default,
            )?,
            _ => main_memory()?,
        };
        Ok(Self {
            embeds,
            cache: cache[0],
            layers,
            wanted,
            image_token_id: model.image_token_id,
            hidden_size: text.hidden_size,
            vocab_size: text.vocab_size,
            cache_shape,
            cache_memory,
            embed,
            decoder,
        })
    }

    /// The table's rows of `ids`: [ids, hidden].
    fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let ids_tensor = integers(ids.iter().map(|&id| i64::from(id)).collect())?;
        let outputs = RunOptions::new()?.with_outputs(OutputSelector::no_default().with(INPUTS_EMBEDS));
        let mut session = self.embed.session();
        let outputs = session.run_with_options(ort::inputs![INPUT_IDS => ids_tensor], &outputs)?;
        read(&outputs[INPUTS_EMBEDS], ids.len() * self.hidden_size).map_err(|e| self.embed.at(INPUTS_EMBEDS, e))
    }

    /// Keys and values of no token at all.
    fn empty_cache(&self) -> Result<Vec<DynTensor>> {
        let session = self.decoder.session();
        let empty = || Ok(DynTensor::new(session.allocator(), self.cache, self.cache_of(0))?);
        (0..2 * self.layers.len()).map(|_| empty()).collect()
    }

    /// The shape of a layer's keys, or values, of so many positions.
    fn cache_of(&self, positions: usize) -> [i64; 4] {
        let [heads, head_dim] = self.cache_shape;
        [1, heads, positions as i64, head_dim]
    }
}

/// One sequence.
pub(super) struct OnnxDecoder {
    graph: Arc<DecoderGraph>,
    binding: IoBinding,
    /// Keys and values of every layer: [1, heads, positions, head_dim].
    cache: Vec<DynTensor>,
    /// Positions in `cache`; the first `len` of them count.
    cached: usize,
    len: usize,
    logits: Vec<f32>,
}

impl OnnxDecoder {
    pub(super) fn new(graph: &Arc<DecoderGraph>) -> Result<Self> {
        let binding = graph.decoder.session().create_binding()?;
        let cache = graph.empty_cache()?;
        Ok(Self { graph: Arc::clone(graph), binding, cache, cached: 0, len: 0, logits: Vec::new() })
    }

    /// Drops the positions behind `len`. The one time that the cache passes through the host.
    fn shorten_cache(&mut self) -> Result<()> {
        if self.cached == self.len {
            return Ok(());
        }
        if self.len == 0 {
            self.cache = self.graph.empty_cache()?;
        } else {
            for value in &mut self.cache {
                *value = shorten(value, self.len)?;
            }
        }
        self.cached = self.len;
        Ok(())
    }

    /// Appends embedded tokens [tokens, hidden]; with `read`, the logits after the last one. After
    /// an error the cache is as it was before.
    fn append(&mut self, rows: Vec<f32>, read: bool, stop: &Stop) -> Run<()> {
        self.shorten_cache()?;
        let Self { graph, binding, cache, logits, .. } = self;
        let tokens = rows.len() / graph.hidden_size;
        let (past, total) = (self.cached as i64, self.cached + tokens);
        let embeds = floats(graph.embeds, vec![1, tokens as i64, graph.hidden_size as i64], rows)?;
        // Held while anything is bound or freed: on an accelerator that moves memory of the
        // session's.
        let (_turn, mut session) = graph.decoder.turn(stop)?;
        binding.bind_input(INPUTS_EMBEDS, &embeds)?;
        graph.wanted.bind(binding, past, total as i64)?;
        binding.bind_output_to_device(LOGITS, &main_memory()?)?;
        let names = graph.layers.iter().flatten();
        for ((past, present), value) in names.clone().zip(cache.iter()) {
            binding.bind_input(past, value)?;
            binding.bind_output_to_device(present, &graph.cache_memory)?;
        }
        let mut outputs = session.run_binding(binding)?;
        let mut take = |name: &str| {
            outputs.remove(name).ok_or_else(|| Error::internal(format!("{name}: bound, but not among the outputs")))
        };
        if read {
            read_last(&take(LOGITS)?, graph.vocab_size, logits).map_err(|e| graph.decoder.at(LOGITS, e))?;
        }
        let mut fresh = Vec::with_capacity(cache.len());
        for (_, name) in names {
            let value = take(name)?;
            expect_shape(&value, &graph.cache_of(total)).map_err(|e| graph.decoder.at(name, e))?;
            fresh.push(value.downcast::<DynTensorValueType>()?);
        }
        drop(outputs);
        *cache = fresh;
        // The binding would keep the former cache.
        binding.clear();
        (self.cached, self.len) = (total, total);
        Ok(())
    }
}

impl Decoder for OnnxDecoder {
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]> {
        let graph = Arc::clone(&self.graph);
        let mut images = image_rows.chunks_exact(graph.hidden_size);
        let mut chunks = ids.chunks(PREFILL_CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            let mut rows = graph.embed(chunk)?;
            for (row, _) in
                rows.chunks_exact_mut(graph.hidden_size).zip(chunk).filter(|(_, id)| **id == graph.image_token_id)
            {
                row.copy_from_slice(
                    images.next().ok_or_else(|| Error::internal("fewer image rows than image tokens"))?,
                );
            }
            self.append(rows, chunks.peek().is_none(), stop)?;
        }
        if images.next().is_some() {
            return Err(Halt::from(Error::internal("more image rows than image tokens")));
        }
        Ok(&self.logits)
    }

    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]> {
        let row = self.graph.embed(&[id])?;
        self.append(row, true, stop)?;
        Ok(&self.logits)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// A tensor [1, values].
fn integers(values: Vec<i64>) -> Result<Tensor<i64>> {
    Ok(Tensor::from_array((vec![1, values.len() as i64], values))?)
}

fn main_memory() -> Result<MemoryInfo<'static>> {
    Ok(MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?)
}
