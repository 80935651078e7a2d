//! Packed weights that are kept on disk: used where they are whole, and packed anew where not one
//! byte of them can be believed.
#![cfg(feature = "candle")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once};
use std::thread::sleep;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions};
use smolvlm::{BackendKind, DTypeKind, Engine, EngineOptions, ErrorKind, ImageView, Request, log};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A directory that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        static LISTEN: Once = Once::new();
        LISTEN.call_once(|| {
            log::set(Some(Box::new(|level, message| SAID.lock().unwrap().push(format!("{level:?}: {message}")))));
        });
        let folder = Self(std::env::temp_dir().join(format!("smolvlm-packed-{test}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&folder.0);
        folder
    }

    /// What loading with this directory gives, and what is said of its files meanwhile.
    fn load(&self, model: &Path, dtype: DTypeKind) -> (Vec<u32>, Vec<String>) {
        let options = EngineOptions { dtype, packed_cache_dir: Some(self.0.clone()), ..Default::default() };
        let engine = Engine::load(model, &options).unwrap();
        let place = self.0.display().to_string();
        let mut said = SAID.lock().unwrap();
        let (of_us, others) = said.drain(..).partition(|message| message.contains(&place));
        *said = others;
        (answer(&engine), of_us)
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&self.0).unwrap().map(|file| file.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == extension));
        files
    }

    fn packed(&self) -> PathBuf {
        let [file] = &self.files("packed")[..] else { panic!("{:?}", self.files("packed")) };
        file.clone()
    }
}

/// A copy of the demo's checkpoint, which may change.
fn demo(test: &str) -> Folder {
    let copy = Folder::new(test);
    fs::create_dir_all(&copy.0).unwrap();
    for file in fs::read_dir(DEMO).unwrap().map(Result::unwrap) {
        if file.path().is_file() && file.file_name() != "SHA256SUMS" {
            fs::copy(file.path(), copy.0.join(file.file_name())).unwrap();
        }
    }
    copy
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn answer(engine: &Engine) -> Vec<u32> {
    let picture = image::open(Path::new(DEMO).join("test_image.jpg")).unwrap();
    let images = [ImageView::decoded(&picture)];
    let request = Request { max_new_tokens: 20, ..Request::new("What objects are in this image?", &images) };
    engine.ask(&request).unwrap().token_ids
}

#[track_caller]
fn assert_said(said: &[String], what: &str) {
    assert!(said.iter().any(|message| message.contains(what)), "{what}: {said:?}");
}

#[test]
fn a_second_load_takes_what_the_first_one_kept() {
    for dtype in [DTypeKind::Bf16, DTypeKind::Int8, DTypeKind::Int4] {
        let folder = Folder::new(dtype.name());
        let plain = Engine::load(Path::new(DEMO), &EngineOptions { dtype, ..Default::default() }).unwrap();
        let (first, said) = folder.load(Path::new(DEMO), dtype);
        assert_said(&said, "packed weights written");
        let (kept, name) = (fs::read(folder.packed()).unwrap(), folder.packed());
        assert!(name.to_str().unwrap().contains(dtype.name()));
        let (second, said) = folder.load(Path::new(DEMO), dtype);
        assert_said(&said, ".packed: packed weights");
        assert!(!said.iter().any(|message| message.contains("written")), "{said:?}");
        assert_eq!((&first, &second), (&answer(&plain), &first));
        assert_eq!(fs::read(folder.packed()).unwrap(), kept);
        assert_eq!(folder.files("tmp"), [] as [PathBuf; 0]);
    }
}

#[test]
fn whatever_is_wrong_with_a_file_it_is_made_anew() {
    let folder = Folder::new("wrong");
    let (right, _) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    let (path, whole) = (folder.packed(), fs::read(folder.packed()).unwrap());
    let mut wrong: Vec<Vec<u8>> =
        [0, 1, 63, 64, 100, 128, 1000, whole.len() / 2, whole.len() - 1].map(|size| whole[..size].to_vec()).into();
    // One bit: of the header, of the first array's size, of its digest, of itself; in the middle,
    // and in the last array.
    for byte in [3, 64, 64 + 20, 128, whole.len() / 2, whole.len() - 64] {
        let mut damaged = whole.clone();
        damaged[byte] ^= 16;
        wrong.push(damaged);
    }
    // Sizes that no file has, and arrays that have changed places.
    let mut vast = whole.clone();
    vast[64..72].fill(0xff);
    wrong.push(vast);
    let mut shifted = whole.clone();
    shifted[64..].rotate_left(64);
    wrong.push(shifted);
    for (i, wrong) in wrong.iter().enumerate() {
        fs::write(&path, wrong).unwrap();
        let (ours, said) = folder.load(Path::new(DEMO), DTypeKind::Int8);
        assert_said(&said, "weights are packed anew");
        assert_said(&said, "packed weights written");
        assert_eq!(ours, right, "{i}");
        assert!(fs::read(&path).unwrap() == whole, "{i}");
    }
}

#[test]
fn a_file_of_another_precision_is_not_taken() {
    let folder = Folder::new("another");
    let (right, _) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    let int8 = folder.packed();
    folder.load(Path::new(DEMO), DTypeKind::Bf16);
    let bf16 = folder.files("packed").into_iter().find(|file| *file != int8).unwrap();
    fs::copy(bf16, &int8).unwrap();
    let (ours, said) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    assert_said(&said, "weights are packed anew");
    assert_eq!(ours, right);
}

/// The patch embedding has the normalisation in it, which is no part of the weights.
#[test]
fn another_normalisation_makes_other_packed_weights() {
    let (folder, model) = (Folder::new("normalised"), demo("normalised-model"));
    let features = |dir: Option<PathBuf>| {
        let files = ModelFiles::open(&model.0).unwrap();
        let config = ModelConfig::load(&files).unwrap();
        let images = ImageConfig::load(&files, &config).unwrap();
        let options = EngineOptions { dtype: DTypeKind::Int8, packed_cache_dir: dir, ..Default::default() };
        let backend = CandleBackend::load(&files, &config, &images, &options).unwrap();
        let picture = image::open(Path::new(DEMO).join("test_image.jpg")).unwrap().to_rgb8();
        let (tile_size, longest_edge) = (images.tile_size, images.tile_size);
        let options = TileOptions { tile_size, longest_edge, split: false, threads: 1 };
        let tiles = preprocess::tiles(&picture, &options, &mut || false).unwrap().unwrap();
        backend.vision_hidden_states(&tiles).unwrap()
    };
    let before = features(Some(folder.0.clone()));
    assert!(before == features(None));
    let path = model.0.join("preprocessor_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["image_mean"] = serde_json::json!([0.2, 0.3, 0.4]);
    fs::write(&path, json.to_string()).unwrap();
    for _ in 0..2 {
        let after = features(Some(folder.0.clone()));
        assert!(after != before && after == features(None));
    }
}

/// The age from which on a file's digest is remembered.
const SETTLED: Duration = Duration::from_millis(2100);

#[test]
fn a_checkpoint_that_changes_in_place_is_another() {
    let (folder, model) = (Folder::new("changed"), demo("changed-model"));
    let weights = model.0.join("model.safetensors");
    sleep(SETTLED);
    folder.load(&model.0, DTypeKind::Int8);
    assert_eq!((folder.files("packed").len(), folder.files("blake3").len()), (1, usize::from(cfg!(unix))));
    let before = folder.packed();
    let (mut bytes, modified) = (fs::read(&weights).unwrap(), weights.metadata().unwrap().modified().unwrap());
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    // The same size, and the same time of the last change.
    fs::write(&weights, bytes).unwrap();
    fs::File::options().write(true).open(&weights).unwrap().set_modified(modified).unwrap();
    sleep(SETTLED);
    let (_, said) = folder.load(&model.0, DTypeKind::Int8);
    assert_said(&said, "packed weights written");
    let after = folder.files("packed").into_iter().find(|file| *file != before).unwrap();

    // All arrays of the one have the names and shapes of the other one's.
    fs::copy(before, &after).unwrap();
    let (_, said) = folder.load(&model.0, DTypeKind::Int8);
    assert_said(&said, "weights are packed anew");
}

#[cfg(unix)]
#[test]
fn the_digest_is_remembered_and_only_whole() {
    let (folder, model) = (Folder::new("digest"), demo("digest-model"));
    folder.load(&model.0, DTypeKind::Int8);
    assert!(folder.files("blake3").is_empty(), "the file has just been made");
    sleep(SETTLED);
    folder.load(&model.0, DTypeKind::Int8);
    let [memory] = &folder.files("blake3")[..] else { panic!("{:?}", folder.files("blake3")) };
    let digest = fs::read_to_string(memory).unwrap();
    assert!(folder.packed().file_name().unwrap().to_str().unwrap().starts_with(&digest));
    // Cut short; endless; one that waits for a writer; written elsewhere.
    let elsewhere = folder.0.join("elsewhere");
    fs::write(&elsewhere, "theirs").unwrap();
    for wrong in 0..4 {
        fs::remove_file(memory).unwrap();
        match wrong {
            0 => fs::write(memory, &digest[..63]).unwrap(),
            1 => std::os::unix::fs::symlink("/dev/zero", memory).unwrap(),
            2 => assert!(Command::new("mkfifo").arg(memory).status().unwrap().success()),
            _ => std::os::unix::fs::symlink(&elsewhere, memory).unwrap(),
        }
        let (_, said) = folder.load(&model.0, DTypeKind::Int8);
        assert_said(&said, ".packed: packed weights");
        assert!(memory.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_to_string(memory).unwrap(), digest);
    }
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "theirs");
    // What it says is what the weights are known by: they are not read again.
    fs::write(memory, "0".repeat(64)).unwrap();
    let (_, said) = folder.load(&model.0, DTypeKind::Int8);
    assert_said(&said, &format!("{}-int8", "0".repeat(64)));
}

#[test]
fn what_has_been_verified_is_not_digested_again() {
    let folder = Folder::new("verified");
    folder.load(Path::new(DEMO), DTypeKind::Int8);
    let sums = fs::read_to_string(Path::new(DEMO).join("SHA256SUMS")).unwrap();
    let digest = sums.lines().find_map(|line| line.strip_suffix("  model.safetensors")).unwrap();
    assert!(folder.packed().file_name().unwrap().to_str().unwrap().starts_with(digest));
    assert!(folder.files("blake3").is_empty());
}

/// Writes the listed digests of a directory's files.
fn list(model: &Path) {
    let mut lines = String::new();
    for file in fs::read_dir(model).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        if name != "SHA256SUMS" && file.path().is_file() {
            let digest = Sha256::digest(fs::read(file.path()).unwrap());
            let digits: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
            lines.push_str(&format!("{digits}  {name}\n"));
        }
    }
    fs::write(model.join("SHA256SUMS"), lines).unwrap();
}

/// Where the numbers of a tensor begin in a checkpoint.
fn start_of(weights: &[u8], tensor: &str) -> usize {
    let size = u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
    let header = std::str::from_utf8(&weights[8..8 + size]).unwrap();
    let entry = &header[header.find(&format!("\"{tensor}\"")).unwrap()..];
    let offsets = &entry[entry.find("data_offsets").unwrap()..];
    let number: String = offsets.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    8 + size + number.parse::<usize>().unwrap()
}

#[test]
fn of_listed_weights_all_that_is_used_is_verified() {
    for dtype in [DTypeKind::Bf16, DTypeKind::Int8, DTypeKind::Int4] {
        let (folder, model) =
            (Folder::new(&format!("listed-{}", dtype.name())), demo(&format!("listed-{}-model", dtype.name())));
        list(&model.0);
        let (right, said) = folder.load(&model.0, dtype);
        assert_said(&said, "packed weights written");
        let path = model.0.join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let spoil = |tensor: &str| {
            let mut spoilt = whole.clone();
            spoilt[start_of(&whole, tensor) + 1] ^= 1;
            fs::write(&path, spoilt).unwrap();
        };
        let refused = || {
            let options = EngineOptions { dtype, packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
            let error = Engine::load(&model.0, &options).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidModel);
            assert!(error.message().contains("model.safetensors: SHA-256 is "), "{error}");
        };
        // A matrix whose packed form is taken is as it was; without that, it is missed.
        spoil("model.text_model.layers.0.mlp.down_proj.weight");
        let (ours, said) = folder.load(&model.0, dtype);
        assert_said(&said, ".packed: packed weights");
        assert_eq!(ours, right);
        let kept = folder.packed();
        let packed = fs::read(&kept).unwrap();
        fs::write(&kept, &packed[..packed.len() / 2]).unwrap();
        refused();
        fs::remove_file(&kept).unwrap();
        refused();
        assert!(folder.files("packed").is_empty() && folder.files("tmp").is_empty());
        fs::write(&kept, &packed).unwrap();
        // The embedding is read from where it is.
        spoil("model.text_model.embed_tokens.weight");
        refused();
        fs::write(&path, &whole).unwrap();
        let (ours, said) = folder.load(&model.0, dtype);
        assert_said(&said, ".packed: packed weights");
        assert_eq!(ours, right);
        // Small files are verified before all.
        fs::write(model.0.join("generation_config.json"), "{}").unwrap();
        let options = EngineOptions { dtype, packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
        let error = Engine::load(&model.0, &options).err().unwrap();
        assert!(error.message().contains("generation_config.json: SHA-256 is "), "{error}");
    }
}

#[test]
fn a_list_that_is_wrong_is_no_name_of_a_file() {
    let (folder, model) = (Folder::new("unlisted"), demo("unlisted-model"));
    list(&model.0);
    let sums = fs::read_to_string(model.0.join("SHA256SUMS")).unwrap();
    let line = sums.lines().find(|line| line.ends_with("  model.safetensors")).unwrap();
    for digits in ["../".repeat(21) + "x", "0".repeat(64)] {
        let wrong = sums.replace(line, &format!("{digits}  model.safetensors"));
        fs::write(model.0.join("SHA256SUMS"), wrong).unwrap();
        let options =
            EngineOptions { dtype: DTypeKind::Int8, packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
        let error = Engine::load(&model.0, &options).err().unwrap();
        assert!(error.message().contains("SHA-256 is ") && error.message().contains(&digits), "{error}");
        // Nothing is looked for under a name that is no digest.
        assert_eq!(folder.0.exists(), digits.starts_with('0'));
    }
    fs::write(model.0.join("SHA256SUMS"), &sums).unwrap();
    fs::remove_file(model.0.join("model.safetensors")).unwrap();
    let options =
        EngineOptions { dtype: DTypeKind::Int8, packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
    let error = Engine::load(&model.0, &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("model.safetensors"), "{error}");
}

#[test]
fn several_may_write_at_once_and_leftovers_are_left_alone() {
    let folder = Folder::new("several");
    fs::create_dir_all(&folder.0).unwrap();
    let (right, _) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    let name = folder.packed().file_stem().unwrap().to_str().unwrap().to_owned();
    fs::remove_file(folder.packed()).unwrap();
    // What a process of the same number has left behind, for as many files as this one has written
    // and will write.
    let leftovers: Vec<_> = (0..200).map(|i| folder.0.join(format!("{name}.{}-{i}.tmp", std::process::id()))).collect();
    leftovers.iter().for_each(|path| fs::write(path, "theirs").unwrap());
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..3).map(|_| scope.spawn(|| folder.load(Path::new(DEMO), DTypeKind::Int8).0)).collect();
        loads.into_iter().for_each(|load| assert_eq!(load.join().unwrap(), right));
    });
    assert!(leftovers.iter().all(|path| fs::read(path).unwrap() == b"theirs"));
    assert_eq!(folder.files("tmp").len(), leftovers.len());
    let (ours, said) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    assert_said(&said, ".packed: packed weights");
    assert_eq!(ours, right);
}

#[test]
fn what_cannot_be_written_is_said_and_no_error() {
    let folder = Folder::new("unwritable");
    let (right, _) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    // A directory has the file's name: it cannot be read, and nothing can take its place.
    let path = folder.packed();
    fs::remove_file(&path).unwrap();
    fs::create_dir_all(path.join("full")).unwrap();
    let (ours, said) = folder.load(Path::new(DEMO), DTypeKind::Int8);
    assert_said(&said, "is not a file; weights are packed anew");
    assert_said(&said, "packed weights are not kept");
    assert_eq!(ours, right);
    assert_eq!(folder.files("tmp"), [] as [PathBuf; 0]);
}

#[test]
fn a_load_that_fails_leaves_nothing_behind() {
    let (folder, model) = (Folder::new("failed"), demo("failed-model"));
    // The last of all tensors to be looked for has another name.
    let path = model.0.join("model.safetensors");
    let weights = fs::read(&path).unwrap();
    let (from, to) = (b"model.text_model.norm.weight", b"model.text_model.mourn.weigh");
    let at = weights.windows(from.len()).position(|bytes| bytes == from).unwrap();
    let renamed = [&weights[..at], to, &weights[at + from.len()..]].concat();
    fs::write(path, renamed).unwrap();
    let options =
        EngineOptions { dtype: DTypeKind::Int8, packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
    let error = Engine::load(&model.0, &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.message().contains("model.text_model.norm.weight"), "{error}");
    assert!(folder.files("tmp").is_empty() && folder.files("packed").is_empty());
}

#[test]
fn a_tokenizer_that_is_wrong_is_said_first_whatever_the_weights_are() {
    let model = demo("tokenizer-model");
    fs::write(model.0.join("tokenizer.json"), "{}").unwrap();
    for dtype in [DTypeKind::F32, DTypeKind::Int8] {
        for num_threads in [1, 2] {
            let options = EngineOptions { dtype, num_threads, ..Default::default() };
            let error = Engine::load(&model.0, &options).err().unwrap();
            assert!(error.message().contains("tokenizer.json"), "{error}");
        }
    }
    fs::write(model.0.join("model.safetensors"), "nothing").unwrap();
    let error = Engine::load(&model.0, &EngineOptions::default()).err().unwrap();
    assert!(error.message().contains("tokenizer.json"), "{error}");
}

#[test]
fn what_is_not_packed_cannot_be_kept() {
    let folder = Folder::new("refused");
    let load = |options: EngineOptions| Engine::load(Path::new(DEMO), &options).err().unwrap();
    let kept = || EngineOptions { packed_cache_dir: Some(folder.0.clone()), ..Default::default() };
    let error = load(EngineOptions { dtype: DTypeKind::F32, ..kept() });
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().starts_with("packed_cache_dir: f32"), "{error}");
    if cfg!(feature = "onnx") {
        let error = load(EngineOptions { backend: BackendKind::Onnx, ..kept() });
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().starts_with("packed_cache_dir: "), "{error}");
    }
    let error = load(EngineOptions { packed_cache_dir: Some(PathBuf::new()), dtype: DTypeKind::Int8, ..kept() });
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, "packed_cache_dir: empty"));
    fs::write(&folder.0, "a file").unwrap();
    let error = load(EngineOptions { dtype: DTypeKind::Int8, ..kept() });
    let _ = fs::remove_file(&folder.0);
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().starts_with("packed_cache_dir: "), "{error}");
}
