//! Keys and values, and rows of heads, as they lie in memory.

use crate::kernels::cpu::Cpu;
use crate::kernels::product::Panels;

/// Keys and values as they lie in a cache.
pub struct Stored<'a> {
    pub(super) heads: Vec<Head<'a>>,
    pub(super) head_dim: usize,
    /// Positions.
    pub(super) len: usize,
    pub(super) cpu: Cpu,
}

/// Those of one head.
pub(super) struct Head<'a> {
    /// [position panels, groups of head_dim]
    pub(super) keys: Panels<'a>,
    /// [groups of positions, head_dim panels]
    pub(super) values: Panels<'a>,
    /// What has been taken off the values [head_dim], or empty.
    pub(super) mean: &'a [f32],
    /// What each position's value has to be multiplied by, or empty. Softmax's weights, which have
    /// that in them then, have 16 bits.
    pub(super) value_scales: &'a [f32],
}

/// Rows of numbers of some heads.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// From a row to the next one.
    stride: usize,
}

impl<'a> Heads<'a> {
    /// Heads side by side in rows of `stride`, from column `first` on.
    pub fn beside(data: &'a [f32], stride: usize, first: usize, (heads, head_dim): (usize, usize)) -> Self {
        assert!(heads * head_dim > 0 && first + heads * head_dim <= stride && data.len().is_multiple_of(stride));
        let (rows, data) = (data.len() / stride, data.get(first..).unwrap_or_default());
        Self { data, rows, heads, head_dim, stride }
    }

    pub(super) fn row(&self, row: usize, head: usize) -> &'a [f32] {
        &self.data[row * self.stride + head * self.head_dim..][..self.head_dim]
    }
}
