//! What a checkpoint *is*: the Idefics3 family (published as SmolVLM and SmolVLM2).
//!
//! A SigLIP vision transformer, a pixel-shuffle connector, and a Llama decoder; see
//! `modeling_idefics3.py` and
//! `modeling_llama.py` of transformers 5 for the reference. In candle's tensors it runs in f32 and
//! on accelerators, on the kernels in everything else; the same golden arrays judge both.

mod digest;
mod head;
mod loader;
mod packed;
mod store;
mod tensors;
mod wanted;
mod weights;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};

use self::loader::Loader;
use self::store::Store;
use self::tensors::host;
pub use self::wanted::Wanted;
pub use self::weights::Weights;
use crate::config::{ImageConfig, ModelConfig};
use crate::error::Result;
use crate::kernels::{Precision, gather};
use crate::preprocess::{Normalise, Tiles};
use crate::stop::{Halt, Run, Stop};

/// How a model's numbers are kept and multiplied.
#[derive(Clone, Debug)]
pub enum Arithmetic {
    /// Candle's products, everything in one type.
    Tensors(DType, Device),
    /// The kernels': on the CPU, weights packed in `precision`, keys and values in `kv_cache` (bf16,
    /// else 8 bits), f32 between the products. Packed weights are kept in the directory, if there
    /// is one.
    Packed { precision: Precision, kv_cache: Precision, dir: Option<PathBuf> },
}

/// A loaded checkpoint.
pub struct Model {
    networks: Networks,
    normalise: Normalise,
    hidden_size: usize,
}

enum Networks {
    Tensors { vision: Box<tensors::VisionModel>, text: Box<tensors::TextModel> },
    Packed { vision: Box<packed::VisionModel>, text: Box<packed::TextModel> },
}

/// Keys and values of one sequence.
pub struct Cache(AnyCache);

/// What is made on the way from tiles to rows, kept for the next tile.
#[derive(Default)]
pub struct ImageBuffers(packed::VisionBuffers);

enum AnyCache {
    Tensors(tensors::Cache),
    Packed(Box<packed::Cache>),
}

impl Model {
    /// Reads the weights, on the caller's rayon pool.
    pub fn load(
        weights: &Arc<Weights>,
        arithmetic: &Arithmetic,
        model: &ModelConfig,
        images: &ImageConfig,
    ) -> Result<Self> {
        let normalise = Normalise::new(images.rescale_factor, images.mean, images.std);
        let networks = match arithmetic {
            Arithmetic::Tensors(dtype, device) => {
                let loader = Loader::new(weights, *dtype, device);
                let vision = Box::new(tensors::VisionModel::load(&loader.at("model"), model)?);
                let text = Box::new(tensors::TextModel::load(&loader, model)?);
                weights.loaded()?;
                Networks::Tensors { vision, text }
            }
            Arithmetic::Packed { precision, kv_cache, dir } => {
                let digest = |memory: &Path| weights.digest(memory);
                Store::with(
                    dir.as_deref(),
                    digest,
                    || weights.prove(),
                    *precision,
                    |store| {
                        let loader = Loader::new(weights, DType::F32, &Device::Cpu).with(store);
                        let at = loader.at("model");
                        let vision = Box::new(packed::VisionModel::load(&at, model, *precision, normalise.clone())?);
                        let text = Box::new(packed::TextModel::load(&loader, model, *precision, *kv_cache)?);
                        // Before anything of it is kept, and after a start from what was kept.
                        weights.loaded()?;
                        Ok(Networks::Packed { vision, text })
                    },
                )?
            }
        };
        Ok(Self { networks, normalise, hidden_size: model.text.hidden_size })
    }

    /// Of the text model: the width of image rows and embeddings.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Vision encoder and connector: appends the image rows of some tiles to `out`, [tiles * tokens
    /// per tile, text hidden].
    ///
    /// `stop` is asked before each layer.
    pub fn image_rows(
        &self,
        tiles: &Tiles,
        range: Range<usize>,
        ImageBuffers(buffers): &mut ImageBuffers,
        stop: &Stop,
        out: &mut Vec<f32>,
    ) -> Run<()> {
        match &self.networks {
            Networks::Tensors { vision, .. } => {
                let hidden = vision.encode(&self.pixels(tiles, range), stop)?;
                out.extend(host(&vision.connect(&hidden)?)?);
            }
            Networks::Packed { vision, .. } => {
                for tile in range {
                    gather(|| {
                        vision.encode(tiles.tile(tile), buffers, stop)?;
                        vision.connect(buffers, out);
                        Ok::<(), Halt>(())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The vision encoder's output before the connector: [tiles, patches, hidden].
    pub fn vision_hidden_states(&self, tiles: &Tiles) -> Run<Vec<f32>> {
        let mut out = Vec::new();
        let mut buffers = packed::VisionBuffers::default();
        let stop = &Stop::default();
        for tile in 0..tiles.count() {
            match &self.networks {
                Networks::Tensors { vision, .. } => {
                    out.extend(host(&vision.encode(&self.pixels(tiles, tile..tile + 1), stop)?)?);
                }
                Networks::Packed { vision, .. } => {
                    vision.encode(tiles.tile(tile), &mut buffers, stop)?;
                    vision.hidden_states(&buffers, &mut out);
                }
            }
        }
        Ok(out)
    }

    /// Normalised pixels [tiles, 3, size, size].
    fn pixels(&self, tiles: &Tiles, range: Range<usize>) -> Vec<f32> {
        let size = 3 * tiles.size * tiles.size;
        let mut pixels = vec![0.0; range.len() * size];
        for (i, out) in range.zip(pixels.chunks_exact_mut(size)) {
            self.normalise.to_chw(tiles.tile(i), tiles.size, out);
        }
        pixels
    }

    /// Appends the embeddings of `ids` [ids, hidden] to `out`.
    pub fn embed(&self, ids: &[u32], out: &mut Vec<f32>) -> candle_core::Result<()> {
        match &self.networks {
            Networks::Tensors { text, .. } => {
                out.extend(host(&text.embed(ids)?)?);
                Ok(())
            }
            Networks::Packed { text, .. } => text.embed(ids, out),
        }
    }

    /// An empty cache for one sequence.
    pub fn cache(&self) -> Cache {
        Cache(match &self.networks {
            Networks::Tensors { text, .. } => AnyCache::Tensors(text.cache()),
            Networks::Packed { text, .. } => AnyCache::Packed(Box::new(text.cache())),
        })
    }

    /// Runs `embeddings` [tokens, hidden] after what `cache`, one of this model's, holds.
    ///
    /// `stop` is asked before each layer; after a halt the cache is as it was before.
    pub fn forward(&self, embeddings: &[f32], cache: &mut Cache, wanted: Wanted<'_>, stop: &Stop) -> Run<()> {
        match (&self.networks, &mut cache.0) {
            (Networks::Tensors { text, .. }, AnyCache::Tensors(cache)) => {
                let rows = text.rows(embeddings)?;
                let all = matches!(wanted, Wanted::All(_));
                let logits_of_last = text.forward(&rows, cache, if all { rows.dim(0)? } else { 1 }, stop)?;
                match wanted {
                    Wanted::Nothing => {}
                    Wanted::Logits(logits) | Wanted::All(logits) => *logits = host(&logits_of_last)?,
                    Wanted::Largest(largest) => {
                        largest.clear();
                        largest.take_in(0, &host(&logits_of_last)?);
                    }
                }
                Ok(())
            }
            (Networks::Packed { text, .. }, AnyCache::Packed(cache)) => {
                gather(|| text.forward(embeddings, cache, wanted, stop))
            }
            _ => Err(candle_core::Error::Msg("the cache is of another model".into()).into()),
        }
    }
}

impl Cache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        match &self.0 {
            AnyCache::Tensors(cache) => cache.len(),
            AnyCache::Packed(cache) => cache.len(),
        }
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            AnyCache::Tensors(cache) => cache.truncate(len),
            AnyCache::Packed(cache) => cache.truncate(len),
        }
    }
}
