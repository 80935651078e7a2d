//! Safetensors files, memory-mapped: one `model.safetensors`, or shards with an index.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint, still on disk.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: HashMap<String, Entry>,
}

struct Shard {
    path: String,
    map: Mmap,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Weights {
    /// Maps the files and checks their headers; no tensor is read yet.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: HashMap::new() };
        if files.has(SINGLE) || !files.has(INDEX) {
            weights.add(files, SINGLE)?;
            return Ok(weights);
        }
        #[derive(Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let index: Index = parse(files, INDEX)?;
        for name in index.weight_map.values().collect::<BTreeSet<_>>() {
            if name.contains(['/', '\\']) {
                return Err(Error::invalid_model(format!("weight_map: \"{name}\" is not a file name"))
                    .at(files.path(INDEX).display()));
            }
            weights.add(files, name)?;
        }
        Ok(weights)
    }

    fn add(&mut self, files: &ModelFiles, name: &str) -> Result<()> {
        let path = files.path(name).display().to_string();
        let map = files.map(name)?;
        let invalid = |e: safetensors::SafeTensorError| Error::invalid_model(format!("{path}: {e}"));
        // `deserialize` checks that the tensors cover the file exactly; offsets are relative to the header's end.
        let tensors = SafeTensors::deserialize(&map).map_err(invalid)?;
        for (tensor, view) in tensors.iter() {
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: start..start + view.data().len(),
            };
            self.tensors.insert(tensor.to_owned(), entry);
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> u64 {
        self.tensors.values().map(|e| e.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Reads one tensor, which must have `shape`, as `dtype` on `device`.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.tensors.get(name) else {
            let path = self.shards.first().map_or(SINGLE, |s| &s.path);
            return Err(Error::invalid_model(format!("{path}: has no tensor {name}")));
        };
        let shard = &self.shards[entry.shard];
        if entry.shape != shape {
            return Err(Error::invalid_model(format!(
                "{}: {name} is {:?}, config.json says {shape:?}",
                shard.path, entry.shape
            )));
        }
        let stored = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::unsupported(format!(
                    "{}: {name} is {other:?}, F32, F16 and BF16 are known",
                    shard.path
                )));
            }
        };
        let bytes = &shard.map[entry.bytes.clone()];
        Ok(Tensor::from_raw_buffer(bytes, stored, shape, device)?.to_dtype(dtype)?)
    }
}
