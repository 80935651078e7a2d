//! Packed weights on disk, for who asks for it: the next load maps them, and reads and quantises no
//! others.
//!
//! A file for each checkpoint (by its digest), precision and set of kernels, in a directory of the
//! caller's. It has a header, and then all arrays in the order of loading, each with its size and
//! digest before it, all at multiples of [`ALIGNMENT`]. Nothing in it is believed that has not been
//! checked: a file that is cut short, damaged or another's is written anew. All arrays are digested
//! at once, on all threads, while the system maps them: most are too small to be shared out, and
//! one after the other they would leave all threads but one idle. Like a checkpoint the file must
//! not change in place while it is mapped; a new one takes its name when it is whole.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(unix)]
use memmap2::Advice;
use memmap2::Mmap;
use rayon::prelude::*;

use super::digest::{self, DIGEST};
use crate::error::{Error, Result};
use crate::kernels::{Cpu, Mapped, Precision};
use crate::{disk, log};

/// To be changed with what packing makes of weights, or the order in which they are loaded; a test
/// notices the former.
const HEADER: &[u8; ALIGNMENT] =
    b"smolvlm: packed weights, layout 3\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A cache line, as kernels want it.
const ALIGNMENT: usize = 64;

/// Where packed weights come from, or go to.
pub enum Store {
    /// From the checkpoint, to nowhere.
    None,
    From(Reader),
    To(Writer),
}

impl Store {
    /// Calls `load` with a store in `dir`, if there is one, of a checkpoint with this digest in this
    /// precision. What is wrong with a store is logged, and no error: `prove` is to prove the
    /// checkpoint, and `load` is called again.
    pub fn with<T>(
        dir: Option<&Path>,
        digest: impl FnOnce(&Path) -> String,
        prove: impl FnOnce() -> Result<()>,
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
        let key = format!("{}-{precision}-{}", digest(dir), Cpu::detect().name());
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
        prove()?;
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
    /// As many as there seem to be: whoever takes one compares.
    arrays: Vec<Found>,
    next: Cell<usize>,
}

/// What an array's bytes are known by, whose head is at `at`.
struct Found {
    at: usize,
    bytes: Range<usize>,
    digest: [u8; DIGEST],
}

impl Reader {
    fn open(path: &Path, key: &str) -> Result<Self> {
        let file = disk::open(path)?;
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
        let mut arrays: Vec<_> = heads(&map).collect();
        arrays.par_iter_mut().for_each(|found| found.digest = digest::of(&map[found.bytes.clone()]));
        Ok(Self { path: path.to_owned(), key: key.to_owned(), map: Arc::new(map), arrays, next: Cell::new(0) })
    }

    /// The next array, which must be the one that `label` names.
    pub fn take(&self, label: &str, size: usize) -> Result<Mapped> {
        let wrong = |what| Error::invalid_model(format!("{}: {label}: {what}", self.path.display()));
        let found = self.arrays.get(self.next.get()).ok_or_else(|| wrong("is not there, or not whole"))?;
        let Found { at, bytes, digest } = found;
        if bytes.len() != size || self.map[*at..][..ALIGNMENT] != head((&self.key, label, *at), size, digest) {
            return Err(wrong("is damaged, or another's"));
        }
        self.next.set(self.next.get() + 1);
        Ok(Mapped::new(self.map.clone(), bytes.clone()))
    }
}

/// Where the arrays are, up to the first whose size cannot be true.
fn heads(file: &[u8]) -> impl Iterator<Item = Found> {
    let mut at = HEADER.len();
    std::iter::from_fn(move || {
        let (size, _) = file.get(at..)?.split_first_chunk()?;
        let size = usize::try_from(u64::from_le_bytes(*size)).ok().filter(|&size| size > 0)?;
        let start = at + ALIGNMENT;
        let end = start.checked_add(size).filter(|&end| end <= file.len())?;
        let found = Found { at, bytes: start..end, digest: [0; DIGEST] };
        at = end.next_multiple_of(ALIGNMENT).min(file.len());
        Some(found)
    })
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
        let head = head((&self.key, label, self.at.get()), bytes.len(), &digest::of(bytes));
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

/// What stands before an array of this size and digest at `place`: in the file that has this key,
/// with this label, from there on.
fn head(place: (&str, &str, usize), size: usize, digest: &[u8; DIGEST]) -> [u8; ALIGNMENT] {
    let (key, label, at) = place;
    let mut head = [0; ALIGNMENT];
    head[..8].copy_from_slice(&(size as u64).to_le_bytes());
    let known_by = [format!("{key} {label} {at} {size} ").as_bytes(), digest].concat();
    head[8..40].copy_from_slice(&digest::of(&known_by));
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
        const ALL: [Precision; 5] =
            [Precision::Bf16, Precision::Int8, Precision::Int4, Precision::Int5, Precision::Int6];
        for cpu in Cpu::available() {
            let digests = ALL.map(|precision| {
                let packed = PackedLinear::new((45, 70), read, Vec::new(), precision, None, cpu);
                let digest = digest::of(&packed.arrays().concat());
                digest[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            });
            // Whoever changes these changes HEADER's number too: what has been kept is of no use
            // any more.
            assert_eq!(digests, ["1a56c6b9", "5555a88c", "7d7f113d", "4f3e49ea", "d076e4c2"], "{cpu:?}");
        }
    }
}
