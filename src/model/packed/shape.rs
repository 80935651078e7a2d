//! What a decoder's layer does beside its products.

use crate::config::TextConfig;
use crate::kernels::{self, Attend, CacheRoom, Cpu, Heads, Rotation, Stored};

/// What a layer does beside its products.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) inner: usize,
    pub(super) eps: f32,
    /// Blocks in which what goes into `down_proj` is spread.
    pub(super) spread: usize,
    /// Blocks in which queries, keys and values are spread.
    pub(super) head_spread: usize,
}

impl Shape {
    pub(super) fn new(config: &TextConfig, rotation: Option<&Rotation>) -> Self {
        let spread_of = |width| if rotation.is_some() { kernels::spread_of(width) } else { 1 };
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            inner: config.intermediate_size,
            eps: config.rms_norm_eps as f32,
            spread: spread_of(config.intermediate_size),
            head_spread: spread_of(config.head_dim),
        }
    }

    /// Of queries, keys and values side by side.
    pub(super) fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Of queries, and of what attention gives.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Turns queries and keys by the angles of their positions, and puts keys and values into
    /// `room` from `first` on.
    ///
    /// # Safety
    /// As for [`CacheRoom::put`].
    pub(super) unsafe fn put(&self, qkv: &mut [f32], angles: (&[f32], &[f32]), room: &CacheRoom<'_>, first: usize) {
        let (width, queries, keys) = (self.qkv_width(), self.width(), self.kv_heads * self.head_dim);
        kernels::rotate(qkv, width, self.heads + self.kv_heads, self.head_dim, angles);
        // Products of queries and keys are as before, and so is what `o_proj` makes of values.
        kernels::spread_rows(qkv, width, width, self.head_spread, Cpu::detect());
        let of_cache = (self.kv_heads, self.head_dim);
        let [keys, values] = [queries, queries + keys].map(|at| Heads::beside(qkv, width, at, of_cache));
        // SAFETY: as the caller promises.
        unsafe { room.put(first, keys, values) };
    }

    /// What tokens see of `all` keys and values; the first token's own position is `first`.
    pub(super) fn attend(&self, qkv: &[f32], all: &Stored<'_>, first: usize, mixed: &mut [f32], next: &[u8]) {
        let queries = Heads::beside(qkv, self.qkv_width(), 0, (self.heads, self.head_dim));
        all.attend(queries, (self.head_dim as f32).powf(-0.5), Attend::CausallyFrom(first), mixed, next);
    }
}
