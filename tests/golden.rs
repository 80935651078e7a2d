//! Candle against the reference, stage by stage, on random checkpoints of every published geometry.
#![cfg(feature = "candle")]

#[path = "support/golden.rs"]
mod support;

use serde::Deserialize;
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ModelConfig, Rope, TextConfig};
use smolvlm::prompt::{Grid, Message, Part, Role};
use smolvlm::{DTypeKind, Engine, EngineOptions};
use support::{
    Golden, Subject, assert_close, check_stages, checkpoints, count_equal_answers, difference, json, open,
    root_mean_square, tiles,
};

/// Largest difference accepted, as a share of the reference's root mean square.
/// The worst seen is 2.9e-5.
const TOLERANCE: f32 = 1e-4;

/// The reference's precision.
fn f32() -> EngineOptions {
    EngineOptions { dtype: DTypeKind::F32, ..Default::default() }
}

/// The same with every number as f64: Python writes 100000.0 as either.
fn as_floats(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(n) => n.as_f64().into(),
        serde_json::Value::Object(map) => map.into_iter().map(|(k, v)| (k, as_floats(v))).collect(),
        other => other,
    }
}

/// As the reference writes them.
fn rope_parameters(text: &TextConfig) -> serde_json::Value {
    match text.rope {
        Rope::Default => serde_json::json!({"rope_theta": text.rope_theta, "rope_type": "default"}),
        Rope::Llama3 { factor, low, high, original } => serde_json::json!({
            "rope_theta": text.rope_theta, "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original,
        }),
        ref other => panic!("{other:?}: in no golden checkpoint"),
    }
}

/// A wrong default can hide in the arrays' rounding; here it cannot.
#[test]
fn omitted_fields_are_the_references_defaults() {
    for dir in checkpoints() {
        let ModelConfig { vision, text, scale_factor, tie_word_embeddings, .. } = open(&dir).model;
        let ours = serde_json::json!({
            "scale_factor": scale_factor,
            "tied": tie_word_embeddings,
            "vision": {
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_hidden_layers": vision.num_hidden_layers,
                "num_attention_heads": vision.num_attention_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "hidden_act": vision.hidden_act,
                "layer_norm_eps": vision.layer_norm_eps,
            },
            "text": {
                "vocab_size": text.vocab_size,
                "hidden_size": text.hidden_size,
                "intermediate_size": text.intermediate_size,
                "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads,
                "num_key_value_heads": text.num_key_value_heads,
                "head_dim": text.head_dim,
                "hidden_act": "silu",
                "rms_norm_eps": text.rms_norm_eps,
                "rope_parameters": rope_parameters(&text),
            },
        });
        let golden: Golden = json(&dir.join("golden.json"));
        assert_eq!(as_floats(ours), as_floats(golden.resolved), "{}", dir.display());
    }
}

#[test]
fn prompts_become_the_references_ids() {
    #[derive(Deserialize)]
    struct Prompt {
        messages: Vec<RawMessage>,
        grids: Vec<(usize, usize)>,
        ids: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct RawMessage {
        role: String,
        content: Vec<RawPart>,
    }
    #[derive(Deserialize)]
    struct RawPart {
        text: Option<String>,
    }
    for dir in checkpoints() {
        let parts = open(&dir);
        let prompts: Vec<Prompt> = json(&dir.join("prompts.json"));
        assert!(prompts.len() >= 10);
        for prompt in prompts {
            let messages: Vec<Message> = prompt
                .messages
                .into_iter()
                .map(|m| Message {
                    role: match m.role.as_str() {
                        "system" => Role::System,
                        "user" => Role::User,
                        _ => Role::Assistant,
                    },
                    content: m
                        .content
                        .into_iter()
                        .map(|p| p.text.map_or(Part::Image, |text| Part::Text { text }))
                        .collect(),
                })
                .collect();
            let grids: Vec<Grid> = prompt.grids.iter().map(|&(rows, cols)| Grid { rows, cols }).collect();
            let ids = parts.prompt.build(&messages, &grids, &parts.tokenizer).unwrap();
            assert_eq!(ids, prompt.ids, "{}: {messages:?}", dir.display());
        }
    }
}

#[test]
fn every_stage_is_the_references() {
    for dir in checkpoints() {
        let parts = open(&dir);
        let backend = CandleBackend::load(&parts.files, &parts.model, &parts.images, &f32()).unwrap();
        check_stages(&dir, &backend, TOLERANCE, &mut |subject| check_vision(subject, &backend, &parts.model));
    }
}

fn check_vision(subject: &Subject<'_>, backend: &CandleBackend, model: &ModelConfig) {
    let Subject { name, case, arrays, tiles } = subject;
    let hidden = backend.vision_hidden_states(tiles).unwrap();
    let (patches, width) = (model.vision.patches(), model.vision.hidden_size);
    let mut picked = Vec::new();
    for tile in arrays.integers(case, "vision_tiles") {
        for patch in arrays.integers(case, "vision_patches") {
            let row = tile * patches + patch;
            picked.extend_from_slice(&hidden[row * width..][..width]);
        }
    }
    assert_close(&format!("{name} vision"), &picked, &arrays.floats(case, "vision"), TOLERANCE);
}

#[test]
fn the_whole_pipeline_says_what_the_reference_says() {
    let load = |dir: &std::path::Path| Engine::load(dir, &f32()).unwrap();
    let equal: usize = checkpoints().iter().map(|dir| count_equal_answers(dir, &load(dir))).sum();
    // Forks by rounding alone are judged above, position by position; here most must agree to the
    // end.
    assert!(equal >= 8, "only {equal} of the answers are the reference's");
}

/// As a share of the reference's root mean square.
fn mean_difference(ours: &[f32], reference: &[f32]) -> f32 {
    let sum: f64 = ours.iter().zip(reference).map(|(a, b)| f64::from((a - b).abs())).sum();
    (sum / reference.len() as f64) as f32 / root_mean_square(reference)
}

/// No more than their rounding may separate bf16, int8 and int4 from f32.
#[test]
fn a_lower_precision_is_f32_but_for_its_rounding() {
    for dir in checkpoints() {
        let parts = open(&dir);
        let load = |dtype| {
            let options = EngineOptions { dtype, ..Default::default() };
            CandleBackend::load(&parts.files, &parts.model, &parts.images, &options).unwrap()
        };
        let golden: Golden = json(&dir.join("golden.json"));
        let case = &golden.cases[0];
        let tiles = tiles(&dir, case, parts.images.tile_size);
        let ids = parts
            .prompt
            .build(&[Message::question(1, &case.question)], &[Grid::from(&tiles)], &parts.tokenizer)
            .unwrap();
        // After the prompt, a token more, and rewound; and teacher-forced, those of the whole
        // answer.
        let logits = |backend: &CandleBackend| {
            let rows = backend.encode_images(&tiles, &Stop::default()).unwrap();
            let mut decoder = backend.decoder().unwrap();
            let mut all = decoder.prefill(&ids, &rows.values, &Stop::default()).unwrap().to_vec();
            let mut answer = Vec::new();
            for &id in &case.greedy_ids {
                answer.extend_from_slice(decoder.step(id, &Stop::default()).unwrap());
            }
            all.extend_from_slice(&answer[..parts.model.text.vocab_size]);
            // Rewound into the prompt, and on again.
            decoder.truncate(ids.len() - 1);
            all.extend_from_slice(decoder.prefill(&ids[ids.len() - 1..], &[], &Stop::default()).unwrap());
            (all, answer)
        };
        let (exact, exact_answer) = logits(&load(DTypeKind::F32));
        // The means are at most 1.1e-2, 3.4e-2 and 2.9e-1 here.
        let bounds = [(DTypeKind::Bf16, 0.1, 0.02), (DTypeKind::Int8, 0.4, 0.08), (DTypeKind::Int4, 1.0, 0.4)];
        for (dtype, largest, average) in bounds {
            let (ours, answer) = logits(&load(dtype));
            let (difference, mean) = (difference(&ours, &exact), mean_difference(&answer, &exact_answer));
            let name = format!("{} {}", dir.display(), dtype.name());
            println!("{name}: {difference:.1e} at most, the answer's {mean:.1e} on average");
            assert!(difference > 0.0 && difference <= largest && mean <= average, "{name}: {difference}, {mean}");
        }
    }
}
