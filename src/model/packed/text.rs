//! The Llama decoder on the kernels.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::super::{Ends, Fold, Loader, Matrix, Wanted};
use super::chunks;
use crate::config::{ModelConfig, Rotary, TextConfig};
use crate::error::Result;
use crate::kernels::{
    self, Attend, CacheRoom, Cpu, Heads, KeyValueCache, PackedLinear, Precision, Rotation, Rows, Split, Stored, Then,
    grow,
};
use crate::largest::Largest;

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
}

impl TextModel {
    /// Reads the weights, the layers' in `precision`; `loader` stands at the root.
    pub fn load(loader: &Loader<'_>, config: &ModelConfig, precision: Precision) -> Result<Self> {
        let text = &config.text;
        let at = loader.at("model.text_model");
        let Ends { embedding, head } = Ends::choose(loader, config)?;
        let embed_tokens = loader.matrix(&[embedding], text.hidden_size, &[text.vocab_size])?;
        loader.check_unpacked(&embed_tokens, embedding)?;
        // A token is chosen by small differences among many: four bits are too few for the head.
        let precision_of_head = if precision == Precision::Int4 { Precision::Int8 } else { precision };
        // A few channels of a trained model's stream are tens of times larger than the others. Of
        // 16 bits each has its own exponent.
        let rotation = (precision == Precision::Int8).then(|| Rotation::new(text.hidden_size));
        let mut norm = at.at("norm").floats("weight", &[text.hidden_size])?;
        let fold = fold_norm(&norm, rotation.as_ref());
        let lm_head = if head == embedding {
            embed_tokens.pack(Vec::new(), precision_of_head, &fold, loader.store)?
        } else {
            loader.packed(&[head], text.hidden_size, &[text.vocab_size], precision_of_head, &fold)?
        };
        let layers = (0..text.num_hidden_layers)
            .map(|i| Layer::load(&at.at("layers").at(i), text, precision, rotation.as_ref()))
            .collect::<Result<_>>()?;
        if rotation.is_some() {
            norm.fill(1.0);
        }
        Ok(Self { embed_tokens, layers, norm, lm_head, rotation, rotary: text.rotary(), config: text.clone() })
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
        let layer = |layer: &Layer| KeyValueCache::new(heads, head_dim, layer.qkv_proj.precision(), Cpu::detect());
        Cache { layers: self.layers.iter().map(layer).collect(), len: 0, buffers: Buffers::default() }
    }

    /// Runs `embeddings` [tokens, hidden], at least one, after what `cache` holds.
    ///
    /// `check` is asked before each layer; after its error the cache is as it was before.
    pub fn forward<E>(
        &self,
        embeddings: &[f32],
        cache: &mut Cache,
        wanted: Wanted<'_>,
        check: &mut (dyn FnMut() -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let hidden = self.config.hidden_size;
        let tokens = embeddings.len() / hidden;
        let Cache { layers, len, buffers } = cache;
        buffers.turn(*len, tokens, &self.rotary);
        let Buffers { x, qkv, cos, sin, .. } = buffers;
        let x = grow(x, tokens * hidden);
        x.copy_from_slice(embeddings);
        if let Some(rotation) = &self.rotation {
            rotation.turn_rows(x, Cpu::detect());
        }
        let angles = (&cos[..], &sin[..]);
        let qkv_width = self.layers.first().map_or(0, |layer| layer.qkv_proj.outputs());
        let before = *len;
        let mut stream = Stream { x, qkv: grow(qkv, tokens * qkv_width), before, tokens };
        if let Some((first, cache)) = self.layers.first().zip(layers.first_mut()) {
            let room = room(cache, before, tokens);
            stream.in_chunks(0..tokens, |chunk, buffers| first.project(chunk, angles, &room, buffers));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            check()?;
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
                let first = next.as_ref().map_or(&[][..], |(next, _)| next.qkv_proj.first());
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

impl Buffers {
    /// Angles of `tokens` positions from `start` on.
    fn turn(&mut self, start: usize, tokens: usize, rotary: &Rotary) {
        self.cos.clear();
        self.sin.clear();
        for angle in (start..start + tokens).flat_map(|p| rotary.inv_freq.iter().map(move |f| p as f32 * f)) {
            let (sin, cos) = angle.sin_cos();
            self.cos.push(cos * rotary.scale);
            self.sin.push(sin * rotary.scale);
        }
    }
}

/// Room in a layer's cache for `tokens` more behind the first `before`.
fn room(cache: &mut KeyValueCache, before: usize, tokens: usize) -> CacheRoom<'_> {
    cache.truncate(before);
    cache.append(tokens)
}

/// What the layers hand on to each other; see [`Buffers`].
struct Stream<'a> {
    x: &'a mut [f32],
    qkv: &'a mut [f32],
    /// Of earlier passes, and of this one.
    before: usize,
    tokens: usize,
}

/// Some tokens of it.
struct Chunk<'a> {
    tokens: Range<usize>,
    x: &'a mut [f32],
    qkv: &'a mut [f32],
}

impl Stream<'_> {
    /// Calls `work` with these tokens, a chunk at a time.
    fn in_chunks(&mut self, tokens: Range<usize>, work: impl Fn(&mut Chunk<'_>, &mut chunks::Buffers) + Sync) {
        let (width, qkv_width) = (self.x.len() / self.tokens, self.qkv.len() / self.tokens);
        let (x, qkv) = (Split::new(self.x), Split::new(self.qkv));
        chunks::in_chunks(self.before, tokens, |tokens, buffers| {
            // SAFETY: no other task has these tokens.
            let (x, qkv) = unsafe {
                (
                    x.part(tokens.start * width, tokens.len() * width),
                    qkv.part(tokens.start * qkv_width, tokens.len() * qkv_width),
                )
            };
            work(&mut Chunk { tokens, x, qkv }, buffers);
        });
    }
}

/// What a matrix takes over from the norm before it, whose rows come turned by `rotation`; without
/// one, nothing.
fn fold_norm<'a>(gains: &'a [f32], rotation: Option<&'a Rotation>) -> Fold<'a> {
    Fold { gains: rotation.map_or(&[], |_| gains), inputs: rotation, ..Fold::default() }
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
    /// Blocks in which what goes into `down_proj` is spread.
    spread: usize,
    /// Blocks in which queries, keys and values are spread.
    head_spread: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
}

impl Layer {
    fn load(at: &Loader<'_>, config: &TextConfig, precision: Precision, rotation: Option<&Rotation>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let attention = at.at("self_attn");
        let mlp = at.at("mlp");
        let input_layernorm = at.at("input_layernorm").floats("weight", &[hidden])?;
        let post_attention_layernorm = at.at("post_attention_layernorm").floats("weight", &[hidden])?;
        let spread_of = |width| if rotation.is_some() { kernels::spread_of(width) } else { 1 };
        let (spread, head_spread) = (spread_of(inner), spread_of(config.head_dim));
        let back = Fold { outputs: rotation, ..Fold::default() };
        let mut layer = Self {
            qkv_proj: attention.packed_if(
                config.attention_bias,
                &["q_proj", "k_proj", "v_proj"],
                hidden,
                &[queries, keys, keys],
                precision,
                &fold_norm(&input_layernorm, rotation),
            )?,
            o_proj: attention.packed_if(
                config.attention_bias,
                &["o_proj"],
                queries,
                &[hidden],
                precision,
                &Fold { spread: head_spread, ..back },
            )?,
            gate_up_proj: mlp.packed_if(
                config.mlp_bias,
                &["gate_proj", "up_proj"],
                hidden,
                &[inner; 2],
                precision,
                &fold_norm(&post_attention_layernorm, rotation),
            )?,
            down_proj: mlp.packed_if(
                config.mlp_bias,
                &["down_proj"],
                inner,
                &[hidden],
                precision,
                &Fold { spread, ..back },
            )?,
            input_layernorm,
            post_attention_layernorm,
            inner,
            spread,
            head_spread,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps as f32,
        };
        if rotation.is_some() {
            layer.input_layernorm.fill(1.0);
            layer.post_attention_layernorm.fill(1.0);
        }
        Ok(layer)
    }

    /// Queries, keys and values of a chunk, turned; `angles` are all tokens'. Keys and values go to
    /// `room`.
    fn project(
        &self,
        chunk: &mut Chunk<'_>,
        angles: (&[f32], &[f32]),
        room: &CacheRoom<'_>,
        buffers: &mut chunks::Buffers,
    ) {
        let rows = &mut buffers.rows;
        rows.rms_norm(self.qkv_proj.precision(), chunk.x, &self.input_layernorm, self.eps, Cpu::detect());
        self.qkv_proj.multiply(rows, chunk.qkv, Then::Store);
        let half = self.head_dim / 2;
        let of_chunk = chunk.tokens.start * half..chunk.tokens.end * half;
        let angles = (&angles.0[of_chunk.clone()], &angles.1[of_chunk]);
        kernels::rotate(chunk.qkv, self.qkv_proj.outputs(), self.heads + self.kv_heads, self.head_dim, angles);
        // Products of queries and keys are as before, and so is what `o_proj` makes of values.
        let width = self.qkv_proj.outputs();
        kernels::spread_rows(chunk.qkv, width, width, self.head_spread, Cpu::detect());
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let of_cache = (self.kv_heads, self.head_dim);
        let [keys, values] =
            [queries, queries + keys].map(|first| Heads::beside(chunk.qkv, self.qkv_proj.outputs(), first, of_cache));
        // SAFETY: no other task has these tokens, and `chunks::in_chunks` begins none but the first
        // chunk within a pair.
        unsafe { room.put(chunk.tokens.start, keys, values) };
    }

    /// What follows when `all` keys and values are there; `before` of them are of earlier tokens.
    fn finish(
        &self,
        chunk: &mut Chunk<'_>,
        all: &Stored<'_>,
        before: usize,
        next: &[u8],
        buffers: &mut chunks::Buffers,
    ) {
        let chunks::Buffers { rows, mixed, inside } = buffers;
        let (cpu, tokens) = (Cpu::detect(), chunk.tokens.len());
        let width = self.heads * self.head_dim;

        let mixed = grow(mixed, tokens * width);
        let queries = Heads::beside(chunk.qkv, self.qkv_proj.outputs(), 0, (self.heads, self.head_dim));
        let causally = Attend::CausallyFrom(before + chunk.tokens.start);
        all.attend(queries, (self.head_dim as f32).powf(-0.5), causally, mixed, self.o_proj.first());
        rows.convert(self.o_proj.precision(), mixed, width, cpu);
        self.o_proj.multiply_and_fetch(rows, chunk.x, Then::Add, self.gate_up_proj.first());

        rows.rms_norm(self.gate_up_proj.precision(), chunk.x, &self.post_attention_layernorm, self.eps, cpu);
        // Gates, and the numbers they gate.
        let gate_up = grow(inside, tokens * 2 * self.inner);
        self.gate_up_proj.multiply_and_fetch(rows, gate_up, Then::Store, self.down_proj.first());
        rows.silu_mul(self.down_proj.precision(), gate_up, (self.inner, self.spread), cpu);
        self.down_proj.multiply_and_fetch(rows, chunk.x, Then::Add, next);
    }
}
