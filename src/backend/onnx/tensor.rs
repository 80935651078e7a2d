//! Numbers into and out of ONNX Runtime's tensors, in the precision that a graph asks for.
//!
//! What a graph hands out is believed only as far as it has been counted: a declared shape may be
//! symbolic, or untrue.

use half::f16;
use half::slice::HalfFloatSliceExt;
use ort::memory::AllocationDevice;
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

/// All floats of an output, which must be `count`.
pub(super) fn read(output: &DynValue, count: usize) -> Result<Vec<f32>> {
    check_shape(output, &[count as i64], |found, count| found.iter().product::<i64>() == count[0])?;
    let mut values = Vec::new();
    read_last(output, count, &mut values)?;
    Ok(values)
}

/// Replaces `out` by the last `count` floats of an output.
pub(super) fn read_last(output: &DynValue, count: usize, out: &mut Vec<f32>) -> Result<()> {
    fn last<T: PrimitiveTensorElementType>(output: &DynValue, count: usize) -> Result<&[T]> {
        let (shape, values) = output.try_extract_tensor::<T>()?;
        let start = values.len().checked_sub(count);
        let start = start.ok_or_else(|| Error::invalid_model(format!("of shape {shape}, {count} values needed")))?;
        Ok(&values[start..])
    }
    match output.dtype().tensor_type() {
        Some(TensorElementType::Float16) => {
            let halves = last::<f16>(output, count)?;
            out.resize(count, 0.0);
            halves.convert_to_f32_slice(out);
        }
        _ => {
            let values = last::<f32>(output, count)?;
            out.clear();
            out.extend_from_slice(values);
        }
    }
    Ok(())
}

/// Refuses an output that is not of `shape`.
pub(super) fn expect_shape(output: &DynValue, shape: &[i64]) -> Result<()> {
    check_shape(output, shape, |found, wanted| found == wanted)
}

fn check_shape(output: &DynValue, wanted: &[i64], fits: impl Fn(&[i64], &[i64]) -> bool) -> Result<()> {
    match output.dtype().tensor_shape() {
        Some(found) if fits(found, wanted) => Ok(()),
        Some(found) => Err(Error::invalid_model(format!("of shape {found}, {wanted:?} needed"))),
        None => Err(Error::invalid_model("no tensor")),
    }
}

/// The first `len` positions of a cache of shape [1, heads, positions, head_dim], in main memory.
pub(super) fn shorten(cache: &DynTensor, len: usize) -> Result<DynTensor> {
    if !cache.memory_info().is_cpu_accessible() {
        return shorten(&cache.to(AllocationDevice::CPU, 0)?, len);
    }
    match cache.data_type() {
        TensorElementType::Float16 => shorten_as::<f16>(cache, len),
        _ => shorten_as::<f32>(cache, len),
    }
}

fn shorten_as<T: PrimitiveTensorElementType + Copy + std::fmt::Debug + 'static>(
    cache: &DynTensor,
    len: usize,
) -> Result<DynTensor> {
    let (shape, values) = cache.try_extract_tensor::<T>()?;
    let invalid = || Error::internal(format!("a KV cache of shape {shape}, cut to {len} positions"));
    let &[batch, heads, positions, head_dim] = &shape[..] else { return Err(invalid()) };
    if (positions as usize) < len || positions * head_dim == 0 {
        return Err(invalid());
    }
    let kept = len * head_dim as usize;
    let values: Vec<T> =
        values.chunks_exact((positions * head_dim) as usize).flat_map(|head| &head[..kept]).copied().collect();
    Ok(Tensor::from_array((vec![batch, heads, len as i64, head_dim], values))?.upcast())
}
