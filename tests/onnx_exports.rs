//! Graphs as other exporters write them (`tools/make_onnx_exports.py`): fed rightly, or refused by
//! the name of what is not known.
#![cfg(feature = "onnx")]

#[allow(dead_code, reason = "the other tests look at more")]
#[path = "support/golden.rs"]
mod golden;
#[path = "support/onnxruntime.rs"]
mod onnxruntime;

use std::fs;
use std::path::{Path, PathBuf};

use golden::{check_stages, count_equal_answers, open};
use onnxruntime::options;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::{DTypeKind, Engine, EngineOptions, Error, ErrorKind};

const WEIGHTS: &str = "model.safetensors";
const DECODER: &str = "decoder_model_merged";

/// As for the golden graphs.
const TOLERANCE: f32 = 1e-3;

fn root(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder)
}

/// The checkpoint with these of the other exporters' graphs.
fn with(test: &str, exports: &[&str]) -> PathBuf {
    let from = root("golden/tied-12x12-f32");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnx-exports-{test}"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("onnx")).unwrap();
    for folder in ["", "onnx"] {
        for entry in fs::read_dir(from.join(folder)).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
            fs::copy(entry.path(), dir.join(folder).join(entry.file_name())).unwrap();
        }
    }
    // The graphs point into the checkpoint's weights, beside them.
    fs::copy(from.join(WEIGHTS), dir.join("onnx").join(WEIGHTS)).unwrap();
    for export in exports {
        let graph = export.split_once('-').unwrap().0;
        fs::copy(root("onnx_exports").join(format!("{export}.onnx")), dir.join(format!("onnx/{graph}.onnx"))).unwrap();
    }
    dir
}

fn refusal(dir: &Path, options: &EngineOptions) -> Error {
    Engine::load(dir, options).err().unwrap_or_else(|| panic!("{}: loaded", dir.display()))
}

/// The golden arrays and answers, to the same tolerance; and every graph here is in one of the
/// tests.
#[test]
fn what_can_be_fed_is_fed_rightly() {
    // Those of the other tests.
    let mut seen = 2;
    for exports in [
        &["decoder_model_merged-scalar_count", "vision_encoder-no_mask"][..],
        &["decoder_model_merged-count_of_one", "vision_encoder-integer_mask"],
        &["decoder_model_merged-more_outputs", "vision_encoder-more_outputs"],
        &["decoder_model_merged-cache_position"],
        &["decoder_model_merged-no_position_ids"],
        &["decoder_model_merged-no_attention_mask"],
    ] {
        let dir = with("fed", exports);
        let parts = open(&dir);
        let backend = OnnxBackend::load(&parts.files, &parts.model, &parts.images, &options(DTypeKind::F32)).unwrap();
        check_stages(&dir, &backend, TOLERANCE, &mut |_| {});
        let engine = Engine::load(&dir, &options(DTypeKind::F32)).unwrap();
        assert!(count_equal_answers(&dir, &engine) > 0, "{exports:?}");
        seen += exports.len();
    }
    assert_eq!(seen, fs::read_dir(root("onnx_exports")).unwrap().count());
}

#[test]
fn weights_in_two_files_are_read_and_counted() {
    let dir = with("files", &["decoder_model_merged-two_files"]);
    let file = |end: &str| dir.join(format!("onnx/{DECODER}.onnx{end}"));
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    for end in ["_data", "_data_1"] {
        fs::copy(dir.join(WEIGHTS), file(end)).unwrap();
    }
    let parts = open(&dir);
    let load = |max_memory_bytes| {
        let options = EngineOptions { max_memory_bytes, context_tokens: 1, ..options(DTypeKind::F32) };
        OnnxBackend::load(&parts.files, &parts.model, &parts.images, &options)
    };
    check_stages(&dir, &load(0).unwrap(), TOLERANCE, &mut |_| {});

    // Both count; the golden graphs' own are not beside them under their names.
    let text = &parts.model.text;
    let cache = 2 * 2 * 4 * (text.num_hidden_layers * text.num_key_value_heads * text.head_dim) as u64;
    let graphs = ["vision_encoder", "embed_tokens", DECODER].map(|graph| size(&dir.join(format!("onnx/{graph}.onnx"))));
    let enough = graphs.iter().sum::<u64>() + 2 * size(&dir.join(WEIGHTS)) + cache;
    load(enough).unwrap();
    assert_eq!(load(enough - 1).err().unwrap().kind(), ErrorKind::OutOfMemory);

    // Without one of them, the error names it.
    fs::remove_file(file("_data_1")).unwrap();
    let error = refusal(&dir, &options(DTypeKind::F32));
    assert_eq!(error.kind(), ErrorKind::InvalidModel, "{error}");
    assert!(error.message().contains("decoder_model_merged.onnx_data_1"), "{error}");
}

#[test]
fn an_input_that_nothing_would_fill_is_refused_by_name() {
    let error = refusal(&with("branch", &["decoder_model_merged-branch"]), &options(DTypeKind::F32));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("decoder_model_merged.onnx: input use_cache_branch is not known here"), "{error}");
}
