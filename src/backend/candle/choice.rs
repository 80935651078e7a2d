//! Where and in which precisions Candle computes: what the options ask for, or what suits best.

use candle_core::{DType, Device};

use crate::backend::{DTypeKind, DeviceKind, cached_numbers};
use crate::config::{ModelConfig, TextConfig};
use crate::engine::EngineOptions;
use crate::error::{Error, Result};
use crate::kernels::{Cpu, KeyValueCache, Precision};
use crate::model::Arithmetic;

/// How to compute, what that is called, and the bytes of a weight.
pub(super) struct Choice {
    pub(super) arithmetic: Arithmetic,
    pub(super) device: DeviceKind,
    pub(super) dtype: DTypeKind,
    /// Of keys and values.
    pub(super) kv_cache: DTypeKind,
    pub(super) weight_bytes: u64,
}

impl Choice {
    pub(super) fn new(model: &ModelConfig, options: &EngineOptions) -> Result<Self> {
        let (device, kind) = open_device(options)?;
        let odd_head = [model.vision.head_dim(), model.text.head_dim].into_iter().find(|d| d % 2 != 0);
        let asked = match options.dtype {
            DTypeKind::Auto => automatic(kind, odd_head.is_some()),
            asked => asked,
        };
        let (arithmetic, dtype, weight_bytes) = arithmetic(asked, device, kind)?;
        if let (Arithmetic::Packed { .. }, Some(odd)) = (&arithmetic, odd_head) {
            let dtype = dtype.name();
            return Err(Error::unsupported(format!(
                "dtype: {dtype} needs heads of even size, the checkpoint has {odd}"
            )));
        }
        let mut choice = Self { arithmetic, device: kind, dtype, kv_cache: dtype, weight_bytes };
        choice.keep_keys_and_values(options.kv_cache)?;
        choice.keep_weights(options)?;
        Ok(choice)
    }

    /// Bytes of the KV cache for a position.
    pub(super) fn position_bytes(&self, text: &TextConfig) -> u64 {
        match &self.arithmetic {
            Arithmetic::Tensors(dtype, _) => cached_numbers(text).saturating_mul(dtype.size_in_bytes() as u64),
            Arithmetic::Packed { kv_cache, .. } => {
                let of_layer = KeyValueCache::position_bytes(text.num_key_value_heads, text.head_dim, *kv_cache);
                of_layer.saturating_mul(text.num_hidden_layers as u64)
            }
        }
    }

    /// Keys and values as asked for.
    fn keep_keys_and_values(&mut self, asked: DTypeKind) -> Result<()> {
        let known = match &mut self.arithmetic {
            Arithmetic::Packed { kv_cache, .. } => {
                match asked {
                    DTypeKind::Bf16 => *kv_cache = Precision::Bf16,
                    DTypeKind::Int8 => *kv_cache = Precision::Int8,
                    _ => {}
                }
                self.kv_cache = if *kv_cache == Precision::Bf16 { DTypeKind::Bf16 } else { DTypeKind::Int8 };
                "int8 and bf16"
            }
            Arithmetic::Tensors(..) => self.dtype.name(),
        };
        if asked == DTypeKind::Auto || asked == self.kv_cache {
            return Ok(());
        }
        let (asked, dtype) = (asked.name(), self.dtype.name());
        Err(Error::unsupported(format!("kv_cache: {asked}; candle has {known} where dtype is {dtype}")))
    }

    /// The directory that packed weights are to be kept in, if there are any.
    fn keep_weights(&mut self, options: &EngineOptions) -> Result<()> {
        match (&mut self.arithmetic, &options.packed_cache_dir) {
            (Arithmetic::Packed { dir, .. }, asked) => dir.clone_from(asked),
            (Arithmetic::Tensors(..), None) => {}
            (Arithmetic::Tensors(..), Some(_)) => {
                let dtype = self.dtype.name();
                return Err(Error::unsupported(format!(
                    "packed_cache_dir: {dtype} weights are not packed; bf16, int8 and int4 on the CPU are"
                )));
            }
        }
        Ok(())
    }
}

/// The fastest precision that keeps as much of f32 on real weights as others' 8 bits, by
/// `make quality` (its likeliest token 96 times of 100): int8, where the kernels have the
/// processor's instructions. int4 reads less in a decode step, keeps less, and is for who asks.
fn automatic(device: DeviceKind, odd_head: bool) -> DTypeKind {
    match device {
        DeviceKind::Cpu if !odd_head && Cpu::detect() > Cpu::Portable => DTypeKind::Int8,
        DeviceKind::Cpu => DTypeKind::F32,
        _ => DTypeKind::Bf16,
    }
}

/// How to compute in a precision, its name, and the bytes of a weight.
fn arithmetic(asked: DTypeKind, device: Device, kind: DeviceKind) -> Result<(Arithmetic, DTypeKind, u64)> {
    let on_cpu = kind == DeviceKind::Cpu;
    let packed = |precision| Arithmetic::Packed { precision, kv_cache: precision, dir: None };
    let (arithmetic, bytes) = match asked {
        DTypeKind::Bf16 if on_cpu => (packed(Precision::Bf16), 2),
        DTypeKind::Int8 if on_cpu => (packed(Precision::Int8), 1),
        // Only the decoder's layers have 4 bits: a byte a weight is never too few.
        DTypeKind::Int4 if on_cpu => (packed(Precision::Int4), 1),
        DTypeKind::F32 => (Arithmetic::Tensors(DType::F32, device), 4),
        DTypeKind::Bf16 => (Arithmetic::Tensors(DType::BF16, device), 2),
        other => {
            let known = if on_cpu { "f32, bf16, int8 and int4 on the CPU" } else { "f32 and bf16 on an accelerator" };
            return Err(Error::unsupported(format!("dtype: {}; candle has {known}", other.name())));
        }
    };
    Ok((arithmetic, asked, bytes))
}

fn open_device(options: &EngineOptions) -> Result<(Device, DeviceKind)> {
    let index = options.device_index;
    match options.device {
        DeviceKind::Auto | DeviceKind::Cpu => Ok((Device::Cpu, DeviceKind::Cpu)),
        DeviceKind::Cuda if cfg!(feature = "cuda") => Ok((Device::new_cuda(index)?, DeviceKind::Cuda)),
        DeviceKind::Metal if cfg!(feature = "metal") => Ok((Device::new_metal(index)?, DeviceKind::Metal)),
        DeviceKind::TensorRt => Err(Error::unsupported("device: tensorrt is for the onnx backend")),
        other => {
            let name = other.name();
            Err(Error::unsupported(format!(
                "device: {name} asked for, but this build has no {name} (cargo feature `{name}`)"
            )))
        }
    }
}
