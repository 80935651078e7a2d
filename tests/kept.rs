//! What a lower precision keeps of a trained model: roundings have a direction there, which random
//! weights do not show.
#![cfg(feature = "candle")]

#[path = "support/altered.rs"]
#[allow(dead_code, reason = "the most of it is for outliers.rs")]
mod altered;
#[path = "support/golden.rs"]
#[allow(dead_code, reason = "the golden arrays are for others")]
mod golden;

use std::path::Path;

use altered::{Copy, Matrix};
use golden::open;
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::prompt::Message;
use smolvlm::{DTypeKind, EngineOptions};

/// Questions and answers of the kind that the model has learnt.
fn text(colours: [&str; 3], shapes: [&str; 3]) -> String {
    let ([a, b, c], [x, y, z]) = (colours, shapes);
    format!(
        "What objects are in this image? A {a} {x}, a {b} {y} and a {c} {z}. Which way does the {y} point? Left. How \
         many objects are there? Three. Is there a {c} {x}? No. What is to the right of the {x}? The {z}. What colour \
         is the {y}? It is {b}."
    )
}

/// The root of the mean square.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    (a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64).sqrt()
}

/// Of the demo model's logits after each token of a text from f32's.
fn error(dtype: DTypeKind) -> f64 {
    let parts = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    let (colours, shapes) =
        (["red", "blue", "green", "yellow", "orange"], ["star", "circle", "square", "arrow", "cross"]);
    let texts = (0..20).map(|i: usize| {
        let of = |words: [&'static str; 5], by| [0, 1, 2].map(|j| words[(i * by + j * (1 + i / 5)) % 5]);
        text(of(colours, 1), of(shapes, 2))
    });
    let ids = texts.map(|text| parts.prompt.build(&[Message::question(0, &text)], &[], &parts.tokenizer).unwrap());
    let ids: Vec<_> = ids.collect();
    let logits = |dtype| -> Vec<f32> {
        let options = EngineOptions { dtype, ..Default::default() };
        let backend = CandleBackend::load(&parts.files, &parts.model, &parts.images, &options).unwrap();
        let of_text = |ids: &Vec<u32>| -> Vec<f32> {
            let mut decoder = backend.decoder().unwrap();
            ids.iter().flat_map(|&id| decoder.step(id, &Stop::default()).unwrap().to_vec()).collect()
        };
        ids.iter().flat_map(of_text).collect()
    };
    distance(&logits(dtype), &logits(DTypeKind::F32))
}

/// Whether a row that is alone has 16 bits in every product.
fn has_fine_rows() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_vnni = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has_vnni = false;
    has_vnni && std::env::var_os("SMOLVLM_CPU").is_none()
}

#[test]
fn a_trained_models_logits_are_kept() {
    // They are 0.064 and 0.29, and int4's was 0.5 with 4 bits for queries and keys; in int8 it is 0.080 where a row that is alone has 8 bits, as it has
    // without VNNI.
    for (dtype, bound) in [(DTypeKind::Int8, if has_fine_rows() { 0.072 } else { 0.088 }), (DTypeKind::Int4, 0.4)] {
        let error = error(dtype);
        assert!(error <= bound, "{}: {error}", dtype.name());
    }
}

/// The normalised stream of a trained model has half of its energy and more in one direction.
#[test]
fn what_all_tokens_have_in_common_loses_least() {
    let copy = Copy::new("common");
    copy.tensors(|read| {
        let name = "model.text_model.embed_tokens.weight";
        let Matrix { shape, mut numbers } = read(name).unwrap();
        let size = (numbers.iter().map(|x| x * x).sum::<f32>() / numbers.len() as f32).sqrt();
        for (at, x) in numbers.iter_mut().enumerate() {
            let column = (at % shape[1]) as u32;
            *x += 3.0 * size * if column.wrapping_mul(2_654_435_761) >> 31 == 0 { 1.0 } else { -1.0 };
        }
        vec![(name.to_owned(), Matrix { shape, numbers })]
    });
    let exact = copy.logits(DTypeKind::F32);
    // They are 0.0035 (0.0055 with rows of 8 bits) and 0.016, and 0.0075 (0.0086) and 0.052 without error feedback along the directions of a
    // calibration.
    for (dtype, bound) in [(DTypeKind::Int8, if has_fine_rows() { 0.005 } else { 0.0065 }), (DTypeKind::Int4, 0.025)] {
        let error = altered::error(&copy.logits(dtype), &exact);
        assert!(error <= bound, "{}: {error}", dtype.name());
    }
}

/// Without layers only the head has an error. Many rows have 8 bits in it, and one has 16.
#[test]
fn the_heads_one_row_has_more_bits_than_many() {
    let copy = Copy::new("kept");
    copy.layers(|read| {
        let names = ["self_attn.o_proj", "mlp.down_proj"];
        let nothing = |name| {
            let Matrix { shape, numbers } = read(name);
            (name, Matrix { shape, numbers: vec![0.0; numbers.len()] })
        };
        names.map(nothing).into()
    });
    let ids: Vec<u32> = (1..65).collect();
    let [steps, together, exact] = [DTypeKind::Int8, DTypeKind::Int8, DTypeKind::F32].map(|dtype| copy.load(dtype).0);
    let one_by_one = |backend: CandleBackend| -> Vec<f32> {
        let mut decoder = backend.decoder().unwrap();
        ids.iter().flat_map(|&id| decoder.step(id, &Stop::default()).unwrap().to_vec()).collect()
    };
    let mut scored = Vec::new();
    let mut decoder = together.decoder().unwrap();
    decoder.score(&ids, &mut |logits| scored.extend_from_slice(logits), &Stop::default()).unwrap();
    let (steps, exact) = (one_by_one(steps), one_by_one(exact));
    let (fine, coarse) = (distance(&steps, &exact), distance(&scored, &exact));
    assert!(fine > 0.0 && fine < 0.85 * coarse, "{fine} of {coarse}");
}
