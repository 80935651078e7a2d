//! What a model's name means: a directory, or the id of a repository that the hub's own cache
//! holds. Nothing is fetched here.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::{Error, Result};

/// What `download_models.sh` fetches, and the arguments that make it do so.
const DOWNLOADS: [(&str, &str); 6] = [
    ("SmolVLM-256M-Instruct", "small"),
    ("SmolVLM-500M-Instruct", "medium"),
    ("SmolVLM-Instruct", "large"),
    ("SmolVLM2-256M-Video-Instruct", "--smolvlm2 small"),
    ("SmolVLM2-500M-Video-Instruct", "--smolvlm2 medium"),
    ("SmolVLM2-2.2B-Instruct", "--smolvlm2 large"),
];

/// Git's SHA-1, in hexadecimal digits.
const COMMIT_DIGITS: usize = 40;

/// Snapshots that a message names, at most.
const SHOWN: usize = 5;

/// The directory that `model` names; an existing one goes before the hub's `owner/name` and
/// `owner/name@revision`.
pub(crate) fn resolve(model: &Path, cache: Option<&Path>) -> Result<PathBuf> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    if model.exists() {
        return Err(Error::not_found(format!("{}: is not a directory", model.display())));
    }
    let missing = format!("{}: no such directory", model.display());
    if let (Some(id), Some(cache)) = (model.to_str().and_then(Id::parse), cache) {
        if let Some(snapshot) = id.find(cache)? {
            return Ok(snapshot);
        }
        // A mistyped path of two parts looks like an id, too; where its first part is there, it is
        // a path.
        if !Path::new(id.owner).is_dir() {
            return Err(Error::not_found(format!(
                "{missing}, and not in the hub's cache {}; \"{}\" fetches it if it is on the hub",
                cache.display(),
                id.download()
            )));
        }
    }
    let download = DOWNLOADS.iter().find(|(name, _)| model.ends_with(Path::new("models").join(name)));
    let hint = download.map(|(_, size)| format!("; \"./download_models.sh {size}\" fetches it")).unwrap_or_default();
    Err(Error::not_found(missing + &hint))
}

/// Where the hub's clients keep what they fetched, as `huggingface_hub` looks for it.
pub(crate) fn cache_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?.join("huggingface"));
    let hub = || Some(expand(path("HF_HOME").or_else(home)?, &variable).join("hub"));
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(path);
    named.map(|named| expand(named, &variable)).or_else(hub)
}

/// `~`, `$NAME` and `${NAME}` as Python's `expanduser` and `expandvars` read them: a shell leaves
/// them where they are quoted, and an
/// `.env` file, a container's settings or a service's never had a shell. What has no value stays.
fn expand(path: PathBuf, variable: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = path.to_str() else { return path };
    let value = |name: &str| variable(name)?.into_string().ok();
    let mut out = String::new();
    let mut rest = text;
    if let Some(behind) = text.strip_prefix('~').filter(|behind| behind.is_empty() || behind.starts_with('/'))
        && let Some(home) = value("HOME").filter(|home| !home.is_empty())
    {
        out.push_str(home.trim_end_matches('/'));
        rest = behind;
    }
    while let Some((before, behind)) = rest.split_once('$') {
        out.push_str(before);
        let (name, after) = match behind.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(braced) => braced,
            None => {
                let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(behind.len());
                behind.split_at(end)
            }
        };
        match value(name) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    PathBuf::from(out + rest)
}

/// What the hub calls a repository's state.
#[derive(Debug, PartialEq)]
struct Id<'a> {
    owner: &'a str,
    name: &'a str,
    /// A branch, a tag or a commit.
    revision: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// `owner/name` or `owner/name@revision` by the hub's and git's rules, which leave no room for
    /// a path that leads elsewhere.
    fn parse(text: &'a str) -> Option<Self> {
        let is_part = |part: &str| {
            let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
            (1..=96).contains(&part.len())
                && part.starts_with(edge)
                && part.ends_with(edge)
                && part.chars().all(|c| edge(c) || c == '-' || c == '.')
                && !part.contains("--")
                && !part.contains("..")
        };
        // Git's own names are longer than any that people give.
        let is_revision = |revision: &str| {
            let part = |part: &str| {
                !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock") && !part.ends_with('.')
            };
            revision.len() <= 200
                && revision.split('/').all(part)
                && !revision.contains("..")
                && !revision.contains(|c: char| c.is_control() || " ~^:?*[\\@".contains(c))
        };
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision).filter(|revision| is_revision(revision)).map(Some)?),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/').filter(|(owner, name)| is_part(owner) && is_part(name))?;
        Some(Self { owner, name, revision })
    }

    /// What fetches it.
    fn download(&self) -> String {
        let revision = self.revision.map(|revision| format!(" --revision {revision}")).unwrap_or_default();
        format!("hf download {}/{}{revision}", self.owner, self.name)
    }

    /// The revision's snapshot, else that of the branch `main`: what was fetched last. Its files
    /// are links into `blobs`.
    fn find(&self, cache: &Path) -> Result<Option<PathBuf>> {
        let repository = cache.join(format!("models--{}--{}", self.owner, self.name));
        let snapshots = repository.join("snapshots");
        // What was fetched by its commit has no reference.
        if let Some(commit) = self.revision.filter(|revision| is_commit(revision)) {
            let snapshot = snapshots.join(commit.to_ascii_lowercase());
            return Ok(Some(snapshot).filter(|snapshot| snapshot.is_dir()));
        }
        let reference = repository.join("refs").join(self.revision.unwrap_or("main"));
        // A branch may be the first part of another one's name.
        if !reference.exists() || reference.is_dir() {
            return match self.revision {
                Some(_) => Ok(None),
                None => self.only(&snapshots),
            };
        }
        let mut commit = String::new();
        // One byte more than a commit and its line end may have.
        let read = disk::open(&reference)?.take(COMMIT_DIGITS as u64 + 2).read_to_string(&mut commit);
        let commit = commit.trim_end();
        if read.is_err() || !is_commit(commit) {
            return Err(Error::invalid_model(format!("{}: is not a commit", reference.display())));
        }
        let snapshot = snapshots.join(commit);
        if !snapshot.is_dir() {
            return Err(Error::not_found(format!(
                "{}: no such directory, though {} names it; \"{}\" fetches it",
                snapshot.display(),
                reference.display(),
                self.download()
            )));
        }
        Ok(Some(snapshot))
    }

    /// The one snapshot that is there, where no branch `main` is; which of several is meant cannot
    /// be known.
    fn only(&self, snapshots: &Path) -> Result<Option<PathBuf>> {
        let entries = snapshots.read_dir().into_iter().flatten();
        let commits = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut commits: Vec<_> = commits.filter(|name| is_commit(name) && snapshots.join(name).is_dir()).collect();
        commits.sort();
        match &commits[..] {
            [] => Ok(None),
            [commit] => Ok(Some(snapshots.join(commit))),
            all => {
                let named: Vec<_> = all.iter().take(SHOWN).map(String::as_str).collect();
                let more = if all.len() > SHOWN { ", ..." } else { "" };
                let id = format!("{}/{}", self.owner, self.name);
                Err(Error::not_found(format!(
                    "{id}: {} snapshots in the hub's cache and no branch main; name one as {id}@COMMIT: {}{more}",
                    all.len(),
                    named.join(", ")
                )))
            }
        }
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
