//! A checkpoint directory: bounded reads, memory maps, and the optional `SHA256SUMS` that proves it
//! whole.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::disk::{hex, io_error, is_plain, open};
use crate::error::{Error, Result};
use crate::hub;

/// Text files of a checkpoint are a few megabytes; a larger one is not what it claims to be.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// A directory in the layout that the hub publishes.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    /// The names in `SHA256SUMS`, with the digests that they have; then no other file is read.
    listed: Option<HashMap<String, String>>,
}

impl ModelFiles {
    /// Opens the directory `model`, or the snapshot of the hub id `model` in the hub's cache. If it
    /// holds a
    /// `SHA256SUMS`, every file named there must be present and match, and only files named there
    /// are used.
    pub fn open(model: &Path) -> Result<Self> {
        Self::open_but(model, |_| false)
    }

    /// The same, without reading those of the listed files that are for `later`: whoever uses one
    /// has it proven.
    pub(crate) fn open_but(model: &Path, later: impl Fn(&str) -> bool) -> Result<Self> {
        let cache = hub::cache_dir(|name| std::env::var_os(name));
        let mut files = Self { dir: hub::resolve(model, cache.as_deref())?, listed: None };
        if files.has(SUMS) {
            files.listed = Some(files.verify(later)?);
        }
        Ok(files)
    }

    /// The path of a file of the checkpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).is_file()
    }

    /// The names without `.extension` of a folder's files that have it, sorted.
    pub fn stems(&self, folder: &str, extension: &str) -> Vec<String> {
        let entries = self.path(folder).read_dir().into_iter().flatten().flatten();
        let paths = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == extension) && p.is_file());
        let mut stems: Vec<_> = paths.filter_map(|p| Some(p.file_stem()?.to_string_lossy().into_owned())).collect();
        stems.sort();
        stems
    }

    /// The whole of a small file.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path(name);
        let file = self.open_listed(name)?;
        let mut bytes = Vec::new();
        file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(|e| io_error(&path, e))?;
        if bytes.len() as u64 > MAX_TEXT_BYTES {
            return Err(Error::invalid_model(format!("{}: over {MAX_TEXT_BYTES} bytes", path.display())));
        }
        Ok(bytes)
    }

    /// The whole of a small text file.
    pub fn read_text(&self, name: &str) -> Result<String> {
        String::from_utf8(self.read(name)?).map_err(|e| {
            Error::invalid_model(format!(
                "{}: byte {} is not UTF-8",
                self.path(name).display(),
                e.utf8_error().valid_up_to()
            ))
        })
    }

    /// Maps a large file into memory, and says what the system knows of it.
    pub fn map(&self, name: &str) -> Result<(Mmap, Metadata)> {
        let path = self.path(name);
        let file = self.open_listed(name)?;
        let data = file.metadata().map_err(|e| io_error(&path, e))?;
        // SAFETY: the map is read-only. Whoever shortens the file while it is mapped breaks the
        // contract that `smolvlm_create` states: a checkpoint in use is not to be modified.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| io_error(&path, e))?;
        Ok((map, data))
    }

    /// The digest that a file has, or is to have, that `SHA256SUMS` lists, in hexadecimal digits.
    pub fn digest_of(&self, name: &str) -> Option<String> {
        self.listed.as_ref()?.get(name).cloned()
    }

    /// The size in bytes of a file that another library will open by its path.
    pub fn size(&self, name: &str) -> Result<u64> {
        let path = self.path(name);
        Ok(self.open_listed(name)?.metadata().map_err(|e| io_error(&path, e))?.len())
    }

    /// Refuses a folder with a file that `SHA256SUMS`, if there is one, does not list: another
    /// library may open what is there.
    pub fn check_folder(&self, folder: &str) -> Result<()> {
        let path = self.path(folder);
        let (Some(listed), true) = (&self.listed, path.is_dir()) else { return Ok(()) };
        for entry in path.read_dir().map_err(|e| io_error(&path, e))? {
            let file = entry.map_err(|e| io_error(&path, e))?.file_name();
            if !listed.contains_key(&format!("{folder}/{}", file.to_string_lossy())) {
                return Err(Error::invalid_model(format!("{}: not listed in {SUMS}", path.join(file).display())));
            }
        }
        Ok(())
    }

    fn open_listed(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        let file = open(&path)?;
        match &self.listed {
            Some(names) if !names.contains_key(name) => {
                Err(Error::invalid_model(format!("{}: not listed in {SUMS}", path.display())))
            }
            _ => Ok(file),
        }
    }

    fn verify(&self, later: impl Fn(&str) -> bool) -> Result<HashMap<String, String>> {
        let mut names = HashMap::new();
        let place = |line: usize| format!("{}: line {}", self.path(SUMS).display(), line + 1);
        let text = self.read_text(SUMS)?;
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.is_empty()) {
            let (expected, name) = line
                .split_once("  ")
                .filter(|(hex, name)| hex.len() == 64 && is_plain(name))
                .ok_or_else(|| Error::invalid_model("not `<64 hex digits>  <file name>`").at(place(i)))?;
            let expected = expected.to_ascii_lowercase();
            if !(later(name) && self.has(name) && expected.bytes().all(|b| b.is_ascii_hexdigit())) {
                let found = self.digest(name).map_err(|e| e.at(place(i)))?;
                prove(&found, &expected, &self.path(name).display())?;
            }
            names.insert(name.to_owned(), expected);
        }
        Ok(names)
    }

    fn digest(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        let mut hasher = Sha256::new();
        io::copy(&mut open(&path)?, &mut hasher).map_err(|e| io_error(&path, e))?;
        Ok(hex(hasher))
    }
}

const SUMS: &str = "SHA256SUMS";

/// Refuses the file at `path` whose digest is another than the listed one.
pub(crate) fn prove(found: &str, expected: &str, path: &dyn std::fmt::Display) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid_model(format!("SHA-256 is {found}, {SUMS} says {expected}")).at(path))
}
