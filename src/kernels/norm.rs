//! Norms of many rows.

use rayon::prelude::*;

use super::{Cpu, math};

/// Rows that are not worth sharing out.
const FEW: usize = 8;

/// LayerNorm of rows as long as `weight` and `bias`, in place.
pub fn layer_norm(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32, cpu: Cpu) {
    assert!(bias.len() == weight.len() && rows.len().is_multiple_of(weight.len()));
    rows.par_chunks_exact_mut(weight.len()).with_min_len(FEW).for_each(|x| math::layer_norm(x, weight, bias, eps, cpu));
}

/// RMSNorm of rows as long as `weight`, in place.
pub fn rms_norm(rows: &mut [f32], weight: &[f32], eps: f32, cpu: Cpu) {
    assert!(rows.len().is_multiple_of(weight.len()));
    rows.par_chunks_exact_mut(weight.len()).with_min_len(FEW).for_each(|x| math::rms_norm(x, weight, eps, cpu));
}
