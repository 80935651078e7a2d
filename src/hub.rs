//! What a model's name means: a directory, or the id of a repository that the hub's own cache holds. Nothing is fetched here.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

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

/// The directory that `model` names; an existing one goes before the hub's `owner/name`.
pub(crate) fn resolve(model: &Path, cache: Option<&Path>) -> Result<PathBuf> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    if model.exists() {
        return Err(Error::not_found(format!("{}: is not a directory", model.display())));
    }
    let missing = format!("{}: no such directory", model.display());
    if let (Some((owner, name)), Some(cache)) = (model.to_str().and_then(parse_id), cache) {
        if let Some(snapshot) = find(owner, name, cache)? {
            return Ok(snapshot);
        }
        // A mistyped path of two parts looks like an id, too; where its first part is there, it is a path.
        if !Path::new(owner).is_dir() {
            return Err(Error::not_found(format!(
                "{missing}, and not in the hub's cache {}; \"hf download {owner}/{name}\" fetches it if it is on the hub",
                cache.display()
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
    path("HF_HUB_CACHE").or_else(|| Some(path("HF_HOME").or_else(home)?.join("hub")))
}

/// `owner/name` by the hub's rules, which leave no room for a path that leads elsewhere.
fn parse_id(text: &str) -> Option<(&str, &str)> {
    let is_part = |part: &str| {
        let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (1..=96).contains(&part.len())
            && part.starts_with(edge)
            && part.ends_with(edge)
            && part.chars().all(|c| edge(c) || c == '-' || c == '.')
            && !part.contains("--")
            && !part.contains("..")
    };
    text.split_once('/').filter(|(owner, name)| is_part(owner) && is_part(name))
}

/// The snapshot of the branch `main`: what was fetched last. Its files are links into `blobs`.
fn find(owner: &str, name: &str, cache: &Path) -> Result<Option<PathBuf>> {
    let repository = cache.join(format!("models--{owner}--{name}"));
    let reference = repository.join("refs/main");
    if !reference.exists() {
        return Ok(None);
    }
    let mut commit = String::new();
    // One byte more than a commit and its line end may have.
    let read = files::open(&reference)?.take(COMMIT_DIGITS as u64 + 2).read_to_string(&mut commit);
    let commit = commit.trim_end();
    if read.is_err() || commit.len() != COMMIT_DIGITS || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::invalid_model(format!("{}: is not a commit", reference.display())));
    }
    let snapshot = repository.join("snapshots").join(commit);
    if !snapshot.is_dir() {
        return Err(Error::not_found(format!(
            "{}: no such directory, though {} names it; \"hf download {owner}/{name}\" fetches it",
            snapshot.display(),
            reference.display()
        )));
    }
    Ok(Some(snapshot))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::ErrorKind;
    use crate::smolvlm::ModelSize;

    const ID: &str = "owner/some.model-1";
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with one repository, gone with the value.
    struct Cache(PathBuf);

    impl Cache {
        fn new(test: &str) -> Self {
            let cache = Self(std::env::temp_dir().join(format!("smolvlm-hub-{test}-{}", std::process::id())));
            let _ = fs::remove_dir_all(&cache.0);
            for folder in ["refs", "blobs", "snapshots"] {
                fs::create_dir_all(cache.repository().join(folder)).unwrap();
            }
            cache
        }

        fn repository(&self) -> PathBuf {
            self.0.join("models--owner--some.model-1")
        }

        fn refer(&self, text: &[u8]) {
            fs::write(self.repository().join("refs/main"), text).unwrap();
        }

        fn resolve(&self, model: &str) -> Result<PathBuf> {
            resolve(Path::new(model), Some(&self.0))
        }
    }

    impl Drop for Cache {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_id_is_its_snapshot_with_links_into_blobs() {
        let cache = Cache::new("snapshot");
        let snapshot = cache.repository().join("snapshots").join(COMMIT);
        fs::create_dir(&snapshot).unwrap();
        fs::write(cache.repository().join("blobs/abc"), "text").unwrap();
        std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("config.json")).unwrap();
        for text in [COMMIT.to_owned(), format!("{COMMIT}\n")] {
            cache.refer(text.as_bytes());
            let found = cache.resolve(ID).unwrap();
            assert_eq!(found, snapshot);
            assert_eq!(files::ModelFiles::open(&found).unwrap().read_text("config.json").unwrap(), "text");
        }
    }

    #[test]
    fn a_directory_goes_first() {
        let cache = Cache::new("directory");
        cache.refer(b"nonsense that is not looked at");
        let dir = cache.0.join("owner/some.model-1");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(cache.resolve(dir.to_str().unwrap()).unwrap(), dir);
    }

    #[test]
    fn a_reference_leads_nowhere_else() {
        let cache = Cache::new("reference");
        fs::create_dir(cache.repository().join("snapshots/elsewhere")).unwrap();
        let long = COMMIT.repeat(1000);
        let padded = format!("{}/../elsewhere", &COMMIT[..27]);
        assert_eq!(padded.len(), COMMIT_DIGITS);
        for text in [&b""[..], b"elsewhere", b"..", b"../../..", b"/", b"\xff\xfe", long.as_bytes(), padded.as_bytes()]
        {
            cache.refer(text);
            let error = cache.resolve(ID).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
            assert!(error.message().ends_with("refs/main: is not a commit"), "{error}");
        }
        cache.refer(COMMIT.as_bytes());
        let error = cache.resolve(ID).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains(COMMIT), "{error}");
    }

    #[test]
    fn what_is_not_there_says_what_fetches_it() {
        let cache = Cache::new("missing");
        let error = cache.resolve(ID).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let place = cache.0.display();
        assert_eq!(
            error.message(),
            format!(
                "{ID}: no such directory, and not in the hub's cache {place}; \
                 \"hf download {ID}\" fetches it if it is on the hub"
            )
        );
        for (path, expected) in [
            ("models/SmolVLM-Instruct", "; \"./download_models.sh large\" fetches it"),
            ("/nowhere/models/SmolVLM2-2.2B-Instruct", "; \"./download_models.sh --smolvlm2 large\" fetches it"),
            ("models/another", ""),
            ("one", ""),
        ] {
            assert_eq!(cache.resolve(path).unwrap_err().message(), format!("{path}: no such directory{expected}"));
        }
        assert!(resolve(Path::new(ID), None).is_err());
    }

    #[test]
    fn a_file_is_not_a_directory() {
        let error = Cache::new("file").resolve("Cargo.toml").unwrap_err();
        assert_eq!(error.message(), "Cargo.toml: is not a directory");
    }

    #[test]
    fn ids_follow_the_hub_s_rules() {
        assert_eq!(parse_id("HuggingFaceTB/SmolVLM2-2.2B-Instruct"), Some(("HuggingFaceTB", "SmolVLM2-2.2B-Instruct")));
        let long = format!("a/{}", "b".repeat(97));
        let wrong =
            ["", "a", "/", "a/", "/b", "a/b/c", "../b", "a/..", "./b", "a/.b", "a/-b", "a--b/c", "a/b..c", "a/b c"];
        for id in wrong.into_iter().chain(["a\\b/c", "a/é", &long]) {
            assert_eq!(parse_id(id), None, "{id}");
        }
    }

    #[test]
    fn the_cache_is_where_the_hub_s_clients_have_it() {
        for (set, expected) in [
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("HOME", "/u")][..], Some("/c")),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h"), ("HOME", "/u")], Some("/h/hub")),
            (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/u")], Some("/x/huggingface/hub")),
            (&[("HOME", "/u")], Some("/u/.cache/huggingface/hub")),
            (&[], None),
        ] {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
            assert_eq!(cache_dir(variable), expected.map(PathBuf::from), "{set:?}");
        }
    }

    #[test]
    fn the_script_fetches_every_size_under_its_name() {
        let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/download_models.sh")).unwrap();
        for (name, arguments) in DOWNLOADS {
            let size = arguments.rsplit(' ').next().unwrap();
            assert!(script.contains(name), "{name}");
            if !arguments.starts_with("--") {
                assert_eq!(size.parse::<ModelSize>().unwrap().checkpoint(), name);
            }
        }
    }
}
