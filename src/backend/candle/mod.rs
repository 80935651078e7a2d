//! The Candle engine: the model in candle tensors, on a thread pool of the caller's size.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::ThreadPool;

use super::{
    Backend, BackendKind, DTypeKind, Decoder, DeviceKind, Halt, ImageRows, PREFILL_CHUNK, Placement, Run, Stop,
    VISION_PATCHES, check_memory,
};
use crate::config::{ImageConfig, ModelConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;
use crate::kernels::Precision;
use crate::model::{Cache, Loader, TextModel, VisionModel, Weights};
use crate::preprocess::{Normalise, Tiles};

/// Weights on a candle device.
pub struct CandleBackend {
    shared: Arc<Shared>,
    vision: VisionModel,
    normalise: Normalise,
    tiles_at_once: usize,
    placement: Placement,
}

/// What decoders need too.
struct Shared {
    text: TextModel,
    image_token_id: u32,
    hidden_size: usize,
    pool: ThreadPool,
}

impl CandleBackend {
    /// Reads the checkpoint's weights.
    pub fn load(
        files: &ModelFiles,
        model: &ModelConfig,
        images: &ImageConfig,
        options: &EngineOptions,
    ) -> Result<Self> {
        let (device, device_kind) = open_device(options)?;
        let Arithmetic { dtype, packed, kind: dtype_kind, weight_bytes, cache_bytes } =
            Arithmetic::choose(options.dtype, device_kind)?;
        let head_dims = [model.vision.head_dim(), model.text.head_dim];
        if let (Some(_), Some(odd)) = (packed, head_dims.iter().find(|d| *d % 2 != 0)) {
            let kind = dtype_kind.name();
            return Err(Error::unsupported(format!(
                "dtype: {kind} needs heads of even size, the checkpoint has {odd}"
            )));
        }
        let weights = Weights::open(files)?;
        check_memory(weights.elements().saturating_mul(weight_bytes), cache_bytes, model, options)?;

        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.num_threads)
            .thread_name(|i| format!("smolvlm-{i}"))
            .build()
            .map_err(|e| Error::new(ErrorKind::Backend, format!("num_threads: {}: {e}", options.num_threads)))?;
        let loader = Loader::new(&weights, dtype, &device, packed);
        let (vision, text) = pool.install(|| {
            Result::<_>::Ok((VisionModel::load(&loader.at("model"), model)?, TextModel::load(&loader, model)?))
        })?;
        Ok(Self {
            vision,
            shared: Arc::new(Shared {
                text,
                image_token_id: model.image_token_id,
                hidden_size: model.text.hidden_size,
                pool,
            }),
            normalise: Normalise::new(images.rescale_factor, images.mean, images.std),
            tiles_at_once: (VISION_PATCHES / model.vision.patches()).max(1),
            placement: Placement { backend: BackendKind::Candle, device: device_kind, dtype: dtype_kind },
        })
    }

    /// The vision encoder's output before the connector: [tiles, patches, hidden], f32.
    pub fn vision_hidden_states(&self, tiles: &Tiles) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for i in 0..tiles.count() {
            let hidden = self.vision.encode(&self.pixels(tiles, i..i + 1), &mut || Result::<()>::Ok(()))?;
            out.extend(host(&hidden)?);
        }
        Ok(out)
    }

    /// Normalised pixels [tiles, 3, size, size].
    fn pixels(&self, tiles: &Tiles, range: std::ops::Range<usize>) -> Vec<f32> {
        let size = 3 * tiles.size * tiles.size;
        let mut pixels = vec![0.0; range.len() * size];
        for (i, out) in range.zip(pixels.chunks_exact_mut(size)) {
            self.normalise.to_chw(tiles.tile(i), tiles.size, out);
        }
        pixels
    }
}

/// How numbers are kept and multiplied.
struct Arithmetic {
    /// Of activations, and of weights that are not packed.
    dtype: DType,
    packed: Option<Precision>,
    kind: DTypeKind,
    weight_bytes: u64,
    cache_bytes: usize,
}

impl Arithmetic {
    fn choose(asked: DTypeKind, device: DeviceKind) -> Result<Self> {
        let on_cpu = device == DeviceKind::Cpu;
        let new = |dtype: DType, packed, kind, weight_bytes, cache_bytes| {
            Ok(Self { dtype, packed, kind, weight_bytes, cache_bytes })
        };
        match asked {
            DTypeKind::F32 => new(DType::F32, None, asked, 4, 4),
            DTypeKind::Auto if on_cpu => new(DType::F32, None, DTypeKind::F32, 4, 4),
            DTypeKind::Auto => new(DType::BF16, None, DTypeKind::Bf16, 2, 2),
            DTypeKind::Bf16 if on_cpu => new(DType::F32, Some(Precision::Bf16), asked, 2, 2),
            DTypeKind::Bf16 => new(DType::BF16, None, asked, 2, 2),
            DTypeKind::Int8 if on_cpu => new(DType::F32, Some(Precision::Int8), asked, 1, 2),
            other => {
                let known = if on_cpu { "f32, bf16 and int8 on the CPU" } else { "f32 and bf16 on an accelerator" };
                Err(Error::unsupported(format!("dtype: {}; candle has {known}", other.name())))
            }
        }
    }
}

impl Backend for CandleBackend {
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows> {
        self.shared.pool.install(|| {
            let mut values = Vec::new();
            for start in (0..tiles.count()).step_by(self.tiles_at_once) {
                let end = (start + self.tiles_at_once).min(tiles.count());
                let hidden = self.vision.encode(&self.pixels(tiles, start..end), &mut || stop.check())?;
                values.extend(host(&self.vision.connect(&hidden)?)?);
            }
            Ok(ImageRows { values, width: self.shared.hidden_size })
        })
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(CandleDecoder { cache: self.shared.text.cache(), shared: self.shared.clone(), logits: Vec::new() }))
    }

    fn placement(&self) -> Placement {
        self.placement
    }
}

struct CandleDecoder {
    shared: Arc<Shared>,
    cache: Cache,
    logits: Vec<f32>,
}

impl CandleDecoder {
    /// Appends a chunk; its image tokens take the first of `rows`, and the rest is returned.
    fn append<'r>(&mut self, ids: &[u32], rows: &'r [f32], stop: &Stop, last: bool) -> Run<&'r [f32]> {
        let Self { shared, cache, logits } = self;
        let text = &shared.text;
        let mut rest = rows;
        let mut parts: Vec<Tensor> = Vec::new();
        for run in ids.chunk_by(|a, b| (*a == shared.image_token_id) == (*b == shared.image_token_id)) {
            if run[0] == shared.image_token_id {
                let (now, later) = rest.split_at_checked(run.len() * shared.hidden_size).ok_or_else(|| {
                    Error::internal(format!(
                        "{} image rows for a run of {} image tokens",
                        rest.len() / shared.hidden_size,
                        run.len()
                    ))
                })?;
                parts.push(text.image_rows(now)?);
                rest = later;
            } else {
                parts.push(text.embed(run)?);
            }
        }
        let output = text.forward(&Tensor::cat(&parts, 0)?, cache, &mut || stop.check())?;
        if last {
            *logits = output.to_vec1()?;
        }
        Ok(rest)
    }
}

impl Decoder for CandleDecoder {
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]> {
        let shared = self.shared.clone();
        shared.pool.install(|| {
            let mut rest = image_rows;
            let mut chunks = ids.chunks(PREFILL_CHUNK).peekable();
            while let Some(chunk) = chunks.next() {
                rest = self.append(chunk, rest, stop, chunks.peek().is_none())?;
            }
            if rest.is_empty() {
                Ok(())
            } else {
                Err(Halt::from(Error::internal(format!("{} image values left over", rest.len()))))
            }
        })?;
        Ok(&self.logits)
    }

    fn step(&mut self, id: u32) -> Result<&[f32]> {
        let shared = self.shared.clone();
        // What the model says is text: an image token that it chose has no picture, only its embedding.
        let output = shared.pool.install(|| {
            shared.text.forward(&shared.text.embed(&[id])?, &mut self.cache, &mut || candle_core::Result::Ok(()))
        })?;
        self.logits = output.to_vec1()?;
        Ok(&self.logits)
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }
}

fn host(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
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
