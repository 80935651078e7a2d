//! The Llama decoder in candle's tensors: embeddings to logits, with grouped-query attention and a
//! KV cache.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope;

use super::linear::Linear;
use super::ops;
use crate::config::{ModelConfig, TextConfig};
use crate::error::Result;
use crate::model::head::Ends;
use crate::model::loader::Loader;
use crate::stop::{Run, Stop};

/// Decoder, token embedding and head.
pub struct TextModel {
    config: TextConfig,
    /// [vocab, hidden].
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: Linear,
    /// Rotary frequencies [head_dim / 2], and the factor of cosines and sines.
    inv_freq: Tensor,
    rotary_scale: f32,
    device: Device,
    dtype: DType,
}

impl TextModel {
    /// Reads the weights; `loader` stands at the root.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<Self> {
        let text = &config.text;
        let at = loader.at("model.text_model");
        let shape = [text.vocab_size, text.hidden_size];
        let Ends { embedding, head } = Ends::choose(loader, config)?;
        let embed_tokens = loader.at(embedding).tensor("weight", &shape)?;
        let lm_head = if head == embedding {
            Linear { weight: embed_tokens.clone(), bias: None }
        } else {
            loader.linear(&[head], text.hidden_size, &[text.vocab_size])?
        };
        let layers =
            (0..text.num_hidden_layers).map(|i| Layer::load(&at.at("layers").at(i), text)).collect::<Result<_>>()?;
        let rotary = text.rotary();
        Ok(Self {
            embed_tokens,
            layers,
            norm: Norm::load(&at, "norm", text)?,
            lm_head,
            inv_freq: Tensor::new(rotary.inv_freq, loader.device)?,
            rotary_scale: rotary.scale,
            config: text.clone(),
            device: loader.device.clone(),
            dtype: loader.dtype,
        })
    }

    /// Embeddings [ids, hidden].
    pub fn embed(&self, ids: &[u32]) -> candle_core::Result<Tensor> {
        self.embed_tokens.index_select(&Tensor::new(ids, &self.device)?, 0)?.to_dtype(self.dtype)
    }

    /// Rows [rows, hidden] in this model's precision.
    pub fn rows(&self, rows: &[f32]) -> candle_core::Result<Tensor> {
        let hidden = self.config.hidden_size;
        Tensor::from_slice(rows, (rows.len() / hidden, hidden), &self.device)?.to_dtype(self.dtype)
    }

    /// An empty cache for one sequence.
    pub fn cache(&self) -> Cache {
        Cache { layers: vec![None; self.layers.len()], len: 0, capacity: 0 }
    }

    /// Runs `embeddings` [tokens, hidden] after what `cache` holds; the logits of the last `wanted`
    /// tokens [wanted, vocab].
    ///
    /// `stop` is asked before each layer; after a halt the cache is as it was before.
    pub fn forward(&self, embeddings: &Tensor, cache: &mut Cache, wanted: usize, stop: &Stop) -> Run<Tensor> {
        let tokens = embeddings.dim(0)?;
        cache.reserve(tokens, &self.config, self.dtype, &self.device)?;
        let turn = self.rotary(cache.len, tokens)?;
        let mask = if tokens > 1 { Some(causal_mask(cache.len, tokens, self.dtype, &self.device)?) } else { None };
        let mut x = embeddings.clone();
        let step = Step { start: cache.len, turn: &turn, mask: mask.as_ref() };
        for (layer, slot) in self.layers.iter().zip(&mut cache.layers) {
            stop.check()?;
            x = layer.forward(&x, slot, &step)?;
        }
        cache.len += tokens;
        let last = self.norm.forward(&x.narrow(0, tokens - wanted, wanted)?)?;
        Ok(self.lm_head.forward(&last)?.to_dtype(DType::F32)?)
    }

    /// Cosine and sine [tokens, head_dim / 2] of the positions from `start`.
    fn rotary(&self, start: usize, tokens: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let positions: Vec<f32> = (start..start + tokens).map(|p| p as f32).collect();
        let angles = Tensor::new(positions, &self.device)?.unsqueeze(1)?.broadcast_mul(&self.inv_freq)?;
        let scaled = |x: Tensor| if self.rotary_scale == 1.0 { Ok(x) } else { x * f64::from(self.rotary_scale) };
        Ok((scaled(angles.cos()?)?.to_dtype(self.dtype)?, scaled(angles.sin()?)?.to_dtype(self.dtype)?))
    }
}

/// Keys and values of one sequence.
pub struct Cache {
    layers: Vec<Option<KeysValues>>,
    /// Tokens that all layers hold; after an error some hold more.
    len: usize,
    capacity: usize,
}

/// Keys and values of one layer, each [kv heads, capacity, head_dim].
#[derive(Clone)]
struct KeysValues {
    keys: Tensor,
    values: Tensor,
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

    fn reserve(
        &mut self,
        tokens: usize,
        config: &TextConfig,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<()> {
        let needed = self.len + tokens;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.next_power_of_two().max(MIN_CAPACITY).min(config.max_position_embeddings.max(needed));
        let shape = (config.num_key_value_heads, capacity, config.head_dim);
        let grow = |old: Option<&Tensor>| {
            let new = Tensor::zeros(shape, dtype, device)?;
            if let Some(old) = old.filter(|_| self.len > 0) {
                new.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
            }
            candle_core::Result::Ok(new)
        };
        for slot in &mut self.layers {
            let keys = grow(slot.as_ref().map(|s| &s.keys))?;
            let values = grow(slot.as_ref().map(|s| &s.values))?;
            *slot = Some(KeysValues { keys, values });
        }
        self.capacity = capacity;
        Ok(())
    }
}

/// One tile and a short question fit without growing.
const MIN_CAPACITY: usize = 256;

/// 0 where a token may look, minus infinity ahead of it: [tokens, start + tokens].
fn causal_mask(start: usize, tokens: usize, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
    let width = start + tokens;
    let mask: Vec<f32> = (0..tokens)
        .flat_map(|i| (0..width).map(move |j| if j > start + i { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(mask, (tokens, width), device)?.to_dtype(dtype)
}

/// What a layer needs besides its input.
struct Step<'a> {
    /// Position of the first token.
    start: usize,
    turn: &'a (Tensor, Tensor),
    mask: Option<&'a Tensor>,
}

struct Layer {
    input_layernorm: Norm,
    /// Queries, keys and values side by side.
    qkv_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Norm,
    /// Gates, and the numbers they gate, side by side.
    gate_up_proj: Linear,
    down_proj: Linear,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Layer {
    fn load(at: &Loader<'_>, config: &TextConfig) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        Ok(Self {
            input_layernorm: Norm::load(at, "input_layernorm", config)?,
            qkv_proj: attention.linear_if(
                config.attention_bias,
                &["q_proj", "k_proj", "v_proj"],
                hidden,
                &[queries, keys, keys],
            )?,
            o_proj: attention.linear_if(config.attention_bias, &["o_proj"], queries, &[hidden])?,
            post_attention_layernorm: Norm::load(at, "post_attention_layernorm", config)?,
            gate_up_proj: mlp.linear_if(config.mlp_bias, &["gate_proj", "up_proj"], hidden, &[inner; 2])?,
            down_proj: mlp.linear_if(config.mlp_bias, &["down_proj"], inner, &[hidden])?,
            inner,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        })
    }

    fn forward(&self, x: &Tensor, slot: &Option<KeysValues>, step: &Step<'_>) -> candle_core::Result<Tensor> {
        let Some(cache) = slot else { candle_core::bail!("the KV cache is not reserved") };
        let qkv = self.qkv_proj.forward(&self.input_layernorm.forward(x)?)?;
        let x = ops::add(self.o_proj.forward(&self.attention(&qkv, cache, step)?)?, x)?;
        let both = self.gate_up_proj.forward(&self.post_attention_layernorm.forward(&x)?)?;
        // The first becomes the result: its memory must not be the second's.
        let part = |i| both.narrow(1, i * self.inner, self.inner)?.force_contiguous();
        let gated = ops::silu_mul(part(0)?, &part(1)?)?;
        ops::add(self.down_proj.forward(&gated)?, &x)
    }

    /// [tokens, (heads + 2 * kv_heads) * head_dim] -> [tokens, heads * head_dim]
    fn attention(&self, qkv: &Tensor, cache: &KeysValues, step: &Step<'_>) -> candle_core::Result<Tensor> {
        let tokens = qkv.dim(0)?;
        let (cos, sin) = step.turn;
        // [tokens, heads * head_dim] -> [1, heads, tokens, head_dim]
        let split = |first: usize, heads: usize| {
            let rows = qkv.narrow(1, first * self.head_dim, heads * self.head_dim)?;
            rows.reshape((1, tokens, heads, self.head_dim))?.transpose(1, 2)?.contiguous()
        };
        let queries = rope(&split(0, self.heads)?, cos, sin)?;
        let keys = rope(&split(self.heads, self.kv_heads)?, cos, sin)?;
        let values = split(self.heads + self.kv_heads, self.kv_heads)?;
        cache.keys.slice_set(&keys.squeeze(0)?, 1, step.start)?;
        cache.values.slice_set(&values.squeeze(0)?, 1, step.start)?;

        let context = step.start + tokens;
        let keys = cache.keys.narrow(1, 0, context)?;
        let values = cache.values.narrow(1, 0, context)?;
        // The query heads that share a key head are further rows of one product: no key is copied.
        let group = self.heads / self.kv_heads;
        let queries = queries.reshape((self.kv_heads, group * tokens, self.head_dim))?;
        let scores = queries.matmul(&keys.transpose(1, 2)?)?;
        // A row's token is its number modulo `tokens`, so the mask's rows fit again and again.
        let mixed = ops::softmax(scores, self.scale(), step.mask)?.matmul(&values)?;
        mixed.reshape((self.heads, tokens, self.head_dim))?.transpose(0, 1)?.flatten_from(D::Minus2)
    }

    fn scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.5)
    }
}

struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    fn load(at: &Loader<'_>, name: &str, config: &TextConfig) -> Result<Self> {
        let weight = at.at(name).tensor("weight", &[config.hidden_size])?;
        Ok(Self { weight, eps: config.rms_norm_eps as f32 })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        rms_norm(&x.contiguous()?, &self.weight, self.eps)
    }
}
