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

/// Snapshots that a message names, at most.
const SHOWN: usize = 5;

/// The directory that `model` names; an existing one goes before the hub's `owner/name` and `owner/name@revision`.
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
        // A mistyped path of two parts looks like an id, too; where its first part is there, it is a path.
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

/// `~`, `$NAME` and `${NAME}` as Python's `expanduser` and `expandvars` read them: a shell leaves them where they are quoted, and an
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
    /// `owner/name` or `owner/name@revision` by the hub's and git's rules, which leave no room for a path that leads elsewhere.
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

    /// The revision's snapshot, else that of the branch `main`: what was fetched last. Its files are links into `blobs`.
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
        let read = files::open(&reference)?.take(COMMIT_DIGITS as u64 + 2).read_to_string(&mut commit);
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

    /// The one snapshot that is there, where no branch `main` is; which of several is meant cannot be known.
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

        fn snapshot(&self, commit: &str) -> PathBuf {
            let snapshot = self.repository().join("snapshots").join(commit);
            fs::create_dir_all(&snapshot).unwrap();
            snapshot
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
    fn a_commit_needs_no_reference() {
        let cache = Cache::new("commit");
        fs::remove_dir(cache.repository().join("refs")).unwrap();
        let one = cache.snapshot(COMMIT);
        // Neither is a snapshot: a file, and another folder.
        fs::write(cache.repository().join("snapshots").join("f".repeat(COMMIT_DIGITS)), "").unwrap();
        cache.snapshot("elsewhere");
        assert_eq!(cache.resolve(ID).unwrap(), one);
        assert_eq!(cache.resolve(&format!("{ID}@{COMMIT}")).unwrap(), one);
        assert_eq!(cache.resolve(&format!("{ID}@{}", COMMIT.to_uppercase())).unwrap(), one);
        let other = COMMIT.replace('0', "a");
        let error = cache.resolve(&format!("{ID}@{other}")).unwrap_err();
        assert!(error.message().contains(&format!("hf download {ID} --revision {other}")), "{error}");
        // Which of two is meant cannot be known, until a branch says so.
        let two = cache.snapshot(&other);
        let error = cache.resolve(ID).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        for part in ["2 snapshots", "no branch main", &format!("{ID}@COMMIT"), COMMIT, &other] {
            assert!(error.message().contains(part), "{error}");
        }
        fs::create_dir(cache.repository().join("refs")).unwrap();
        cache.refer(other.as_bytes());
        assert_eq!(cache.resolve(ID).unwrap(), two);
    }

    #[test]
    fn a_branch_and_a_tag_are_what_their_reference_says() {
        let cache = Cache::new("revision");
        let (main, other) = (cache.snapshot(COMMIT), cache.snapshot(&COMMIT.replace('0', "a")));
        cache.refer(COMMIT.as_bytes());
        fs::create_dir_all(cache.repository().join("refs/refs/pr")).unwrap();
        for revision in ["v1.0", "refs/pr/1"] {
            fs::write(cache.repository().join("refs").join(revision), COMMIT.replace('0', "a")).unwrap();
            assert_eq!(cache.resolve(&format!("{ID}@{revision}")).unwrap(), other);
        }
        assert_eq!(cache.resolve(&format!("{ID}@main")).unwrap(), main);
        // Nothing else is taken for a revision that is not there; nor is a folder of references.
        for revision in ["v2.0", "refs", "refs/pr"] {
            let error = cache.resolve(&format!("{ID}@{revision}")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.message().contains(&format!("hf download {ID} --revision {revision}")), "{error}");
        }
        fs::write(cache.repository().join("refs/v1.0"), "../elsewhere").unwrap();
        let error = cache.resolve(&format!("{ID}@v1.0")).unwrap_err();
        assert!(error.message().ends_with("refs/v1.0: is not a commit"), "{error}");
        let dir = cache.0.join("owner/name@v1.0");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(cache.resolve(dir.to_str().unwrap()).unwrap(), dir);
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
        let id = |revision| Some(Id { owner: "HuggingFaceTB", name: "SmolVLM2-2.2B-Instruct", revision });
        assert_eq!(Id::parse("HuggingFaceTB/SmolVLM2-2.2B-Instruct"), id(None));
        for revision in ["main", "v1.0", "refs/pr/1", "feature/some-thing_2", COMMIT] {
            assert_eq!(Id::parse(&format!("HuggingFaceTB/SmolVLM2-2.2B-Instruct@{revision}")), id(Some(revision)));
        }
        let long_revision = "a".repeat(201);
        for revision in [
            "",
            "/",
            "..",
            "a/../b",
            "/etc",
            "a/",
            ".a",
            "a/.b",
            "a.lock",
            "a..b",
            "a b",
            "a\\b",
            "a@b",
            "a:b",
            "a\0",
            &long_revision,
        ] {
            assert_eq!(Id::parse(&format!("owner/name@{revision}")), None, "{revision}");
        }
        let long = format!("a/{}", "b".repeat(97));
        let wrong =
            ["", "a", "/", "a/", "/b", "a/b/c", "../b", "a/..", "./b", "a/.b", "a/-b", "a--b/c", "a/b..c", "a/b c"];
        for id in wrong.into_iter().chain(["a\\b/c", "a/é", &long]) {
            assert_eq!(Id::parse(id), None, "{id}");
        }
    }

    #[test]
    fn the_cache_is_where_the_hub_s_clients_have_it() {
        for (set, expected) in [
            (
                &[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/d"), ("HF_HOME", "/h"), ("HOME", "/u")][..],
                Some("/c"),
            ),
            (&[("HUGGINGFACE_HUB_CACHE", "/d"), ("HF_HOME", "/h"), ("HOME", "/u")], Some("/d")),
            (&[("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "/h"), ("HOME", "/u")], Some("/h/hub")),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/u")], Some("/h/hub")),
            (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/u")], Some("/x/huggingface/hub")),
            (&[("HOME", "/u")], Some("/u/.cache/huggingface/hub")),
            // As in Python, where they are quoted.
            (&[("HF_HUB_CACHE", "~/c"), ("HOME", "/u")], Some("/u/c")),
            (&[("HUGGINGFACE_HUB_CACHE", "~"), ("HOME", "/u/")], Some("/u")),
            (&[("HF_HOME", "~/h"), ("HOME", "/u")], Some("/u/h/hub")),
            (&[("XDG_CACHE_HOME", "~/x"), ("HOME", "/u")], Some("/u/x/huggingface/hub")),
            (&[("HF_HOME", "$DATA/${WHO}_1/h"), ("DATA", "/d"), ("WHO", "me")], Some("/d/me_1/h/hub")),
            (&[("HF_HUB_CACHE", "/a$NONE/${NONE}/b${/$"), ("HOME", "/u")], Some("/a$NONE/${NONE}/b${/$")),
            (&[("HF_HUB_CACHE", "~other/c"), ("HOME", "/u")], Some("~other/c")),
            (&[("HF_HUB_CACHE", "/c/~"), ("HOME", "/u")], Some("/c/~")),
            (&[("HF_HUB_CACHE", "~/c")], Some("~/c")),
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
