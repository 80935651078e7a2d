//! Damaged checkpoints: every file of the demo model truncated, with flipped bits, replaced,
//! missing, or saying nonsense.
//!
//! With `SHA256SUMS` each damage is an error that names the file. Without it some cannot be told
//! from another model; even then nothing panics, and no allocation is made because a damaged number
//! asks for it.

#[path = "support/largest.rs"]
mod largest;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use largest::LARGEST;
use serde_json::{Value, json};
use smolvlm::{DTypeKind, Engine, EngineOptions, Error, ErrorKind, ImageView, PixelFormat, Request};

const SUMS: &str = "SHA256SUMS";
const WEIGHTS: &str = "model.safetensors";

/// The allocator's figure belongs to one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// The files that `SHA256SUMS` names.
fn names() -> Vec<String> {
    let sums = std::fs::read_to_string(demo().join(SUMS)).unwrap();
    let names: Vec<String> = sums.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect();
    assert!(names.len() >= 7, "{names:?}");
    names
}

/// A copy of the demo model in a folder of its own, in which single files are replaced.
struct Copy {
    dir: PathBuf,
    sums: bool,
}

impl Copy {
    fn new(test: &str, sums: bool) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("damage-{test}"));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("onnx")).unwrap();
        let copy = Self { dir, sums };
        copy.files().iter().for_each(|name| copy.restore(name));
        copy
    }

    fn files(&self) -> Vec<String> {
        let mut names = names();
        if self.sums {
            names.push(SUMS.into());
        } else {
            // Only their digests are looked at here; tests/onnx.rs opens them.
            names.retain(|name| !name.starts_with("onnx/"));
        }
        names
    }

    fn original(&self, name: &str) -> Vec<u8> {
        std::fs::read(demo().join(name)).unwrap()
    }

    fn restore(&self, name: &str) {
        std::fs::copy(demo().join(name), self.dir.join(name)).unwrap();
    }

    /// Loads with `name` holding `bytes` (`None`: missing), and asks if it loads; the file is
    /// restored.
    fn load_with(&self, name: &str, bytes: Option<&[u8]>, what: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let largest_file = self.original(WEIGHTS).len().max(bytes.map_or(0, <[u8]>::len));
        LARGEST.store(0, Ordering::Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let engine = Engine::load(&self.dir, &options())?;
            let allocated = LARGEST.load(Ordering::Relaxed);
            let _ = ask(&engine);
            Ok::<_, Error>(allocated)
        }));
        self.restore(name);
        let outcome = outcome.unwrap_or_else(|_| panic!("{name}, {what}: a panic"));
        let allocated = outcome.as_ref().copied().unwrap_or_else(|_| LARGEST.load(Ordering::Relaxed));
        assert!((1..=2 * largest_file).contains(&allocated), "{name}, {what}: one allocation of {allocated} bytes");
        if let Err(error) = &outcome {
            assert!(!error.message().contains('\n'), "{name}, {what}: {error}");
        }
        outcome.map(|_| ())
    }
}

fn options() -> EngineOptions {
    EngineOptions { num_threads: 1, ..Default::default() }
}

fn ask(engine: &Engine) -> Result<String, Error> {
    let pixels = [200; 3 * 16 * 16];
    let images = [ImageView::raw(&pixels, 0, 16, 16, PixelFormat::Rgb8)?];
    let request = Request { split: false, max_new_tokens: 2, ..Request::new("What is this?", &images) };
    Ok(engine.ask(&request)?.text)
}

/// Every kind of damage to the bytes of one file, each with its name.
fn damages(copy: &Copy, name: &str, flips: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let bytes = copy.original(name);
    let mut all = vec![("missing".to_owned(), None)];
    for i in 0..20 {
        let length = bytes.len() * i / 20;
        all.push((format!("cut to {length} bytes"), Some(bytes[..length].to_vec())));
    }
    for i in 0..flips {
        let (at, bit) = ((bytes.len() - 1) * i / (flips - 1), i % 8);
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        all.push((format!("bit {bit} of byte {at} flipped"), Some(flipped)));
    }
    for other in copy.files().iter().filter(|other| *other != name) {
        all.push((format!("replaced by {other}"), Some(copy.original(other))));
    }
    all
}

/// The text of a `SHA256SUMS`, its digests in lower case.
fn digests(sums: &[u8]) -> String {
    let text = String::from_utf8_lossy(sums).into_owned();
    let lower = |line: &str| match line.split_once("  ") {
        Some((digest, name)) => format!("{}  {name}", digest.to_ascii_lowercase()),
        None => line.to_owned(),
    };
    text.split('\n').map(lower).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_copy_loads() {
    let _alone = alone();
    for sums in [true, false] {
        let copy = Copy::new("none", sums);
        let engine = Engine::load(&copy.dir, &options()).unwrap();
        ask(&engine).unwrap();
    }
}

#[test]
fn with_checksums_every_damage_is_an_error_that_names_the_file() {
    let _alone = alone();
    let copy = Copy::new("sums", true);
    for name in copy.files() {
        for (what, bytes) in damages(&copy, &name, 20) {
            let unprotected = name == SUMS && bytes.is_none();
            // Upper-case digits of a digest are the same digits.
            let same = name == SUMS && bytes.as_ref().is_some_and(|b| digests(b) == digests(&copy.original(&name)));
            match copy.load_with(&name, bytes.as_deref(), &what) {
                Ok(()) => assert!(unprotected || same, "{name}, {what}: not found"),
                Err(error) => {
                    assert!(error.message().contains(&name), "{name}, {what}: {error}");
                    assert!(!unprotected && !same, "{name}, {what}: {error}");
                }
            }
        }
    }
}

#[test]
fn without_checksums_no_damage_is_a_panic_or_a_large_allocation() {
    let _alone = alone();
    let copy = Copy::new("plain", false);
    // Each of these is needed, and none can be cut, or be another file, and still make sense.
    let solid = ["config.json", "preprocessor_config.json", "tokenizer.json", WEIGHTS];
    for name in copy.files() {
        for (what, bytes) in damages(&copy, &name, 60) {
            let must_fail = solid.contains(&name.as_str()) && !what.contains("flipped");
            match copy.load_with(&name, bytes.as_deref(), &what) {
                Ok(()) => assert!(!must_fail, "{name}, {what}: not found"),
                Err(error) => assert!(error.message().contains("damage-plain"), "{name}, {what}: {error}"),
            }
        }
    }
}

/// JSON pointers to every value that holds no other, at most `most` of them, evenly spread.
fn leaves(value: &Value, most: usize) -> Vec<String> {
    fn walk(value: &Value, at: String, out: &mut Vec<String>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                map.iter().for_each(|(k, v)| walk(v, format!("{at}/{}", k.replace('~', "~0").replace('/', "~1")), out));
            }
            Value::Array(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(i, v)| walk(v, format!("{at}/{i}"), out));
            }
            _ => out.push(at),
        }
    }
    let mut all = Vec::new();
    walk(value, String::new(), &mut all);
    let count = all.len().min(most);
    (0..count).map(|i| all[i * all.len() / count].clone()).collect()
}

/// What a value is replaced by.
fn nonsense() -> Vec<Value> {
    vec![
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(1 << 24),
        json!(4_294_967_296u64),
        json!(u64::MAX),
        json!(1e300),
        json!("<image>"),
        json!(null),
        json!([]),
    ]
}

#[test]
fn nonsense_in_a_json_file_is_no_panic_and_no_large_allocation() {
    let _alone = alone();
    let copy = Copy::new("json", false);
    for name in copy.files().iter().filter(|name| name.ends_with(".json")) {
        let original: Value = serde_json::from_slice(&copy.original(name)).unwrap();
        for leaf in leaves(&original, 60) {
            for new in nonsense() {
                let mut value = original.clone();
                *value.pointer_mut(&leaf).unwrap() = new.clone();
                let bytes = serde_json::to_vec(&value).unwrap();
                let _ = copy.load_with(name, Some(&bytes), &format!("{leaf} is {new}"));
            }
        }
    }
}

#[test]
fn files_that_contradict_each_other_are_errors_that_name_both_values() {
    let _alone = alone();
    let copy = Copy::new("contradictions", false);
    let change = |name: &str, pointer: &str, new: Value| {
        let mut value: Value = serde_json::from_slice(&copy.original(name)).unwrap();
        *value.pointer_mut(pointer).unwrap() = new;
        copy.load_with(name, Some(&serde_json::to_vec(&value).unwrap()), pointer).unwrap_err().message().to_owned()
    };
    let message = change("config.json", "/image_token_id", json!(40));
    assert!(
        message.contains("tokenizer.json: <image> is token") && message.ends_with("image_token_id is 40"),
        "{message}"
    );
    let message = change("config.json", "/vision_config/patch_size", json!(97));
    assert!(message.contains("config.json: vision_config: patch_size is larger than image_size"), "{message}");
    let message = change("preprocessor_config.json", "/size/longest_edge", json!(70_000));
    assert!(message.contains("preprocessor_config.json: size.longest_edge: 70000"), "{message}");
    let message = change("preprocessor_config.json", "/image_std/1", json!(0));
    assert!(message.contains("preprocessor_config.json: image_std: 0"), "{message}");
}

#[test]
fn a_cache_that_no_number_of_bytes_can_say_is_too_large() {
    let _alone = alone();
    let copy = Copy::new("vast", false);
    let mut value: Value = serde_json::from_slice(&copy.original("config.json")).unwrap();
    for name in ["num_hidden_layers", "num_key_value_heads", "num_attention_heads", "head_dim"] {
        value["text_config"][name] = json!(1 << 24);
    }
    std::fs::write(copy.dir.join("config.json"), serde_json::to_vec(&value).unwrap()).unwrap();
    for dtype in [DTypeKind::F32, DTypeKind::Bf16, DTypeKind::Int8] {
        let load = |max_memory_bytes| {
            Engine::load(&copy.dir, &EngineOptions { dtype, max_memory_bytes, ..options() }).err().unwrap()
        };
        assert_eq!(load(0).kind(), ErrorKind::InvalidModel);
        assert_eq!(load(u64::MAX - 1).kind(), ErrorKind::OutOfMemory);
    }
}

#[cfg(unix)]
#[test]
fn a_device_in_place_of_a_file_is_refused_not_read() {
    let _alone = alone();
    let copy = Copy::new("device", true);
    for name in copy.files().iter().filter(|name| *name != SUMS) {
        let path = copy.dir.join(name);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = Engine::load(&copy.dir, &options()).err().unwrap();
        assert!(error.message().contains(&format!("{name}: is not a file")), "{error}");
        std::fs::remove_file(&path).unwrap();
        copy.restore(name);
    }
}

#[test]
fn nonsense_in_the_header_of_the_weights_is_an_error_that_names_the_file() {
    let _alone = alone();
    let copy = Copy::new("header", false);
    let bytes = copy.original(WEIGHTS);
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let original: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let fails = |bytes: &[u8], what: &str| match copy.load_with(WEIGHTS, Some(bytes), what) {
        Ok(()) => panic!("{what}: not found"),
        Err(error) => assert!(error.message().contains(WEIGHTS), "{what}: {error}"),
    };

    for wrong in [0, 1, length - 1, length + 1, bytes.len(), 100_000_000, 1 << 40, usize::MAX] {
        let mut changed = bytes.clone();
        changed[..8].copy_from_slice(&(wrong as u64).to_le_bytes());
        fails(&changed, &format!("a header of {wrong} bytes"));
    }
    for leaf in leaves(&original, 60).iter().filter(|leaf| !leaf.starts_with("/__metadata__")) {
        for new in nonsense() {
            let mut value = original.clone();
            let old = std::mem::replace(value.pointer_mut(leaf).unwrap(), new.clone());
            if old == new {
                continue;
            }
            let header = serde_json::to_vec(&value).unwrap();
            let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[8 + length..]].concat();
            fails(&file, &format!("{leaf} is {new}, not {old}"));
        }
    }
}
