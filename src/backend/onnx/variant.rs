//! Which files of `onnx/` make up a precision.

use crate::backend::{DTypeKind, DeviceKind};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// The hub's suffix of every variant, the most precise first.
const SUFFIXES: [(DTypeKind, &str); 8] = [
    (DTypeKind::F32, ""),
    (DTypeKind::F16, "_fp16"),
    (DTypeKind::Int8, "_int8"),
    (DTypeKind::Uint8, "_uint8"),
    (DTypeKind::Quantized, "_quantized"),
    (DTypeKind::Q4, "_q4"),
    (DTypeKind::Q4F16, "_q4f16"),
    (DTypeKind::Bnb4, "_bnb4"),
];

/// The files of one precision, relative to the checkpoint.
pub(super) struct Variant {
    pub(super) dtype: DTypeKind,
    pub(super) vision: String,
    pub(super) embed: String,
    pub(super) decoder: String,
}

impl Variant {
    fn new(dtype: DTypeKind, suffix: &str) -> Self {
        let file = |graph: &str| format!("onnx/{graph}{suffix}.onnx");
        Self {
            dtype,
            vision: file("vision_encoder"),
            embed: file("embed_tokens"),
            decoder: file("decoder_model_merged"),
        }
    }

    pub(super) fn files(&self) -> [&str; 3] {
        [&self.vision, &self.embed, &self.decoder]
    }

    /// The graphs with the weights beside them: in `.onnx_data` and, over 2 GB, `.onnx_data_1` and
    /// so on, as the hub has them, or in PyTorch's `.onnx.data`.
    pub(super) fn bytes(&self, files: &ModelFiles) -> Result<u64> {
        let beside = files.path("onnx").read_dir().into_iter().flatten();
        let names: Vec<_> =
            beside.filter_map(|entry| Some(format!("onnx/{}", entry.ok()?.file_name().into_string().ok()?))).collect();
        let mut bytes = 0;
        for graph in self.files() {
            let holds = |name: &&String| {
                name.strip_prefix(graph).is_some_and(|end| end.starts_with("_data") || end.starts_with(".data"))
            };
            for data in names.iter().filter(holds) {
                bytes += files.size(data)?;
            }
            bytes += files.size(graph)?;
        }
        Ok(bytes)
    }

    /// Of keys and values, as the hub's decoders of this precision have them; the graph is not open
    /// yet where this is needed.
    pub(super) fn kv_cache(&self) -> DTypeKind {
        if matches!(self.dtype, DTypeKind::F16 | DTypeKind::Q4F16) { DTypeKind::F16 } else { DTypeKind::F32 }
    }

    /// Bytes of one of them.
    pub(super) fn cache_element_bytes(&self) -> usize {
        if self.kv_cache() == DTypeKind::F16 { size_of::<u16>() } else { size_of::<f32>() }
    }

    /// Refuses keys and values in anything else than the graph has them in.
    pub(super) fn check_kv_cache(&self, asked: DTypeKind) -> Result<()> {
        let own = self.kv_cache();
        if asked == DTypeKind::Auto || asked == own {
            return Ok(());
        }
        let (asked, own, dtype) = (asked.name(), own.name(), self.dtype.name());
        Err(Error::unsupported(format!("kv_cache: {asked}; the {dtype} graphs have keys and values in {own}")))
    }

    fn is_complete(&self, files: &ModelFiles) -> bool {
        self.files().iter().all(|name| files.has(name))
    }

    /// The variant that is asked for, or the most precise one that is complete.
    pub(super) fn choose(files: &ModelFiles, asked: DTypeKind, device: DeviceKind) -> Result<Self> {
        let mut variants = SUFFIXES.map(|(dtype, suffix)| Self::new(dtype, suffix));
        let names = |variants: &[Self]| {
            let complete: Vec<_> = variants.iter().filter(|v| v.is_complete(files)).map(|v| v.dtype.name()).collect();
            if complete.is_empty() { "none".into() } else { complete.join(", ") }
        };
        let folder = files.path("onnx");
        if asked != DTypeKind::Auto {
            let there = names(&variants);
            let chosen = variants.into_iter().find(|v| v.dtype == asked).ok_or_else(|| {
                Error::unsupported(format!("dtype: {} is no variant of ONNX graphs; {there} here", asked.name()))
            })?;
            return match chosen.files().iter().find(|name| !files.has(name)) {
                Some(missing) => Err(Error::not_found(format!(
                    "{}: no such file; {}: complete variants here: {there}",
                    files.path(missing).display(),
                    folder.display()
                ))),
                None => Ok(chosen),
            };
        }
        if device != DeviceKind::Cpu {
            variants.swap(0, 1);
        }
        variants.into_iter().find(|v| v.is_complete(files)).ok_or_else(|| {
            let Variant { vision, embed, decoder, .. } = Self::new(DTypeKind::F32, "");
            Error::not_found(format!("{}: no ONNX graphs: {vision}, {embed}, {decoder}", files.path("").display()))
        })
    }
}
