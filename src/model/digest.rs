//! What a checkpoint's weights are known by: SHA-256, made once for as long as the files stay the same.

use std::fs::{self, Metadata};
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use crate::log;

/// Changes that are as close to each other may leave the same time behind: a file that has just been changed is not known yet.
const SETTLED: Duration = Duration::from_secs(2);

/// The digest of a file, in hexadecimal digits; kept in `memory`, a directory, under what `data` says of the file. `read` is to call its
/// argument with all that is in it.
pub fn of_file(data: &Metadata, memory: &Path, read: impl FnOnce(&mut dyn FnMut(&[u8]))) -> String {
    let digest = || {
        let mut hasher = Sha256::new();
        read(&mut |bytes| hasher.update(bytes));
        hex(hasher)
    };
    let Some(identity) = identity(data) else { return digest() };
    let path = memory.join(format!("{}.sha256", hex(Sha256::new_with_prefix(identity))));
    if let Some(known) = fs::read_to_string(&path).ok().filter(|known| is_digest(known)) {
        return known;
    }
    let digest = digest();
    // Two may write it at once, and the same.
    if let Err(error) = fs::write(&path, &digest) {
        log::warn(format_args!("{}: {error}; the next load digests all weights again", path.display()));
    }
    digest
}

/// Those of several files, as one.
pub fn of_all(mut digests: Vec<String>) -> String {
    if digests.len() == 1 { digests.remove(0) } else { hex(Sha256::new_with_prefix(digests.concat())) }
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One that is not whole is not believed.
fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What changes with every change of a file: the system sets the last of its times, and lets nobody else.
#[cfg(unix)]
fn identity(data: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(data.ctime().try_into().ok()?);
    SystemTime::now().duration_since(changed).ok().filter(|&age| age > SETTLED)?;
    let (mtime, ctime) = ((data.mtime(), data.mtime_nsec()), (data.ctime(), data.ctime_nsec()));
    Some(format!("{} {} {} {mtime:?} {ctime:?}", data.dev(), data.ino(), data.size()))
}

/// Elsewhere no such time is to be had.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<String> {
    None
}
