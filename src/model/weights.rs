//! Safetensors files, memory-mapped: one `model.safetensors`, or shards with an index.

pub mod matrix;

use std::collections::{BTreeSet, HashMap};
use std::fs::Metadata;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use half::f16;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::digest;
use crate::config::{foreign, parse};
use crate::disk::hex;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, prove};
use crate::kernels::{self, Cpu};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Ends of names of tensors that a model computes itself, and of a head that is tied: nothing is
/// missed without them.
const HARMLESS: [&str; 3] = ["lm_head.weight", ".inv_freq", ".position_ids"];

const MERGE: &str = "load it in peft, call merge_and_unload() and save_pretrained()";
const ORIGINAL: &str = "take the checkpoint it was made from: weights become int8 or int4 at load here";

/// Parts of names of tensors, whose they are, and what to do.
const FOREIGN: [(&str, &str, &str); 12] = [
    (".lora_A", "unmerged LoRA", MERGE),
    (".lora_B", "unmerged LoRA", MERGE),
    (".lora_embedding", "unmerged LoRA", MERGE),
    (".lora_magnitude", "unmerged DoRA", MERGE),
    (".base_layer.", "unmerged PEFT", MERGE),
    (".weight.absmax", "bitsandbytes 4-bit", ORIGINAL),
    (".SCB", "bitsandbytes 8-bit", ORIGINAL),
    (".qweight", "GPTQ or AWQ", ORIGINAL),
    (".weight_packed", "compressed-tensors", ORIGINAL),
    (".weight_scale", "FP8 or compressed-tensors", ORIGINAL),
    (".scales", "MLX", ORIGINAL),
    // Unquantised: MLX calls what Idefics3 has in the text model so, and turns the patches' kernel.
    ("language_model.", "MLX", "take the checkpoint it was made from"),
];

/// Bytes of a file that are in memory at once while it is digested.
const AT_ONCE: usize = 16 << 20;

/// The tensors of a checkpoint, still on disk.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: HashMap<String, (Entry, Read)>,
    /// For a matrix on its way, until [`Weights::loaded`]: memory from the system costs more than
    /// what is done in it.
    room: Mutex<Vec<f32>>,
}

/// That somebody has asked for a tensor.
type Read = AtomicBool;

struct Shard {
    path: String,
    map: Mmap,
    data: Metadata,
    /// That `SHA256SUMS` lists.
    digest: Option<String>,
}

#[derive(Clone)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Weights {
    /// Maps the files and checks their headers; no tensor is read yet.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let mut weights = Self { shards: Vec::new(), tensors: HashMap::new(), room: Mutex::default() };
        if files.has(SINGLE) || !files.has(INDEX) {
            if !files.has(SINGLE)
                && let Some(error) = foreign::explain(files)
            {
                return Err(error);
            }
            weights.add(files, SINGLE)?;
            weights.refuse_foreign()?;
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
        weights.refuse_foreign()?;
        Ok(weights)
    }

    /// Refuses tensors that only other libraries' weights have.
    fn refuse_foreign(&self) -> Result<()> {
        // Whichever comes first says the same: the alphabet makes it one message.
        let foreign = |name: &&String| FOREIGN.iter().find(|(part, ..)| name.contains(part));
        let Some(name) = self.tensors.keys().filter(|name| foreign(name).is_some()).min() else { return Ok(()) };
        let (_, what, cure) = foreign(&name).unwrap_or(&FOREIGN[0]);
        Err(Error::unsupported(format!("{}: {name} is of {what} weights; {cure}", self.path_of(name))))
    }

    /// To be called when all of the model is loaded. Refuses a tensor of the model that nobody has
    /// asked for: another model's, whose answers would be others.
    pub fn loaded(&self) -> Result<()> {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
        let counts = |name: &str| {
            let of_model = name.starts_with("model.") || name.starts_with("lm_head.");
            of_model && !HARMLESS.iter().any(|harmless| name.ends_with(harmless))
        };
        let unread = self.tensors.iter().filter(|(name, (_, read))| counts(name) && !read.load(Ordering::Relaxed));
        let mut names: Vec<_> = unread.map(|(name, _)| name).collect();
        names.sort();
        let Some(name) = names.first() else { return Ok(()) };
        let more = match names.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Err(Error::unsupported(format!(
            "{}: {name}{more}: the model that config.json describes has no such tensor, and would answer without it",
            self.path_of(name)
        )))
    }

    fn path_of(&self, name: &str) -> &str {
        let shard = self.tensors.get(name).and_then(|(entry, _)| self.shards.get(entry.shard));
        shard.or(self.shards.first()).map_or(SINGLE, |shard| &shard.path)
    }

    fn add(&mut self, files: &ModelFiles, name: &str) -> Result<()> {
        let path = files.path(name).display().to_string();
        let (map, data) = files.map(name)?;
        let invalid = |e: safetensors::SafeTensorError| Error::invalid_model(format!("{path}: {e}"));
        // `deserialize` checks that the tensors cover the file exactly; offsets are relative to the
        // header's end.
        let tensors = SafeTensors::deserialize(&map).map_err(invalid)?;
        for (tensor, view) in tensors.iter() {
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: start..start + view.data().len(),
            };
            self.tensors.insert(tensor.to_owned(), (entry, Read::new(false)));
        }
        self.shards.push(Shard { path, map, data, digest: files.digest_of(name) });
        Ok(())
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> u64 {
        self.tensors.values().map(|(e, _)| e.shape.iter().map(|&d| d as u64).product::<u64>()).sum()
    }

    /// Whether `SHA256SUMS` says what the files are.
    pub fn are_listed(&self) -> bool {
        self.shards.iter().any(|shard| shard.digest.is_some())
    }

    /// Refuses files that are not what `SHA256SUMS`, if there is one, says.
    pub fn prove(&self) -> Result<()> {
        for Shard { path, map, digest, .. } in &self.shards {
            if let Some(digest) = digest {
                let mut hasher = Sha256::new();
                in_parts(map, 0..map.len(), &mut |bytes| hasher.update(bytes));
                prove(&hex(hasher), digest, path)?;
            }
        }
        Ok(())
    }

    /// What all files together are known by; `memory` is a directory that may know it already.
    pub fn digest(&self, memory: &Path) -> String {
        let of_file = |shard: &Shard| match &shard.digest {
            Some(digest) => digest.clone(),
            None => {
                digest::of_file(&shard.map, &shard.data, memory, |take| in_parts(&shard.map, 0..shard.map.len(), take))
            }
        };
        digest::of_all(self.shards.iter().map(of_file).collect())
    }

    /// Reads one tensor, which must have `shape`, as `dtype` on `device`.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let (entry, stored) = self.find(name, shape)?;
        Ok(Tensor::from_raw_buffer(self.bytes(entry), stored, shape, device)?.to_dtype(dtype)?)
    }

    /// Whether a tensor of this name is stored.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The path of the first file.
    pub fn name(&self) -> &str {
        self.shards.first().map_or(SINGLE, |shard| &shard.path)
    }

    /// Whether two matrices, which must have this shape, hold the same numbers.
    pub fn equal(&self, a: &str, b: &str, shape: [usize; 2]) -> Result<bool> {
        let [(a, a_stored), (b, b_stored)] = [self.find(a, &shape)?, self.find(b, &shape)?];
        let (a_bytes, b_bytes) = (self.bytes(a), self.bytes(b));
        let equal = a_stored == b_stored && a_bytes == b_bytes || {
            let [mut a_row, mut b_row] = [vec![0.0; shape[1]], vec![0.0; shape[1]]];
            let rows = |bytes, stored: DType| <[u8]>::chunks_exact(bytes, shape[1] * stored.size_in_bytes());
            rows(a_bytes, a_stored).zip(rows(b_bytes, b_stored)).all(|(a, b)| {
                read(a, a_stored, &mut a_row);
                read(b, b_stored, &mut b_row);
                a_row == b_row
            })
        };
        for entry in [a, b] {
            release(&self.shards[entry.shard].map, entry.bytes.clone());
        }
        Ok(equal)
    }

    /// Refuses a tensor that is not there, or not of `shape`.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.find(name, shape).map(|_| ())
    }

    /// The tensor of this name, which must have `shape`, and how it is stored.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Entry, DType)> {
        let Some((entry, read)) = self.tensors.get(name) else {
            let path = self.path_of(name);
            return Err(Error::invalid_model(format!("{path}: has no tensor {name}")));
        };
        read.store(true, Ordering::Relaxed);
        let path = &self.shards[entry.shard].path;
        if entry.shape != shape {
            return Err(Error::invalid_model(format!(
                "{path}: {name} is {:?}, config.json says {shape:?}",
                entry.shape
            )));
        }
        match entry.dtype {
            Dtype::F32 => Ok((entry, DType::F32)),
            Dtype::F16 => Ok((entry, DType::F16)),
            Dtype::BF16 => Ok((entry, DType::BF16)),
            other => Err(Error::unsupported(format!("{path}: {name} is {other:?}, F32, F16 and BF16 are known"))),
        }
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.shards[entry.shard].map[entry.bytes.clone()]
    }
}

/// Calls `take` with some of a file, a part after the other, which takes little memory.
fn in_parts(map: &Mmap, bytes: Range<usize>, take: &mut dyn FnMut(&[u8])) {
    for start in bytes.clone().step_by(AT_ONCE) {
        let part = start..bytes.end.min(start + AT_ONCE);
        take(&map[part.clone()]);
        release(map, part);
    }
}

/// Gives back the memory that some of a file takes. Whoever reads it again finds it in the system's
/// cache, or on disk.
fn release(map: &Mmap, bytes: Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the map is of a file, shared and only read: what is dropped comes back as it was.
        let dropped = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        // It was advice: without it there is less memory, and nothing is wrong.
        drop(dropped);
    }
}

/// Numbers as they lie in a file: little-endian, at any address.
fn read(bytes: &[u8], stored: DType, out: &mut [f32]) {
    match stored {
        DType::F32 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(bytes);
            }
        }
        DType::F16 => {
            for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f16::from_le_bytes(bytes).to_f32();
            }
        }
        _ => kernels::from_bf16(bytes, out, Cpu::detect()),
    }
}
