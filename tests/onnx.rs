//! ONNX Runtime against the reference, with the arrays that Candle is held to, and what it says of graphs that do not fit.
#![cfg(feature = "onnx")]

#[path = "support/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};

use golden::{check_stages, checkpoints, count_equal_answers, open};
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::{BackendKind, DTypeKind, Engine, EngineOptions, ErrorKind, ImageView, Request};

/// Largest difference accepted, as a share of the reference's root mean square.
/// The worst seen is WORST.
const TOLERANCE: f32 = 1e-3;

fn options(dtype: DTypeKind) -> EngineOptions {
    let path = std::env::var_os("ORT_DYLIB_PATH").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("build/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    );
    assert!(path.exists(), "{}: run `make onnxruntime`, or set ORT_DYLIB_PATH", path.display());
    EngineOptions { backend: BackendKind::Onnx, dtype, onnxruntime_path: Some(path), ..Default::default() }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// A copy of a checkpoint for this test to spoil.
fn workspace(test: &str, from: &Path) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("onnx-{test}")).join(from.file_name().unwrap());
    let _ = std::fs::remove_dir_all(&dir);
    copy(from, &dir);
    // Graphs made with `export_onnx.py --link` have their weights in the checkpoint's files, beside them.
    copy(&from.join("onnx"), &dir.join("onnx"));
    dir
}

fn linked(test: &str, from: &Path) -> PathBuf {
    let dir = workspace(test, from);
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        if name.to_string_lossy().starts_with("model") {
            std::fs::copy(from.join(&name), dir.join("onnx").join(&name)).unwrap();
        }
    }
    dir
}

#[test]
fn every_stage_is_the_references() {
    for from in checkpoints() {
        let dir = linked("stages", &from);
        let parts = open(&dir);
        let backend = OnnxBackend::load(&parts.files, &parts.model, &parts.images, &options(DTypeKind::F32)).unwrap();
        check_stages(&dir, &backend, TOLERANCE, &mut |_, _, _, _| {});
    }
}

#[test]
fn the_whole_pipeline_says_what_the_reference_says() {
    let load = |from: &PathBuf| {
        let dir = linked("pipeline", from);
        count_equal_answers(&dir, &Engine::load(&dir, &options(DTypeKind::Auto)).unwrap())
    };
    let equal: usize = checkpoints().iter().map(load).sum();
    assert!(equal >= 8, "only {equal} of the answers are the reference's");
}
