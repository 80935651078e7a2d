//! Pictures named by `file://` URLs: regular files within the directories that the server was
//! started with.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use percent_encoding::percent_decode_str;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, statat};

/// The file that a URL names, at most `most` bytes of it; `rest` is what follows `file:`.
pub fn read(rest: &str, dirs: &[PathBuf], most: usize) -> Result<Bytes, String> {
    if dirs.is_empty() {
        return Err(
            "this server opens no files; start it with --allow-image-dir DIR, or send data:image/jpeg;base64,..."
                .into(),
        );
    }
    let path = path(rest)?;
    let outside = || "not within a directory of --allow-image-dir".to_owned();
    // Of what is elsewhere, not even the absence is told.
    let real = path.canonicalize().map_err(|e| if is_inside(&path, dirs) { e.to_string() } else { outside() })?;
    let (dir, inside) = dirs.iter().find_map(|dir| Some((dir, real.strip_prefix(dir).ok()?))).ok_or_else(outside)?;
    let file = open(dir, inside)?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let too_large = || format!("at most {most} bytes accepted");
    if size > most as u64 {
        return Err(format!("{size} bytes, {}", too_large()));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    // It may grow while it is read.
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > most {
        return Err(too_large());
    }
    Ok(bytes.into())
}

/// Whether what is missing is missing within the directories: no link on the way to it leads out of
/// them, or nowhere.
fn is_inside(path: &Path, dirs: &[PathBuf]) -> bool {
    let there = path.ancestors().find(|part| part.symlink_metadata().is_ok());
    there.and_then(|part| part.canonicalize().ok()).is_some_and(|real| dirs.iter().any(|dir| real.starts_with(dir)))
}

fn path(rest: &str) -> Result<PathBuf, String> {
    let form = || "a file URL is file:///PATH, with ? and # as %3F and %23".to_owned();
    let path = match rest.strip_prefix("//") {
        Some(host_and_path) => {
            let (host, _) = host_and_path.split_once('/').ok_or_else(form)?;
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err("a file of another host; this server opens its own only, as file:///PATH".into());
            }
            &host_and_path[host.len()..]
        }
        None => rest,
    };
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    if !path.starts_with('/') || path.contains(['?', '#']) || bytes.contains(&0) {
        return Err(form());
    }
    Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
}

/// Follows no link on its way: whoever exchanges a part of the path after it was looked at gets an
/// error, and no file.
fn open(dir: &Path, inside: &Path) -> Result<File, String> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, dir, directory, Mode::empty()).map_err(|e| e.to_string())?;
    let name = inside.file_name().ok_or("a directory, not a regular file")?;
    for part in inside.parent().into_iter().flat_map(Path::components) {
        at = openat(&at, part.as_os_str(), directory | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| e.to_string())?;
    }
    // Before it is opened, since opening alone makes some devices act; and again, as what is open
    // now.
    let kind = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| e.to_string())?.st_mode;
    if FileType::from_raw_mode(kind) != FileType::RegularFile {
        return Err("not a regular file".into());
    }
    // A pipe that has come to its place would have to be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(&at, name, flags, Mode::empty()).map_err(|e| e.to_string())?);
    let is_file = file.metadata().map_err(|e| e.to_string())?.is_file();
    if is_file { Ok(file) } else { Err("not a regular file".into()) }
}
