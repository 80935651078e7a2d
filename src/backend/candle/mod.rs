//! The Candle engine: the model in candle tensors or on the kernels, each pass on a thread pool.

mod choice;
mod pools;

use std::sync::Arc;

use self::choice::Choice;
use self::pools::Pools;
use super::{
    Backend, BackendKind, Beside, Decoder, Halt, ImageRows, PREFILL_CHUNK, Placement, Run, Stop, Threads,
    VISION_PATCHES, check_memory,
};
use crate::config::{ImageConfig, ModelConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::fork::no_fork;
use crate::kernels::Cpu;
use crate::largest::Largest;
use crate::model::{Cache, ImageBuffers, Model, Wanted, Weights};
use crate::preprocess::Tiles;

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
        let choice = Choice::new(model, options)?;
        let weights = Arc::new(Weights::open(files)?);
        let weight_bytes = weights.elements().saturating_mul(choice.weight_bytes);
        check_memory(weight_bytes, choice.position_bytes(&model.text), model, options)?;
        let Choice { arithmetic, device, dtype, kv_cache, .. } = choice;

        let pools = Pools::new(super::threads(options));
        let pool = pools.take(&Stop::default()).map_err(Halt::into_error)?;
        let loaded = pool.install(|| rayon::join(|| Model::load(&weights, &arithmetic, model, images), beside).0)?;
        drop(pool);
        Ok(Self {
            shared: Arc::new(Shared { model: loaded, image_token_id: model.image_token_id, pools }),
            tiles_at_once: (VISION_PATCHES / model.vision.patches()).max(1),
            placement: Placement { backend: BackendKind::Candle, device, dtype, kv_cache },
        })
    }

    /// The vision encoder's output before the connector: [tiles, patches, hidden], f32.
    pub fn vision_hidden_states(&self, tiles: &Tiles) -> Result<Vec<f32>> {
        self.shared.model.vision_hidden_states(tiles)
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
            pools.take(stop)?.install(|| model.image_rows(tiles, range, &mut buffers, &mut || stop.check(), values))?;
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
            self.model.forward(embeddings, cache, wanted, &mut || Ok(()))
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
        shared.model.forward(embeddings, cache, wanted, &mut || stop.check())?;
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
                shared.model.forward(embeddings, cache, Wanted::All(logits), &mut || stop.check())
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
