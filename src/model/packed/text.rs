//! The Llama decoder on the kernels.

use super::super::{Loader, Matrix};
use crate::config::{ModelConfig, TextConfig};
use crate::error::Result;
use crate::kernels::{self, Attend, Cpu, Heads, KeyValueCache, PackedLinear, Precision, Rows, Then, grow};

/// Decoder, token embedding and head.
pub struct TextModel {
    config: TextConfig,
    /// [vocab, hidden], on disk: a token needs one row.
    embed_tokens: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    lm_head: PackedLinear,
    /// Rotary frequencies [head_dim / 2].
    inv_freq: Vec<f32>,
}

impl TextModel {
    /// Reads the weights, the layers' in `precision`; `loader` stands at the root.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, precision: Precision) -> Result<Self> {
        let text = &config.text;
        let at = loader.at("model.text_model");
        let embed_tokens = at.matrix(&["embed_tokens"], text.hidden_size, &[text.vocab_size])?;
        // A token is chosen by small differences among many: four bits are too few for the head.
        let precision_of_head = if precision == Precision::Int4 { Precision::Int8 } else { precision };
        let lm_head = if config.tie_word_embeddings {
            embed_tokens.pack(Vec::new(), precision_of_head)
        } else {
            loader.packed(&["lm_head"], text.hidden_size, &[text.vocab_size], precision_of_head)?
        };
        let layers = (0..text.num_hidden_layers)
            .map(|i| Layer::load(&at.at("layers").at(i), text, precision))
            .collect::<Result<_>>()?;
        Ok(Self {
            embed_tokens,
            layers,
            norm: at.at("norm").floats("weight", &[text.hidden_size])?,
            lm_head,
            inv_freq: text.inv_freq(),
            config: text.clone(),
        })
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
        let layer = |_| KeyValueCache::new(heads, head_dim, Cpu::detect());
        Cache { layers: (0..self.layers.len()).map(layer).collect(), len: 0, buffers: Buffers::default() }
    }

    /// Runs `embeddings` [tokens, hidden] after what `cache` holds. The logits of the last token [vocab] go to `logits`, if there are
    /// to be any.
    ///
    /// `check` is asked before each layer; after its error the cache is as it was before.
    pub fn forward<E>(
        &self,
        embeddings: &[f32],
        cache: &mut Cache,
        logits: Option<&mut Vec<f32>>,
        check: &mut (dyn FnMut() -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let hidden = self.config.hidden_size;
        let tokens = embeddings.len() / hidden;
        let Cache { layers, len, buffers } = cache;
        buffers.turn(*len, tokens, &self.inv_freq);
        grow(&mut buffers.x, tokens * hidden).copy_from_slice(embeddings);
        for (layer, cache) in self.layers.iter().zip(layers) {
            check()?;
            cache.truncate(*len);
            layer.forward(tokens, buffers, cache);
        }
        *len += tokens;
        if let Some(logits) = logits {
            let Buffers { x, rows, .. } = buffers;
            let last = &x[(tokens - 1) * hidden..][..hidden];
            rows.rms_norm(self.lm_head.precision(), last, &self.norm, self.config.rms_norm_eps as f32, Cpu::detect());
            logits.resize(self.config.vocab_size, 0.0);
            self.lm_head.multiply(rows, logits, Then::Store);
        }
        Ok(())
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
    /// What goes into a product.
    rows: Rows,
    /// Queries, keys and values [tokens, (heads + 2 * kv_heads) * head_dim].
    qkv: Vec<f32>,
    /// [tokens, heads * head_dim]
    mixed: Vec<f32>,
    /// Gates, and the numbers they gate [tokens, 2 * inner].
    gate_up: Vec<f32>,
    /// Cosines and sines [tokens, head_dim / 2].
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Buffers {
    /// Angles of `tokens` positions from `start` on.
    fn turn(&mut self, start: usize, tokens: usize, inv_freq: &[f32]) {
        self.cos.clear();
        self.sin.clear();
        for angle in (start..start + tokens).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f)) {
            let (sin, cos) = angle.sin_cos();
            self.cos.push(cos);
            self.sin.push(sin);
        }
    }
}

struct Layer {
    input_layernorm: Vec<f32>,
    /// Queries, keys and values side by side.
    qkv_proj: PackedLinear,
    o_proj: PackedLinear,
    post_attention_layernorm: Vec<f32>,
    /// Gates, and the numbers they gate, side by side.
    gate_up_proj: PackedLinear,
    down_proj: PackedLinear,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
}

impl Layer {
    fn load(at: &Loader<'_>, config: &TextConfig, precision: Precision) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        Ok(Self {
            input_layernorm: at.at("input_layernorm").floats("weight", &[hidden])?,
            qkv_proj: attention.packed(&["q_proj", "k_proj", "v_proj"], hidden, &[queries, keys, keys], precision)?,
            o_proj: attention.packed(&["o_proj"], queries, &[hidden], precision)?,
            post_attention_layernorm: at.at("post_attention_layernorm").floats("weight", &[hidden])?,
            gate_up_proj: mlp.packed(&["gate_proj", "up_proj"], hidden, &[inner; 2], precision)?,
            down_proj: mlp.packed(&["down_proj"], inner, &[hidden], precision)?,
            inner,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps as f32,
        })
    }

    fn forward(&self, tokens: usize, buffers: &mut Buffers, cache: &mut KeyValueCache) {
        let Buffers { x, rows, qkv, mixed, gate_up, cos, sin } = buffers;
        let cpu = Cpu::detect();
        let precision = self.qkv_proj.precision();
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let stride = queries + 2 * keys;
        let x = &mut x[..tokens * self.o_proj.outputs()];
        let qkv = grow(qkv, tokens * stride);
        let mixed = grow(mixed, tokens * queries);
        let gate_up = grow(gate_up, tokens * 2 * self.inner);

        rows.rms_norm(precision, x, &self.input_layernorm, self.eps, cpu);
        self.qkv_proj.multiply(rows, qkv, Then::Store);
        kernels::rotate(qkv, stride, self.heads + self.kv_heads, self.head_dim, (cos, sin));
        let of_cache = |first| Heads::beside(qkv, stride, first, (self.kv_heads, self.head_dim));
        cache.append(of_cache(queries), of_cache(queries + keys));
        let scale = (self.head_dim as f32).powf(-0.5);
        let queries_of_all = Heads::beside(qkv, stride, 0, (self.heads, self.head_dim));
        cache.stored().attend(queries_of_all, scale, Attend::Causally, mixed);
        rows.convert(precision, mixed, queries, cpu);
        self.o_proj.multiply(rows, x, Then::Add);

        rows.rms_norm(precision, x, &self.post_attention_layernorm, self.eps, cpu);
        self.gate_up_proj.multiply(rows, gate_up, Then::Store);
        rows.silu_mul(precision, gate_up, self.inner, cpu);
        self.down_proj.multiply(rows, x, Then::Add);
    }
}
