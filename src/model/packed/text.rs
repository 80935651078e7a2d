//! The Llama decoder on the kernels.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::calibration::Calibration;
use super::layer::{Layer, fold_norm, unfolded};
use super::recipe::Recipe;
use super::stream::{Stream, angles};
use crate::config::{ModelConfig, Rotary, TextConfig};
use crate::error::Result;
use crate::kernels::{CacheRoom, Cpu, KeyValueCache, PackedLinear, Precision, Rotation, Rows, Then, grow};
use crate::largest::Largest;
use crate::model::head::Ends;
use crate::model::loader::Loader;
use crate::model::store::Store;
use crate::model::wanted::Wanted;
use crate::model::weights::matrix::{Fold, Matrix};
use crate::stop::{Run, Stop};

/// Decoder, token embedding and head.
pub struct TextModel {
    config: TextConfig,
    /// [vocab, hidden], on disk: a token needs one row.
    embed_tokens: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    lm_head: PackedLinear,
    /// By which the residual stream is turned where activations have 8 bits.
    rotation: Option<Rotation>,
    rotary: Rotary,
    /// Of keys and values.
    kv_cache: Precision,
}

impl TextModel {
    /// Reads the weights, the layers' in `precision`; `loader` stands at the root. Caches will be in
    /// `kv_cache`, which changes no weight.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, precision: Precision, kv_cache: Precision) -> Result<Self> {
        let text = &config.text;
        let at = loader.at("model.text_model");
        let Ends { embedding, head } = Ends::choose(loader, config)?;
        let embed_tokens = loader.matrix(&[embedding], text.hidden_size, &[text.vocab_size])?;
        loader.check_unpacked(&embed_tokens, embedding)?;
        let precision_of_head = Recipe::of_head(precision);
        // A few channels of a trained model's stream are tens of times larger than the others. Of
        // 16 bits each has its own exponent.
        let rotation = (precision != Precision::Bf16).then(|| Rotation::new(text.hidden_size));
        let mut pass = if precision == Precision::Bf16 || matches!(loader.store, Store::From(_)) {
            Calibration::default()
        } else {
            Calibration::new(&embed_tokens, text, precision, rotation.as_ref())
        };
        let layers = (0..text.num_hidden_layers)
            .map(|i| {
                Layer::load(&at.at("layers").at(i), text, &Recipe::of_layer(precision), rotation.as_ref(), &mut pass)
            })
            .collect::<Result<_>>()?;
        let gains = at.at("norm").floats("weight", &[text.hidden_size])?;
        let norm = unfolded(&gains, rotation.as_ref());
        let hessian = pass.norm(precision_of_head, &norm, text.rms_norm_eps as f32);
        let fold = Fold { hessian: hessian.as_ref(), ..fold_norm(&gains, rotation.as_ref()) };
        let lm_head = if head == embedding {
            embed_tokens.pack(Vec::new(), precision_of_head, &fold, loader.store)?
        } else {
            loader.packed(false, &[head], text.hidden_size, &[text.vocab_size], precision_of_head, &fold)?
        };
        let rotary = text.rotary();
        Ok(Self { embed_tokens, layers, norm, lm_head, rotation, rotary, kv_cache, config: text.clone() })
    }

    /// Appends the embeddings of `ids` to `out`.
    pub fn embed(&self, ids: &[u32], out: &mut Vec<f32>) -> candle_core::Result<()> {
        let hidden = self.config.hidden_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            candle_core::bail!("token {id} of a vocabulary of {}", self.config.vocab_size);
        }
        let start = out.len();
        out.resize(start + ids.len() * hidden, 0.0);
        for (id, row) in ids.iter().zip(out[start..].chunks_exact_mut(hidden)) {
            self.embed_tokens.row(*id as usize, row);
        }
        Ok(())
    }

    /// An empty cache for one sequence.
    pub fn cache(&self) -> Cache {
        let (heads, head_dim) = (self.config.num_key_value_heads, self.config.head_dim);
        let layer = |_: &Layer| KeyValueCache::new(heads, head_dim, self.kv_cache, Cpu::detect());
        Cache { layers: self.layers.iter().map(layer).collect(), len: 0, buffers: Buffers::default() }
    }

    /// Runs `embeddings` [tokens, hidden], at least one, after what `cache` holds.
    ///
    /// `stop` is asked before each layer; after a halt the cache is as it was before.
    pub fn forward(&self, embeddings: &[f32], cache: &mut Cache, wanted: Wanted<'_>, stop: &Stop) -> Run<()> {
        let hidden = self.config.hidden_size;
        let tokens = embeddings.len() / hidden;
        let Cache { layers, len, buffers } = cache;
        angles(&self.rotary, *len..*len + tokens, &mut buffers.cos, &mut buffers.sin);
        let Buffers { x, qkv, cos, sin, .. } = buffers;
        let x = grow(x, tokens * hidden);
        x.copy_from_slice(embeddings);
        if let Some(rotation) = &self.rotation {
            rotation.turn_rows(x, Cpu::detect());
        }
        let angles = (&cos[..], &sin[..]);
        let qkv_width = (self.config.num_attention_heads + 2 * self.config.num_key_value_heads) * self.config.head_dim;
        let before = *len;
        let fine = self.layers.first().is_some_and(|layer| Cpu::detect().waits_for_weights(layer.precision()));
        let mut stream = Stream { x, qkv: grow(qkv, tokens * qkv_width), before, tokens, fine };
        if let Some((first, cache)) = self.layers.first().zip(layers.first_mut()) {
            let room = room(cache, before, tokens);
            stream.in_chunks(0..tokens, |chunk, buffers| first.project(chunk, angles, &room, buffers));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            stop.check()?;
            let (cache, later) = layers[i..].split_at_mut(1);
            let cache = &cache[0];
            let next = self.layers.get(i + 1).zip(later.first_mut());
            // Of the last layer nothing is wanted but what gives the logits.
            let some = match (&next, &wanted) {
                (Some(_), _) => 0..tokens,
                (None, Wanted::Nothing) => break,
                (None, Wanted::All(_)) => 0..tokens,
                (None, _) => tokens - 1..tokens,
            };
            let seen = cache.stored();
            let next = next.map(|(layer, cache)| (layer, room(cache, before, tokens)));
            // A task goes on with its tokens into the next layer: only keys and values are for all.
            stream.in_chunks(some, |chunk, buffers| {
                let first = next.as_ref().map_or(&[][..], |(next, _)| next.first());
                layer.finish(chunk, &seen, before, first, buffers);
                if let Some((next, room)) = &next {
                    next.project(chunk, angles, room, buffers);
                }
            });
        }
        *len += tokens;
        let of = if matches!(wanted, Wanted::All(_)) { 0..tokens } else { tokens - 1..tokens };
        self.head(of, buffers, wanted);
        Ok(())
    }

    /// What is wanted of some tokens, which have been through all layers.
    fn head(&self, tokens: Range<usize>, buffers: &mut Buffers, wanted: Wanted<'_>) {
        let Buffers { x, rows, logits, .. } = buffers;
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        if !matches!(wanted, Wanted::Nothing) {
            let eps = self.config.rms_norm_eps as f32;
            let x = &x[tokens.start * hidden..tokens.end * hidden];
            // A token is chosen by small differences among many.
            rows.fine = true;
            rows.rms_norm(self.lm_head.precision(), x, &self.norm, eps, Cpu::detect());
        }
        match wanted {
            Wanted::Nothing => {}
            Wanted::Logits(logits) | Wanted::All(logits) => {
                logits.resize(tokens.len() * vocab, 0.0);
                self.lm_head.multiply(rows, logits, Then::Store);
            }
            Wanted::Largest(largest) => {
                largest.clear();
                let (count, all) = (largest.count(), Mutex::new(largest));
                self.lm_head.multiply_row(rows, grow(logits, vocab), |first, logits| {
                    let mut some = Largest::new(count);
                    some.take_in(first as u32, logits);
                    all.lock().unwrap_or_else(PoisonError::into_inner).join(&some);
                });
            }
        }
    }
}

/// Keys and values of one sequence, and the memory that its tokens pass through.
pub struct Cache {
    layers: Vec<KeyValueCache>,
    /// Tokens that all layers hold; after an error some hold more.
    len: usize,
    buffers: Buffers,
}

impl Cache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Each may be longer than it is used.
#[derive(Default)]
struct Buffers {
    /// The residual stream [tokens, hidden].
    x: Vec<f32>,
    /// The last token, as `lm_head` takes it, and what that makes of it.
    rows: Rows,
    logits: Vec<f32>,
    /// Queries, keys and values [tokens, (heads + 2 * kv_heads) * head_dim].
    qkv: Vec<f32>,
    /// Cosines and sines [tokens, head_dim / 2].
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Room in a layer's cache for `tokens` more behind the first `before`.
fn room(cache: &mut KeyValueCache, before: usize, tokens: usize) -> CacheRoom<'_> {
    cache.truncate(before);
    cache.append(tokens)
}
