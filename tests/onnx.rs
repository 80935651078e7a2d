//! ONNX Runtime against the reference, with the arrays that Candle is held to, and what it says of graphs that do not fit.
#![cfg(feature = "onnx")]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/onnxruntime.rs"]
mod onnxruntime;

use std::path::{Path, PathBuf};
use std::time::Duration;

use golden::{check_stages, checkpoints, count_equal_answers, difference, open};
use onnxruntime::options;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::{BackendKind, DTypeKind, DeviceKind, Engine, ErrorKind, FinishReason, ImageView, PixelFormat, Request};

/// Largest difference accepted, as a share of the reference's root mean square.
/// The worst seen is 2.8e-5 with 1.32.0.
const TOLERANCE: f32 = 1e-3;

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
        check_stages(&dir, &backend, TOLERANCE, &mut |_| {});
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

#[test]
fn a_graph_of_another_model_is_refused() {
    let all = checkpoints();
    let named = |name: &str| all.iter().find(|dir| dir.ends_with(name)).unwrap();
    let (ours, other) = (named("tied-12x12-f32"), named("gqa-32x32-f16"));
    for (graph, expected) in [
        ("vision_encoder", "input pixel_values has shape [?, ?, 3, 512, 512], expected [1, ?, 3, "),
        ("embed_tokens", "output inputs_embeds has shape [?, ?, "),
        ("decoder_model_merged", "input inputs_embeds has shape [?, ?, "),
    ] {
        let dir = linked(graph, ours);
        let file = format!("onnx/{graph}.onnx");
        // The other's graph asks for the other's weights.
        for name in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
            std::fs::copy(other.join(name), dir.join("onnx").join(name)).unwrap();
        }
        std::fs::copy(other.join(&file), dir.join(&file)).unwrap();
        let error = Engine::load(&dir, &options(DTypeKind::F32)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidModel);
        assert!(error.message().contains(&format!("{file}: {expected}")), "{error}");
    }
}

/// A conversation goes on from a cache that was rewound, in 16 bits too.
#[test]
fn a_rewound_cache_is_the_cache_it_was() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let parts = open(&dir);
    for dtype in [DTypeKind::F16, DTypeKind::Int8] {
        let backend = OnnxBackend::load(&parts.files, &parts.model, &parts.images, &options(dtype)).unwrap();
        let mut decoder = backend.decoder().unwrap();
        let ids: Vec<u32> = (10..40).collect();
        let stop = Stop::default();
        let whole = decoder.prefill(&ids, &[], &stop).unwrap().to_vec();
        decoder.step(7).unwrap();
        for kept in [20, 0] {
            decoder.truncate(kept);
            assert_eq!(decoder.len(), kept);
            let again = decoder.prefill(&ids[kept..], &[], &stop).unwrap();
            // Activations are quantised a matrix at a time, so that int8 depends on what comes together.
            let tolerance = if dtype == DTypeKind::F16 { 5e-3 } else { 0.1 };
            let difference = difference(again, &whole);
            println!("{} from {kept}: {difference:.1e}", dtype.name());
            assert!(difference <= tolerance, "{} from {kept}: {difference:.1e}", dtype.name());
        }
    }
}

#[test]
fn every_variant_answers_and_says_what_it_is() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let file = std::fs::read(dir.join("test_image.jpg")).unwrap();
    let images = [ImageView::encoded(&file)];
    let request = Request::new("Which way does the arrow point?", &images);
    for (asked, used) in [(DTypeKind::Auto, DTypeKind::F16), (DTypeKind::Int8, DTypeKind::Int8)] {
        let engine = Engine::load(&dir, &options(asked)).unwrap();
        let answer = engine.ask(&request).unwrap();
        assert_eq!(answer.text, "Left.");
        let placement = answer.metrics.placement;
        assert_eq!((placement.backend, placement.device, placement.dtype), (BackendKind::Onnx, DeviceKind::Cpu, used));
        let late = engine.ask(&Request { timeout: Some(Duration::ZERO), ..request.clone() }).unwrap();
        assert_eq!((late.finish_reason, late.text.as_str()), (FinishReason::Timeout, ""));
    }
}

/// Cut anywhere, a graph is refused; with a bit flipped, it is refused or runs.
#[test]
fn a_damaged_graph_is_an_error_that_names_it() {
    let dir = workspace("damage", &Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    std::fs::remove_file(dir.join("SHA256SUMS")).unwrap();
    let pixels = [200; 3 * 16 * 16];
    let images = [ImageView::raw(&pixels, 0, 16, 16, PixelFormat::Rgb8).unwrap()];
    let request = Request { split: false, max_new_tokens: 2, ..Request::new("What is this?", &images) };
    let load = || Engine::load(&dir, &options(DTypeKind::Int8));
    for graph in ["vision_encoder_int8", "embed_tokens_int8", "decoder_model_merged_int8"] {
        let name = format!("onnx/{graph}.onnx");
        let whole = std::fs::read(dir.join(&name)).unwrap();
        for i in 0..20 {
            std::fs::write(dir.join(&name), &whole[..whole.len() * i / 20]).unwrap();
            let error = load().err().unwrap_or_else(|| panic!("{name} cut to {i}/20: not found"));
            assert!(error.message().contains(&name), "{error}");
        }
        for i in 0..60 {
            let mut flipped = whole.clone();
            flipped[(whole.len() - 1) * i / 59] ^= 1 << (i % 8);
            std::fs::write(dir.join(&name), flipped).unwrap();
            if let Ok(engine) = load() {
                let _ = engine.ask(&request);
            }
        }
        std::fs::write(dir.join(&name), whole).unwrap();
    }
    load().unwrap().ask(&request).unwrap();
}
