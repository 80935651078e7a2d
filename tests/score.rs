//! The logits after every token of a text: those that steps give, on both engines.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/golden.rs"]
#[allow(dead_code, reason = "the golden arrays are for others")]
mod support;

use std::path::Path;
use std::time::Instant;

use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::backend::{Backend, Canceller, Halt, Stop, StopReason};
use smolvlm::{DTypeKind, EngineOptions};
use support::{Parts, assert_close, open};

/// More than are scored at once, and not a multiple of it.
const TOKENS: usize = 300;

fn ids(parts: &Parts) -> Vec<u32> {
    let text = (0..).map(|i| i * 37 % parts.model.text.vocab_size as u32);
    text.filter(|&id| id != parts.model.image_token_id).take(TOKENS).collect()
}

fn check(name: &str, backend: &dyn Backend, parts: &Parts, tolerance: f32) {
    let (ids, stop) = (ids(parts), Stop::default());
    let mut decoder = backend.decoder().unwrap();
    let mut steps = Vec::new();
    for &id in &ids {
        steps.extend_from_slice(decoder.step(id, &stop).unwrap());
    }
    let mut scored = Vec::new();
    decoder.truncate(0);
    // In two pieces: what is there before counts.
    for piece in [&ids[..170], &ids[170..]] {
        decoder.score(piece, &mut |logits| scored.extend_from_slice(logits), &stop).unwrap();
    }
    assert_eq!(decoder.len(), TOKENS);
    assert_close(name, &scored, &steps, tolerance);
    decoder.score(&[], &mut |_| panic!("{name}: logits of no token"), &stop).unwrap();
    let late = Stop::new(Canceller::default(), Some(Instant::now()));
    let halted = decoder.score(&ids, &mut |_| panic!("{name}: logits after the time was up"), &late);
    assert!(matches!(halted, Err(Halt::Stopped(StopReason::Timeout))), "{name}");
}

#[test]
fn a_scored_text_has_the_logits_of_its_steps() {
    let parts = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    let options = |dtype| EngineOptions { dtype, ..Default::default() };
    // What rounds to 8 bits may fall on either side, where the order of a sum differs.
    for (dtype, tolerance) in
        [(DTypeKind::F32, 1e-4), (DTypeKind::Bf16, 0.1), (DTypeKind::Int8, 0.2), (DTypeKind::Int4, 0.3)]
    {
        let backend = CandleBackend::load(&parts.files, &parts.model, &parts.images, &options(dtype)).unwrap();
        check(&format!("candle {}", dtype.name()), &backend, &parts, tolerance);
    }
    let backend = OnnxBackend::load(&parts.files, &parts.model, &parts.images, &options(DTypeKind::Auto)).unwrap();
    check("onnx", &backend, &parts, 1e-4);
}
