//! Packed weights on disk, for who asks for it: the next load maps them, and reads and quantises no
//! others.
//!
//! A file for each checkpoint (by its digest), precision and set of kernels, in a directory of the
//! caller's. It has a header, and then all arrays in the order of loading, each with its size and
//! digest before it, all at multiples of [`ALIGNMENT`]. Nothing in it is believed that has not been
//! checked: a file that is cut short, damaged or another's is written anew. Like a checkpoint it
//! must not change in place while it is mapped; a new one takes its name when it is whole.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(unix)]
use memmap2::Advice;
use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::super::Weights;
use crate::error::{Error, Result};
use crate::kernels::{Cpu, Mapped, Precision};
use crate::{files, log};

/// To be changed with what packing makes of weights, or the order in which they are loaded; a test
/// notices the former.
const HEADER: &[u8; ALIGNMENT] =
    b"smolvlm: packed weights, layout 3\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A cache line, as kernels want it.
const ALIGNMENT: usize = 64;

/// Bytes of an array that are digested in one piece: there are enough pieces for all threads.
const PIECE: usize = 1 << 20;

/// Where packed weights come from, or go to.
pub enum Store {
    /// From the checkpoint, to nowhere.
    None,
    From(Reader),
    To(Writer),
}

impl Store {
    /// Calls `load` with a store in `dir`, if there is one. What is wrong with a store is logged,
    /// and no error: `load` is called again.
    pub fn with<T>(
        dir: Option<&Path>,
        weights: &Weights,
        precision: Precision,
        load: impl Fn(&Self) -> Result<T>,
    ) -> Result<T> {
        let Some(dir) = dir else { return load(&Self::None) };
        if dir.as_os_str().is_empty() {
            return Err(Error::invalid_argument("packed_cache_dir: empty"));
        }
        fs::create_dir_all(dir)
            .map_err(|e| Error::invalid_argument(format!("packed_cache_dir: {}: {e}", dir.display())))?;
        let precision = format!("{precision:?}").to_lowercase();
        let key = format!("{}-{precision}-{}", weights.digest(dir), Cpu::detect().name());
        let path = dir.join(format!("{key}.packed"));
        if path.exists() {
            match Reader::open(&path, &key).and_then(|reader| load(&Self::From(reader))) {
                Ok(loaded) => {
                    log::info(format_args!("{}: packed weights", path.display()));
                    return Ok(loaded);
                }
                Err(error) => log::warn(format_args!("{error}; weights are packed anew")),
            }
        }
        let store = Self::To(Writer::new(path, key));
        let loaded = load(&store)?;
        if let Self::To(writer) = store {
            writer.finish();
        }
        Ok(loaded)
    }
}

/// A file that is there.
pub struct Reader {
    path: PathBuf,
    key: String,
    map: Arc<Mmap>,
    at: Cell<usize>,
}

impl Reader {
    fn open(path: &Path, key: &str) -> Result<Self> {
        let file = files::open(path)?;
        let invalid = |message: &dyn std::fmt::Display| Error::invalid_model(format!("{}: {message}", path.display()));
        // SAFETY: the map is read-only. Whoever changes the file in place breaks the contract of
        // `packed_cache_dir`; we do not.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| invalid(&e))?;
        // All of it is wanted, in order; where the system takes no advice, it only takes longer.
        #[cfg(unix)]
        let _ = map.advise(Advice::WillNeed);
        if !map.starts_with(HEADER) {
            return Err(invalid(&"is not of this version's layout"));
        }
        Ok(Self { path: path.to_owned(), key: key.to_owned(), map: Arc::new(map), at: Cell::new(HEADER.len()) })
    }

    /// The next array, which must be the one that `label` names.
    pub fn take(&self, label: &str, size: usize) -> Result<Mapped> {
        let wrong = |what| Error::invalid_model(format!("{}: {label}: {what}", self.path.display()));
        let rest = &self.map[self.at.get()..];
        let (head, body) = rest.split_at_checked(ALIGNMENT).ok_or_else(|| wrong("is not there"))?;
        let bytes = body.get(..size).ok_or_else(|| wrong("is cut short"))?;
        if head != self::head((&self.key, label, self.at.get()), bytes) {
            return Err(wrong("is damaged, or another's"));
        }
        let start = self.at.get() + ALIGNMENT;
        self.at.set((start + size).next_multiple_of(ALIGNMENT).min(self.map.len()));
        Ok(Mapped::new(self.map.clone(), start..start + size))
    }
}

/// A file that is to be.
pub struct Writer {
    path: PathBuf,
    key: String,
    temporary: PathBuf,
    /// None once it is done, or something went wrong: then nothing of it is there.
    file: RefCell<Option<File>>,
    at: Cell<usize>,
}

impl Writer {
    fn new(path: PathBuf, key: String) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = || format!("{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (temporary, file) = loop {
            let temporary = path.with_extension(name());
            match File::create_new(&temporary) {
                Ok(file) => break (temporary, Some(file)),
                // Another container's process may have the same number, or have had it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    not_kept(&temporary, &error);
                    break (temporary, None);
                }
            }
        };
        let writer = Self { path, key, temporary, file: RefCell::new(file), at: Cell::new(HEADER.len()) };
        writer.write(|file| file.write_all(HEADER));
        writer
    }

    /// Appends an array.
    pub fn put(&self, label: &str, bytes: &[u8]) {
        if self.file.borrow().is_none() {
            return;
        }
        let head = head((&self.key, label, self.at.get()), bytes);
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        self.at.set(self.at.get() + head.len() + bytes.len() + padding);
        self.write(|file| {
            file.write_all(&head)?;
            file.write_all(bytes)?;
            file.write_all(&[0; ALIGNMENT][..padding])
        });
    }

    fn write(&self, write: impl FnOnce(&mut File) -> io::Result<()>) {
        let written = self.file.borrow_mut().as_mut().map_or(Ok(()), write);
        written.unwrap_or_else(|error| self.give_up(&error));
    }

    fn finish(self) {
        if self.file.borrow().is_some() {
            match fs::rename(&self.temporary, &self.path) {
                Ok(()) => {
                    self.file.take();
                    log::info(format_args!("{}: packed weights written", self.path.display()));
                }
                Err(error) => self.give_up(&error),
            }
        }
    }

    fn give_up(&self, error: &io::Error) {
        not_kept(&self.temporary, error);
        self.remove();
    }

    fn remove(&self) {
        if self.file.take().is_some() {
            // Nobody reads it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.remove();
    }
}

fn not_kept(path: &Path, error: &io::Error) {
    log::warn(format_args!("{}: {error}; packed weights are not kept", path.display()));
}

/// What stands before an array at `place`: in the file that has this key, with this label, from
/// there on.
fn head(place: (&str, &str, usize), bytes: &[u8]) -> [u8; ALIGNMENT] {
    let (key, label, at) = place;
    let pieces: Vec<_> = bytes.par_chunks(PIECE).map(Sha256::digest).collect();
    let mut digest = Sha256::new_with_prefix(format!("{key} {label} {at} {}", bytes.len()));
    pieces.iter().for_each(|piece| digest.update(piece));
    let mut head = [0; ALIGNMENT];
    head[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    head[8..40].copy_from_slice(&digest.finalize());
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::PackedLinear;

    #[test]
    fn what_packing_makes_is_what_this_layout_says() {
        let read = |output: usize, row: &mut [f32]| {
            row.iter_mut().enumerate().for_each(|(i, w)| *w = ((output * 37 + i * i) % 251) as f32 / 125.0 - 1.0);
        };
        for cpu in Cpu::available() {
            let digests = [Precision::Bf16, Precision::Int8, Precision::Int4].map(|precision| {
                let packed = PackedLinear::new((45, 70), read, Vec::new(), precision, cpu);
                let digest = Sha256::digest(packed.arrays().concat());
                digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            });
            // Whoever changes these changes HEADER's number too: what has been kept is of no use
            // any more.
            assert_eq!(digests, ["7520950e", "12b4bab1", "50389fec"], "{cpu:?}");
        }
    }
}
