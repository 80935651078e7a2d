//! What weights are known by: BLAKE3, a checkpoint's made once for as long as its files stay the
//! same. It is as fast without instructions of its own, and one input is shared out to all threads.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use blake3::Hasher;

use crate::disk;
use crate::log;

/// Changes that are as close to each other may leave the same time behind: a file that has just
/// been changed is not known yet.
const SETTLED: Duration = Duration::from_secs(2);

/// Places of a file that are looked at to tell it from another one, and how many bytes of each.
const SAMPLES: usize = 16;
const SAMPLE: usize = 64;

/// Bytes of a digest, and its hexadecimal digits.
pub const DIGEST: usize = blake3::OUT_LEN;
const DIGITS: usize = 2 * DIGEST;

/// Makes a digest of parts, on the caller's rayon pool.
#[derive(Default)]
pub struct Digester(Hasher);

impl Digester {
    pub fn update(&mut self, part: &[u8]) {
        self.0.update_rayon(part);
    }

    pub fn finish(self) -> [u8; DIGEST] {
        *self.0.finalize().as_bytes()
    }
}

/// The digest of some bytes, likewise.
pub fn of(bytes: &[u8]) -> [u8; DIGEST] {
    let mut digester = Digester::default();
    digester.update(bytes);
    digester.finish()
}

/// The digest of a file's `bytes`, in hexadecimal digits; kept in `memory`, a directory, under what
/// `data` says of the file and a few samples of it. `read` is to call its argument with all of the
/// bytes.
pub fn of_file(bytes: &[u8], data: &Metadata, memory: &Path, read: impl FnOnce(&mut dyn FnMut(&[u8]))) -> String {
    let digest = || {
        let mut digester = Digester::default();
        read(&mut |bytes| digester.update(bytes));
        digester.0.finalize().to_hex().to_string()
    };
    let Some(identity) = identity(bytes, data) else { return digest() };
    let path = memory.join(format!("{identity}.blake3"));
    if let Some(known) = known(&path) {
        return known;
    }
    let digest = digest();
    match keep(&path, &digest) {
        // Somebody else did, meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            log::warn(format_args!("{}: {error}; the next load digests all weights again", path.display()));
        }
        Ok(()) => {}
    }
    digest
}

/// Those of several files, as one.
pub fn of_all(mut digests: Vec<String>) -> String {
    if digests.len() == 1 { digests.remove(0) } else { blake3::hash(digests.concat().as_bytes()).to_hex().to_string() }
}

/// One that is not whole is not believed.
fn known(path: &Path) -> Option<String> {
    let mut digest = String::new();
    disk::open(path).ok()?.take(DIGITS as u64 + 1).read_to_string(&mut digest).ok()?;
    (digest.len() == DIGITS && digest.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digest)
}

/// A new file: nobody reads half of an old one, or has another one written through a link.
fn keep(path: &Path, digest: &str) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path)?;
    }
    File::create_new(path)?.write_all(digest.as_bytes())
}

/// What changes with every change of a file. Most systems set the last of its times, and let nobody
/// else; those of an image that is only read come from its maker: samples of what is in it tell
/// other weights, then.
#[cfg(unix)]
fn identity(bytes: &[u8], data: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(data.ctime().try_into().ok()?);
    SystemTime::now().duration_since(changed).ok().filter(|&age| age > SETTLED)?;
    let (mtime, ctime) = ((data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()));
    let mut hasher = Hasher::new();
    hasher.update(format!("{} {} {} {mtime:?} {ctime:?}", data.dev(), data.ino(), data.size()).as_bytes());
    for sample in bytes.chunks(bytes.len().div_ceil(SAMPLES).max(1)) {
        hasher.update(&sample[..sample.len().min(SAMPLE)]);
    }
    Some(hasher.finalize().to_hex().to_string())
}

/// Elsewhere no such time is to be had.
#[cfg(not(unix))]
fn identity(_: &[u8], _: &Metadata) -> Option<String> {
    None
}
