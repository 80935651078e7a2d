//! What a checkpoint *is*: the Idefics3 family (published as SmolVLM and SmolVLM2).
//!
//! A SigLIP vision transformer, a pixel-shuffle connector, and a Llama decoder; see
//! `modeling_idefics3.py` and
//! `modeling_llama.py` of transformers 5 for the reference. In candle's tensors it runs in f32 and
//! on accelerators, on the kernels in everything else; the same golden arrays judge both.

mod digest;
mod head;
mod packed;
mod tensors;
mod weights;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::config::{ImageConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::kernels::{Mix, PackedLinear, Precision, gather};
use crate::largest::Largest;
use crate::preprocess::{Normalise, Tiles};
use digest::DIGEST;
use head::Ends;
use packed::Store;
use tensors::Linear;
pub use weights::{Fold, Matrix, Weights};

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

/// What is wanted of a pass: of its last token's logits [vocab], or of all tokens' [tokens, vocab].
pub enum Wanted<'a> {
    Nothing,
    Logits(&'a mut Vec<f32>),
    Largest(&'a mut Largest),
    All(&'a mut Vec<f32>),
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
                Store::with(dir.as_deref(), weights, *precision, |store| {
                    let loader = Loader { store, ..Loader::new(weights, DType::F32, &Device::Cpu) };
                    let at = loader.at("model");
                    let vision = Box::new(packed::VisionModel::load(&at, model, *precision, normalise.clone())?);
                    let text = Box::new(packed::TextModel::load(&loader, model, *precision, *kv_cache)?);
                    // Before anything of it is kept, and after a start from what was kept.
                    weights.loaded()?;
                    Ok(Networks::Packed { vision, text })
                })?
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
    /// `check` is asked before each layer, and its error ends the work.
    pub fn image_rows<E: From<candle_core::Error> + Send>(
        &self,
        tiles: &Tiles,
        range: Range<usize>,
        ImageBuffers(buffers): &mut ImageBuffers,
        check: &mut (dyn FnMut() -> Result<(), E> + Send),
        out: &mut Vec<f32>,
    ) -> Result<(), E> {
        match &self.networks {
            Networks::Tensors { vision, .. } => {
                let hidden = vision.encode(&self.pixels(tiles, range), check)?;
                out.extend(host(&vision.connect(&hidden)?)?);
            }
            Networks::Packed { vision, .. } => {
                for tile in range {
                    gather(|| {
                        vision.encode(tiles.tile(tile), buffers, check)?;
                        vision.connect(buffers, out);
                        Ok::<(), E>(())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// The vision encoder's output before the connector: [tiles, patches, hidden].
    pub fn vision_hidden_states(&self, tiles: &Tiles) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        let mut buffers = packed::VisionBuffers::default();
        let check = &mut || Result::<(), Error>::Ok(());
        for tile in 0..tiles.count() {
            match &self.networks {
                Networks::Tensors { vision, .. } => {
                    out.extend(host(&vision.encode(&self.pixels(tiles, tile..tile + 1), check)?)?);
                }
                Networks::Packed { vision, .. } => {
                    vision.encode(tiles.tile(tile), &mut buffers, check)?;
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
    /// `check` is asked before each layer; after its error the cache is as it was before.
    pub fn forward<E: From<candle_core::Error> + Send>(
        &self,
        embeddings: &[f32],
        cache: &mut Cache,
        wanted: Wanted<'_>,
        check: &mut (dyn FnMut() -> Result<(), E> + Send),
    ) -> Result<(), E> {
        match (&self.networks, &mut cache.0) {
            (Networks::Tensors { text, .. }, AnyCache::Tensors(cache)) => {
                let rows = text.rows(embeddings)?;
                let all = matches!(wanted, Wanted::All(_));
                let logits_of_last = text.forward(&rows, cache, if all { rows.dim(0)? } else { 1 }, check)?;
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
                gather(|| text.forward(embeddings, cache, wanted, check))
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

fn host(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
}

/// Reads the tensors below one name, checked against the shapes that the configuration implies.
#[derive(Clone)]
struct Loader<'a> {
    weights: &'a Arc<Weights>,
    prefix: String,
    dtype: DType,
    device: &'a Device,
    /// Of packed weights.
    store: &'a Store,
}

impl<'a> Loader<'a> {
    /// `dtype` and `device`: of tensors.
    fn new(weights: &'a Arc<Weights>, dtype: DType, device: &'a Device) -> Self {
        Self { weights, prefix: String::new(), dtype, device, store: &Store::None }
    }

    /// The loader of the tensors below `name`.
    fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{}{name}", self.prefix), shape, self.dtype, self.device)
    }

    /// The matrices `names` [outputs, inputs] of one input, their outputs side by side; with biases
    /// [outputs], if there are any.
    fn linear_if(&self, bias: bool, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        if bias { self.linear_bias(names, inputs, outputs) } else { self.linear(names, inputs, outputs) }
    }

    /// The same with biases.
    fn linear_bias(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        let bias = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("bias", &[outputs]);
        let biases = names.iter().zip(outputs).map(bias).collect::<Result<Vec<_>>>()?;
        let Linear { weight, .. } = self.linear(names, inputs, outputs)?;
        Ok(Linear { weight, bias: Some(Tensor::cat(&biases, 0)?) })
    }

    /// The same without biases.
    fn linear(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Linear> {
        let weight = |(name, &outputs): (&&str, &usize)| self.at(name).tensor("weight", &[outputs, inputs]);
        let weights = names.iter().zip(outputs).map(weight).collect::<Result<Vec<_>>>()?;
        Ok(Linear { weight: Tensor::cat(&weights, 0)?, bias: None })
    }

    /// A small tensor's numbers, as the store has them, or for it to have: they lie all over a
    /// checkpoint.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let label = format!("{}{name} {shape:?}", self.prefix);
        if let Store::From(reader) = self.store {
            self.weights.check(&format!("{}{name}", self.prefix), shape)?;
            let bytes = reader.take(&label, shape.iter().product::<usize>() * size_of::<f32>())?;
            return Ok(bytemuck::cast_slice(&bytes).to_vec());
        }
        let numbers = host(&self.tensor(name, shape)?)?;
        if let Store::To(writer) = self.store {
            writer.put(&label, bytemuck::cast_slice(&numbers));
        }
        Ok(numbers)
    }

    /// The matrices `names` [outputs, inputs] of one input, their outputs side by side, on disk.
    fn matrix(&self, names: &[&str], inputs: usize, outputs: &[usize]) -> Result<Matrix> {
        let mut matrix = Matrix::new(self.weights.clone(), inputs);
        for (name, &outputs) in names.iter().zip(outputs) {
            matrix.add(&format!("{}{name}.weight", self.prefix), &[outputs, inputs])?;
        }
        Ok(matrix)
    }

    /// Checks a matrix that is not packed, where `SHA256SUMS` says what it is: with packed weights
    /// nobody has looked at its file.
    fn check_unpacked(&self, matrix: &Matrix, name: &str) -> Result<()> {
        if !self.weights.are_listed() {
            return Ok(());
        }
        let label = format!("{}{name}.weight, digest", self.prefix);
        match self.store {
            Store::None => {}
            Store::To(writer) => writer.put(&label, &matrix.digest()),
            Store::From(reader) => {
                if *reader.take(&label, DIGEST)? != matrix.digest() {
                    let file = self.weights.name();
                    return Err(Error::invalid_model(format!("{file}: {label}: is another than when it was packed")));
                }
            }
        }
        Ok(())
    }

    /// The tensor `weight`, whose first dimension are the outputs.
    fn matrix_of(&self, shape: &[usize]) -> Result<Matrix> {
        let mut matrix = Matrix::new(self.weights.clone(), shape[1..].iter().product());
        matrix.add(&format!("{}weight", self.prefix), shape)?;
        Ok(matrix)
    }

    /// As [`Self::linear_bias`], packed.
    fn packed_bias(
        &self,
        names: &[&str],
        inputs: usize,
        outputs: &[usize],
        mix: impl Into<Mix>,
        fold: &Fold<'_>,
    ) -> Result<PackedLinear> {
        let bias = |(name, &outputs): (&&str, &usize)| self.at(name).floats("bias", &[outputs]);
        let biases = names.iter().zip(outputs).map(bias).collect::<Result<Vec<_>>>()?;
        self.matrix(names, inputs, outputs)?.pack(biases.concat(), mix, fold, self.store)
    }

    /// As [`Self::linear_if`], packed.
    fn packed_if(
        &self,
        bias: bool,
        names: &[&str],
        inputs: usize,
        outputs: &[usize],
        mix: impl Into<Mix>,
        fold: &Fold<'_>,
    ) -> Result<PackedLinear> {
        if bias {
            self.packed_bias(names, inputs, outputs, mix, fold)
        } else {
            self.packed(names, inputs, outputs, mix, fold)
        }
    }

    /// As [`Self::linear`], packed.
    fn packed(
        &self,
        names: &[&str],
        inputs: usize,
        outputs: &[usize],
        mix: impl Into<Mix>,
        fold: &Fold<'_>,
    ) -> Result<PackedLinear> {
        self.matrix(names, inputs, outputs)?.pack(Vec::new(), mix, fold, self.store)
    }
}
