//! ONNX Runtime against the reference, with the arrays that Candle is held to, and what it says of
//! graphs that do not fit.
#![cfg(feature = "onnx")]

#[path = "support/golden.rs"]
mod golden;
#[path = "support/onnxruntime.rs"]
mod onnxruntime;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use golden::{check_stages, checkpoints, count_equal_answers, difference, open};
use onnxruntime::options;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::{
    BackendKind, DTypeKind, DeviceKind, Engine, EngineOptions, ErrorKind, FinishReason, ImageView, PixelFormat,
    Request, Session,
};

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
    // Graphs made with `export_onnx.py --link` have their weights in the checkpoint's files, beside
    // them.
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
        decoder.step(7, &stop).unwrap();
        for kept in [20, 0] {
            decoder.truncate(kept);
            assert_eq!(decoder.len(), kept);
            let again = decoder.prefill(&ids[kept..], &[], &stop).unwrap();
            // Activations are quantised a matrix at a time, so that int8 depends on what comes
            // together.
            let tolerance = if dtype == DTypeKind::F16 { 5e-3 } else { 0.1 };
            let difference = difference(again, &whole);
            println!("{} from {kept}: {difference:.1e}", dtype.name());
            assert!(difference <= tolerance, "{} from {kept}: {difference:.1e}", dtype.name());
        }
    }
}

/// The hub's name of every precision; 8 and 4 bits are, to the engine, what the graph says they
/// are.
#[test]
fn every_variant_answers_and_says_what_it_is() {
    let dir = workspace("variants", &Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    std::fs::remove_file(dir.join("SHA256SUMS")).unwrap();
    let file = std::fs::read(dir.join("test_image.jpg")).unwrap();
    let images = [ImageView::encoded(&file)];
    let request = Request::new("Which way does the arrow point?", &images);
    let expected = Engine::load(&dir, &EngineOptions { dtype: DTypeKind::F32, ..Default::default() })
        .unwrap()
        .ask(&request)
        .unwrap()
        .text;
    let graphs = ["vision_encoder", "embed_tokens", "decoder_model_merged"];
    for (used, from, suffix) in [
        (DTypeKind::Bnb4, "_int8", "_bnb4"),
        (DTypeKind::Q4F16, "_fp16", "_q4f16"),
        (DTypeKind::Q4, "_int8", "_q4"),
        (DTypeKind::Quantized, "_int8", "_quantized"),
        (DTypeKind::Uint8, "_int8", "_uint8"),
        (DTypeKind::Int8, "_int8", "_int8"),
        (DTypeKind::F16, "_fp16", "_fp16"),
        (DTypeKind::F32, "_fp16", ""),
    ] {
        for graph in graphs {
            let graph = |suffix| dir.join(format!("onnx/{graph}{suffix}.onnx"));
            if from != suffix {
                std::fs::copy(graph(from), graph(suffix)).unwrap();
            }
        }
        let engine = Engine::load(&dir, &options(used)).unwrap();
        let answer = engine.ask(&request).unwrap();
        assert_eq!(answer.text, expected);
        let placement = answer.metrics.placement;
        assert_eq!((placement.backend, placement.device, placement.dtype), (BackendKind::Onnx, DeviceKind::Cpu, used));
        let late = engine.ask(&Request { timeout: Some(Duration::ZERO), ..request.clone() }).unwrap();
        assert_eq!((late.finish_reason, late.text.as_str()), (FinishReason::Timeout, ""));
    }
    // The most precise one that is whole.
    let automatic = || Engine::load(&dir, &options(DTypeKind::Auto)).unwrap().placement().dtype;
    assert_eq!(automatic(), DTypeKind::F32);
    std::fs::remove_file(dir.join("onnx/embed_tokens.onnx")).unwrap();
    assert_eq!(automatic(), DTypeKind::F16);
}

/// Without a graph's listing, whoever changes it is not found out.
#[test]
fn what_the_checksums_do_not_list_is_not_opened() {
    let dir = workspace("sums", &Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    Engine::load(&dir, &options(DTypeKind::Int8)).unwrap();
    std::fs::write(dir.join("onnx/decoder_model_merged_int8.onnx_data"), "weights").unwrap();
    let error = Engine::load(&dir, &options(DTypeKind::Int8)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.message().ends_with("decoder_model_merged_int8.onnx_data: not listed in SHA256SUMS"), "{error}");
}

#[test]
fn a_memory_limit_counts_the_cache_twice_and_the_graphs_once() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let text = open(&dir).model.text;
    let graphs: u64 = ["vision_encoder", "embed_tokens", "decoder_model_merged"]
        .map(|graph| std::fs::metadata(dir.join(format!("onnx/{graph}_fp16.onnx"))).unwrap().len())
        .iter()
        .sum();
    let context_tokens = 100;
    // Keys and values, in 16 bits, before a step and after it.
    let cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * context_tokens * 2 * 2;
    let enough = graphs + cache as u64;
    let load = |max_memory_bytes| {
        Engine::load(&dir, &EngineOptions { max_memory_bytes, context_tokens, ..options(DTypeKind::F16) }).map(|_| ())
    };
    load(enough).unwrap();
    assert_eq!(load(enough - 1).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn keys_and_values_are_as_the_graphs_have_them() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let load = |dtype, kv_cache| Engine::load(&dir, &EngineOptions { kv_cache, ..options(dtype) });
    for (dtype, used) in [(DTypeKind::F16, DTypeKind::F16), (DTypeKind::Int8, DTypeKind::F32)] {
        for asked in [DTypeKind::Auto, used] {
            assert_eq!(load(dtype, asked).unwrap().placement().kv_cache, used);
        }
    }
    let error = load(DTypeKind::Int8, DTypeKind::Int8).err().unwrap();
    let message = "kv_cache: int8; the int8 graphs have keys and values in f32";
    assert_eq!((error.kind(), error.message()), (ErrorKind::Unsupported, message));
}

/// Numbers of config.json that the graphs do not confirm are errors, and nothing is taken for them
/// before.
#[test]
fn nonsense_in_the_settings_is_an_error() {
    let dir = workspace("settings", &Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    std::fs::remove_file(dir.join("SHA256SUMS")).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    for (pointer, value) in [
        ("/text_config/num_hidden_layers", 1 << 24),
        ("/text_config/num_hidden_layers", 3),
        ("/text_config/num_key_value_heads", 1),
        ("/text_config/hidden_size", 96),
        ("/text_config/vocab_size", 4000),
        ("/vision_config/image_size", 192),
        ("/scale_factor", 1),
    ] {
        let mut settings = whole.clone();
        *settings.pointer_mut(pointer).unwrap() = value.into();
        std::fs::write(dir.join("config.json"), serde_json::to_vec(&settings).unwrap()).unwrap();
        let loaded = Engine::load(&dir, &options(DTypeKind::F16));
        let error = loaded.and_then(|engine| {
            let pixels = [200; 3 * 16 * 16];
            let images = [ImageView::raw(&pixels, 0, 16, 16, PixelFormat::Rgb8)?];
            engine.ask(&Request { split: false, ..Request::new("What is this?", &images) })
        });
        assert_eq!(error.err().map(|e| e.kind()), Some(ErrorKind::InvalidModel), "{pointer} is {value}");
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
    let mut go_on = |_: &str| ControlFlow::Continue(());
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
            // A second question rewinds the cache.
            if let Ok(mut session) = load().and_then(|engine| Session::new(&engine)) {
                let _ = session.process(&Request { stop: &["a", "e", "."], ..request.clone() }, &mut go_on);
                let _ = session.process(&Request { images: &[], ..request.clone() }, &mut go_on);
            }
        }
        std::fs::write(dir.join(&name), whole).unwrap();
    }
    load().unwrap().ask(&request).unwrap();
}
