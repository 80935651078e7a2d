//! The Candle engine: the model in candle tensors or on the kernels, each pass on a thread pool.

mod pools;

use std::sync::Arc;

use candle_core::{DType, Device};

use self::pools::Pools;
use crate::backend::limits::{PREFILL_CHUNK, VISION_PATCHES, cached_numbers, check_memory, threads};
use crate::backend::seam::{Backend, Beside, Decoder, ImageRows};
use crate::backend::threads::Threads;
use crate::config::{ImageConfig, ModelConfig, TextConfig};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::fork::no_fork;
use crate::kernels::{Cpu, KeyValueCache, Precision};
use crate::largest::Largest;
use crate::model::{Arithmetic, Cache, ImageBuffers, Model, Wanted, Weights};
use crate::options::{BackendKind, DTypeKind, DeviceKind, EngineOptions, Placement};
use crate::preprocess::Tiles;
use crate::stop::{Halt, Run, Stop};

/// Tokens whose logits are made at once: a vocabulary's are many.
const SCORED_AT_ONCE: usize = 128;

/// Weights on a candle device.
pub struct CandleBackend {
    shared: Arc<Shared>,
    tiles_at_once: usize,
    placement: Placement,
}

/// What decoders need too.
struct Shared {
    model: Model,
    image_token_id: u32,
    pools: Pools,
}

impl CandleBackend {
    /// Reads the checkpoint's weights.
    pub fn load(
        files: &ModelFiles,
        model: &ModelConfig,
        images: &ImageConfig,
        options: &EngineOptions,
    ) -> Result<Self> {
        Self::load_beside(files, model, images, options, &mut || ())
    }

    /// The same; meanwhile one of the threads does something else first.
    pub(crate) fn load_beside(
        files: &ModelFiles,
        model: &ModelConfig,
        images: &ImageConfig,
        options: &EngineOptions,
        beside: &mut Beside<'_>,
    ) -> Result<Self> {
        {
            let _no_fork = no_fork();
            Cpu::detect();
        }
        let (device, device_kind) = open_device(options)?;
        let odd_head = [model.vision.head_dim(), model.text.head_dim].into_iter().find(|d| d % 2 != 0);
        let asked = match options.dtype {
            DTypeKind::Auto => automatic(device_kind, odd_head.is_some()),
            asked => asked,
        };
        let Choice { arithmetic, kind, weight_bytes } = choose(asked, device, device_kind)?;
        if let (Arithmetic::Packed(..), Some(odd)) = (&arithmetic, odd_head) {
            let kind = kind.name();
            return Err(Error::unsupported(format!(
                "dtype: {kind} needs heads of even size, the checkpoint has {odd}"
            )));
        }
        let arithmetic = keep(arithmetic, kind, options)?;
        let weights = Arc::new(Weights::open(files)?);
        let position_bytes = position_bytes(&arithmetic, &model.text);
        check_memory(weights.elements().saturating_mul(weight_bytes), position_bytes, model, options)?;

        let pools = Pools::new(threads(options));
        let pool = pools.take(&Stop::default()).map_err(Halt::into_error)?;
        let loaded = pool.install(|| rayon::join(|| Model::load(&weights, &arithmetic, model, images), beside).0)?;
        drop(pool);
        Ok(Self {
            shared: Arc::new(Shared { model: loaded, image_token_id: model.image_token_id, pools }),
            tiles_at_once: (VISION_PATCHES / model.vision.patches()).max(1),
            placement: Placement { backend: BackendKind::Candle, device: device_kind, dtype: kind },
        })
    }

    /// The vision encoder's output before the connector: [tiles, patches, hidden], f32.
    pub fn vision_hidden_states(&self, tiles: &Tiles) -> Result<Vec<f32>> {
        self.shared.model.vision_hidden_states(tiles).map_err(Halt::into_error)
    }
}

/// The fastest precision that keeps as much of f32 on real weights as others' 8 bits, by
/// `make quality` (its likeliest token 96 times of 100): int8, where the kernels have the
/// processor's instructions. int4 reads less in a decode step, keeps less, and is for who asks.
fn automatic(device: DeviceKind, odd_head: bool) -> DTypeKind {
    match device {
        DeviceKind::Cpu if !odd_head && Cpu::detect() > Cpu::Portable => DTypeKind::Int8,
        DeviceKind::Cpu => DTypeKind::F32,
        _ => DTypeKind::Bf16,
    }
}

/// How to compute, what it is called, and the bytes of a weight.
struct Choice {
    arithmetic: Arithmetic,
    kind: DTypeKind,
    weight_bytes: u64,
}

fn choose(asked: DTypeKind, device: Device, device_kind: DeviceKind) -> Result<Choice> {
    let on_cpu = device_kind == DeviceKind::Cpu;
    let tensors = |dtype: DType, kind, bytes: usize| Choice {
        arithmetic: Arithmetic::Tensors(dtype, device),
        kind,
        weight_bytes: bytes as u64,
    };
    let packed =
        |precision, weight_bytes| Choice { arithmetic: Arithmetic::Packed(precision, None), kind: asked, weight_bytes };
    Ok(match asked {
        DTypeKind::Bf16 if on_cpu => packed(Precision::Bf16, 2),
        DTypeKind::Int8 if on_cpu => packed(Precision::Int8, 1),
        // Only the decoder's layers have 4 bits: a byte a weight is never too few.
        DTypeKind::Int4 if on_cpu => packed(Precision::Int4, 1),
        DTypeKind::F32 => tensors(DType::F32, DTypeKind::F32, 4),
        DTypeKind::Bf16 => tensors(DType::BF16, DTypeKind::Bf16, 2),
        other => {
            let known = if on_cpu { "f32, bf16, int8 and int4 on the CPU" } else { "f32 and bf16 on an accelerator" };
            return Err(Error::unsupported(format!("dtype: {}; candle has {known}", other.name())));
        }
    })
}

/// Bytes of the KV cache for a position.
fn position_bytes(arithmetic: &Arithmetic, text: &TextConfig) -> u64 {
    match arithmetic {
        Arithmetic::Tensors(dtype, _) => cached_numbers(text).saturating_mul(dtype.size_in_bytes() as u64),
        Arithmetic::Packed(precision, _) => {
            let of_layer = KeyValueCache::position_bytes(text.num_key_value_heads, text.head_dim, *precision);
            of_layer.saturating_mul(text.num_hidden_layers as u64)
        }
    }
}

/// With the directory that packed weights are to be kept in, if there are any.
fn keep(arithmetic: Arithmetic, kind: DTypeKind, options: &EngineOptions) -> Result<Arithmetic> {
    match (arithmetic, &options.packed_cache_dir) {
        (Arithmetic::Packed(precision, _), dir) => Ok(Arithmetic::Packed(precision, dir.clone())),
        (tensors, None) => Ok(tensors),
        (_, Some(_)) => Err(Error::unsupported(format!(
            "packed_cache_dir: {} weights are not packed; bf16, int8 and int4 on the CPU are",
            kind.name()
        ))),
    }
}

impl Backend for CandleBackend {
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows> {
        let Shared { model, pools, .. } = &*self.shared;
        let mut rows = ImageRows { values: Vec::new(), width: model.hidden_size() };
        let mut buffers = ImageBuffers::default();
        for start in (0..tiles.count()).step_by(self.tiles_at_once) {
            let range = start..tiles.count().min(start + self.tiles_at_once);
            let values = &mut rows.values;
            pools.take(stop)?.install(|| model.image_rows(tiles, range, &mut buffers, stop, values))?;
        }
        Ok(rows)
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(CandleDecoder {
            cache: self.shared.model.cache(),
            shared: self.shared.clone(),
            embeddings: Vec::new(),
            logits: Vec::new(),
        }))
    }

    fn placement(&self) -> Placement {
        self.placement
    }

    fn threads(&self) -> &Threads {
        &self.shared.pools.threads
    }
}

impl Shared {
    /// Appends one id to a decoder's cache. What the model says is text: an image token that it
    /// chose has no picture, only its embedding.
    fn step(
        &self,
        id: u32,
        (cache, embeddings): (&mut Cache, &mut Vec<f32>),
        wanted: Wanted<'_>,
        stop: &Stop,
    ) -> Run<()> {
        self.pools.take(stop)?.install(|| {
            embeddings.clear();
            self.model.embed(&[id], embeddings)?;
            self.model.forward(embeddings, cache, wanted, &Stop::default())
        })
    }
}

struct CandleDecoder {
    shared: Arc<Shared>,
    cache: Cache,
    /// Of the tokens at work [tokens, hidden].
    embeddings: Vec<f32>,
    logits: Vec<f32>,
}

impl CandleDecoder {
    /// Appends a chunk; its image tokens take the first of `rows`, and the rest is returned.
    fn append<'r>(&mut self, ids: &[u32], rows: &'r [f32], stop: &Stop, last: bool) -> Run<&'r [f32]> {
        let Self { shared, cache, embeddings, logits } = self;
        let hidden = shared.model.hidden_size();
        let mut rest = rows;
        embeddings.clear();
        for run in ids.chunk_by(|a, b| (*a == shared.image_token_id) == (*b == shared.image_token_id)) {
            if run[0] == shared.image_token_id {
                let (now, later) = rest.split_at_checked(run.len() * hidden).ok_or_else(|| {
                    Error::internal(format!(
                        "{} image rows for a run of {} image tokens",
                        rest.len() / hidden,
                        run.len()
                    ))
                })?;
                embeddings.extend_from_slice(now);
                rest = later;
            } else {
                shared.model.embed(run, embeddings)?;
            }
        }
        let wanted = if last { Wanted::Logits(logits) } else { Wanted::Nothing };
        shared.model.forward(embeddings, cache, wanted, stop)?;
        Ok(rest)
    }
}

impl Decoder for CandleDecoder {
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]> {
        let shared = self.shared.clone();
        let mut rest = image_rows;
        let mut chunks = ids.chunks(PREFILL_CHUNK).peekable();
        while let Some(chunk) = chunks.next() {
            let pool = shared.pools.take(stop)?;
            rest = pool.install(|| self.append(chunk, rest, stop, chunks.peek().is_none()))?;
        }
        if !rest.is_empty() {
            return Err(Error::internal(format!("{} image values left over", rest.len())).into());
        }
        Ok(&self.logits)
    }

    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]> {
        let Self { shared, cache, embeddings, logits } = self;
        shared.step(id, (cache, embeddings), Wanted::Logits(logits), stop)?;
        Ok(logits)
    }

    fn step_to(&mut self, id: u32, largest: &mut Largest, stop: &Stop) -> Run<()> {
        let Self { shared, cache, embeddings, .. } = self;
        shared.step(id, (cache, embeddings), Wanted::Largest(largest), stop)
    }

    /// A chunk at a time.
    fn score(&mut self, ids: &[u32], each: &mut (dyn FnMut(&[f32]) + Send), stop: &Stop) -> Run<()> {
        let Self { shared, cache, embeddings, logits } = self;
        for chunk in ids.chunks(SCORED_AT_ONCE) {
            shared.pools.take(stop)?.install(|| {
                embeddings.clear();
                shared.model.embed(chunk, embeddings)?;
                shared.model.forward(embeddings, cache, Wanted::All(logits), stop)
            })?;
            logits.chunks_exact(logits.len() / chunk.len()).for_each(&mut *each);
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }
}

fn open_device(options: &EngineOptions) -> Result<(Device, DeviceKind)> {
    let index = options.device_index;
    match options.device {
        DeviceKind::Auto | DeviceKind::Cpu => Ok((Device::Cpu, DeviceKind::Cpu)),
        DeviceKind::Cuda if cfg!(feature = "cuda") => Ok((Device::new_cuda(index)?, DeviceKind::Cuda)),
        DeviceKind::Metal if cfg!(feature = "metal") => Ok((Device::new_metal(index)?, DeviceKind::Metal)),
        DeviceKind::TensorRt => Err(Error::unsupported("device: tensorrt is for the onnx backend")),
        other => {
            let name = other.name();
            Err(Error::unsupported(format!(
                "device: {name} asked for, but this build has no {name} (cargo feature `{name}`)"
            )))
        }
    }
}
