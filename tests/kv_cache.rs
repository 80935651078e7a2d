//! Keys and values in the precision that is asked for, whatever the weights are in.
#![cfg(feature = "candle")]

#[path = "support/golden.rs"]
#[allow(dead_code, reason = "the golden arrays are for others")]
mod support;

use std::path::{Path, PathBuf};

use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::{DTypeKind, Engine, EngineOptions, ErrorKind, ImageView, Request};
use support::open;

use DTypeKind::{Auto, Bf16, F32, Int4, Int8, Q4};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn options(dtype: DTypeKind, kv_cache: DTypeKind) -> EngineOptions {
    EngineOptions { dtype, kv_cache, ..Default::default() }
}

#[test]
fn both_answer_and_say_which_they_are() {
    let file = std::fs::read(demo().join("test_image.jpg")).unwrap();
    let images = [ImageView::encoded(&file)];
    let request = Request::new("Which way does the arrow point?", &images);
    for (dtype, asked, used) in [
        (Int8, Auto, Int8),
        (Int8, Int8, Int8),
        (Int8, Bf16, Bf16),
        (Int4, Auto, Int8),
        (Int4, Bf16, Bf16),
        (Bf16, Auto, Bf16),
        (Bf16, Int8, Int8),
        (F32, Auto, F32),
        (F32, F32, F32),
    ] {
        let engine = Engine::load(&demo(), &options(dtype, asked)).unwrap();
        assert_eq!(engine.placement().kv_cache, used);
        let answer = engine.ask(&request).unwrap();
        assert_eq!((&*answer.text, answer.metrics.placement.kv_cache), ("Left.", used), "{dtype:?} {asked:?}");
    }
}

#[test]
fn what_the_weights_cannot_have_is_an_error() {
    for (dtype, asked, message) in [
        (Int8, Q4, "kv_cache: q4; candle has int8 and bf16 where dtype is int8"),
        (Bf16, F32, "kv_cache: f32; candle has int8 and bf16 where dtype is bf16"),
        (F32, Int8, "kv_cache: int8; candle has f32 where dtype is f32"),
    ] {
        let error = Engine::load(&demo(), &options(dtype, asked)).err().unwrap();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Unsupported, message));
    }
}

/// Logits after each of some tokens, half of which are given at once.
fn logits(dtype: DTypeKind, kv_cache: DTypeKind) -> Vec<f32> {
    let parts = open(&demo());
    let backend = CandleBackend::load(&parts.files, &parts.model, &parts.images, &options(dtype, kv_cache)).unwrap();
    let ids = (0..).map(|i| i * 37 % parts.model.text.vocab_size as u32);
    let ids: Vec<u32> = ids.filter(|&id| id != parts.model.image_token_id).take(300).collect();
    let (mut decoder, stop) = (backend.decoder().unwrap(), Stop::default());
    decoder.prefill(&ids[..150], &[], &stop).unwrap();
    ids[150..].iter().flat_map(|&id| decoder.step(id, &stop).unwrap().to_vec()).collect()
}

/// Root of the mean square of the differences.
fn error(ours: &[f32], exact: &[f32]) -> f64 {
    let squares = ours.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / exact.len() as f64).sqrt()
}

#[test]
fn sixteen_bits_are_nearer_than_eight() {
    let exact = logits(F32, Auto);
    let [eight, sixteen] = [Int8, Bf16].map(|kv_cache| logits(Bf16, kv_cache));
    let (of_eight, of_sixteen) = (error(&eight, &exact), error(&sixteen, &exact));
    assert!(of_sixteen < 0.8 * of_eight, "{of_sixteen} and {of_eight}");
    // Beside what 8 bits take from weights and activations, it is little.
    let [eight, sixteen] = [Int8, Bf16].map(|kv_cache| logits(Int8, kv_cache));
    assert!(eight != sixteen && error(&eight, &sixteen) < 0.2);
}

#[test]
fn a_memory_limit_counts_the_cache_as_it_is() {
    let text = open(&demo()).model.text;
    assert!(text.head_dim.is_multiple_of(16), "else a cache's columns are more than a head's");
    let context_tokens = 100;
    let needed = |dtype, kv_cache| {
        let options = EngineOptions { max_memory_bytes: 1, context_tokens, ..options(dtype, kv_cache) };
        let error = Engine::load(&demo(), &options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let (_, needed) = error.message().split_once("given, ").unwrap();
        needed.split_once(' ').unwrap().0.parse::<usize>().unwrap()
    };
    let heads = text.num_hidden_layers * text.num_key_value_heads;
    // A key and a value; in 8 bits a scale of each and a sum, too.
    let sixteen = heads * 2 * text.head_dim * 2 * context_tokens;
    let eight = heads * (2 * text.head_dim + 12) * context_tokens;
    for dtype in [Int8, Int4, Bf16] {
        assert_eq!(needed(dtype, Bf16) - needed(dtype, Int8), sixteen - eight);
    }
    assert_eq!(needed(Int8, Auto), needed(Int8, Int8));
    assert_eq!(needed(Bf16, Auto), needed(Bf16, Bf16));
}
