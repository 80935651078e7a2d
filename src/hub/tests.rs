//! What names mean, in caches that are made here.

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
        assert_eq!(crate::files::ModelFiles::open(&found).unwrap().read_text("config.json").unwrap(), "text");
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
    for text in [&b""[..], b"elsewhere", b"..", b"../../..", b"/", b"\xff\xfe", long.as_bytes(), padded.as_bytes()] {
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
    let wrong = ["", "a", "/", "a/", "/b", "a/b/c", "../b", "a/..", "./b", "a/.b", "a/-b", "a--b/c", "a/b..c", "a/b c"];
    for id in wrong.into_iter().chain(["a\\b/c", "a/é", &long]) {
        assert_eq!(Id::parse(id), None, "{id}");
    }
}

#[test]
fn the_cache_is_where_the_hub_s_clients_have_it() {
    for (set, expected) in [
        (&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/d"), ("HF_HOME", "/h"), ("HOME", "/u")][..], Some("/c")),
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
