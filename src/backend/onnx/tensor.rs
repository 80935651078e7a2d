//! Numbers into and out of ONNX Runtime's tensors, in the precision that a graph asks for.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::value::{DynTensor, DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};

use crate::error::{Error, Result};

/// The precisions that pixels, embeddings, caches and logits may have.
pub(super) const FLOATS: [TensorElementType; 2] = [TensorElementType::Float32, TensorElementType::Float16];

/// A tensor of floats in main memory.
pub(super) fn floats(element: TensorElementType, shape: Vec<i64>, values: Vec<f32>) -> Result<DynTensor> {
    Ok(match element {
        TensorElementType::Float16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(&values);
            Tensor::from_array((shape, halves))?.upcast()
        }
        _ => Tensor::from_array((shape, values))?.upcast(),
    })
}

/// Replaces `out` by the last `count` floats of a tensor.
pub(super) fn read_last(tensor: &DynValue, count: usize, out: &mut Vec<f32>) -> Result<()> {
    out.clear();
    out.resize(count, 0.0);
    match tensor.dtype().tensor_type() {
        Some(TensorElementType::Float16) => last::<f16>(tensor, count)?.convert_to_f32_slice(out),
        _ => out.copy_from_slice(last::<f32>(tensor, count)?),
    }
    Ok(())
}

fn last<T: PrimitiveTensorElementType>(tensor: &DynValue, count: usize) -> Result<&[T]> {
    let (shape, values) = tensor.try_extract_tensor::<T>()?;
    let start = values
        .len()
        .checked_sub(count)
        .ok_or_else(|| Error::internal(format!("a graph's output of shape {shape} has fewer than {count} values")))?;
    Ok(&values[start..])
}

/// The first `len` positions of a cache of shape [1, heads, positions, head_dim].
pub(super) fn shorten(cache: &DynValue, len: usize) -> Result<DynTensor> {
    match cache.dtype().tensor_type() {
        Some(TensorElementType::Float16) => shorten_as::<f16>(cache, len),
        _ => shorten_as::<f32>(cache, len),
    }
}

fn shorten_as<T: PrimitiveTensorElementType + Copy + std::fmt::Debug + 'static>(
    cache: &DynValue,
    len: usize,
) -> Result<DynTensor> {
    let (shape, values) = cache.try_extract_tensor::<T>()?;
    let &[batch, heads, positions, head_dim] = &shape[..] else {
        return Err(Error::internal(format!("a KV cache of shape {shape}")));
    };
    let row = (positions * head_dim) as usize;
    let kept: Vec<T> = values.chunks_exact(row).flat_map(|head| &head[..len * head_dim as usize]).copied().collect();
    Ok(Tensor::from_array((vec![batch, heads, len as i64, head_dim], kept))?.upcast())
}
