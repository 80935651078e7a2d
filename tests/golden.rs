//! The engine against the reference, stage by stage, on random checkpoints of every published geometry.
//!
//! `tools/make_golden.py` wrote the arrays; its documentation says what each one is.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions, Tiles};
use smolvlm::prompt::{ChatTemplate, Grid, Message, Part, PromptBuilder, Role};
use smolvlm::tokenizer::Tokenizer;
use smolvlm::{DTypeKind, Engine, EngineOptions, FinishReason, ImageView, Request};

/// Largest difference accepted, as a share of the reference's root mean square.
/// The worst seen is 2.9e-5.
const TOLERANCE: f32 = 1e-4;

/// At a fork of greedy text, the two candidates' logits may differ by this share of the spread of all logits.
const FORK_GAP: f32 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    resolved: serde_json::Value,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image: String,
    question: String,
    longest_edge: usize,
    split: bool,
    rows: usize,
    cols: usize,
    tile_count: usize,
    tiles_sha256: String,
    greedy_ids: Vec<u32>,
    greedy_stop: Option<usize>,
    logits_std: f32,
}

struct Arrays<'a>(SafeTensors<'a>);

impl Arrays<'_> {
    fn floats(&self, case: &Case, name: &str) -> Vec<f32> {
        let view = self.0.tensor(&format!("{}.{name}", case.name)).unwrap();
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn integers(&self, case: &Case, name: &str) -> Vec<usize> {
        let view = self.0.tensor(&format!("{}.{name}", case.name)).unwrap();
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every checkpoint directory below tests/golden.
fn checkpoints() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("golden.json").exists())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 5, "golden checkpoints are missing: {dirs:?}");
    dirs
}

struct Parts {
    files: ModelFiles,
    model: ModelConfig,
    images: ImageConfig,
    tokenizer: Tokenizer,
    prompt: PromptBuilder,
}

fn open(dir: &Path) -> Parts {
    let files = ModelFiles::open(dir).unwrap();
    let model = ModelConfig::load(&files).unwrap();
    Parts {
        images: ImageConfig::load(&files, &model).unwrap(),
        tokenizer: Tokenizer::load(&files).unwrap(),
        prompt: PromptBuilder::new(ChatTemplate::load(&files).unwrap(), model.tokens_per_tile()),
        files,
        model,
    }
}

fn tiles(dir: &Path, case: &Case, tile_size: usize) -> Tiles {
    let file = std::fs::read(dir.join(&case.image)).unwrap();
    let rgb = ImageView::encoded(&file).to_rgb().unwrap();
    let options = TileOptions { tile_size, longest_edge: case.longest_edge, split: case.split };
    preprocess::tiles(&rgb, &options, &mut || false).unwrap().unwrap()
}

/// The largest difference as a share of the reference's root mean square.
fn difference(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let square = reference.iter().map(|r| f64::from(*r).powi(2)).sum::<f64>() / reference.len() as f64;
    let largest = ours.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    largest / square.sqrt() as f32
}

fn assert_close(what: &str, ours: &[f32], reference: &[f32]) {
    let difference = difference(ours, reference);
    println!("{what}: {difference:.1e}");
    assert!(difference <= TOLERANCE, "{what}: differs by {difference:.1e} of the reference's root mean square");
}

/// The same with every number as f64: Python writes 100000.0 as either.
fn as_floats(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(n) => n.as_f64().into(),
        serde_json::Value::Object(map) => map.into_iter().map(|(k, v)| (k, as_floats(v))).collect(),
        other => other,
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
                "rope_parameters": {"rope_theta": text.rope_theta, "rope_type": "default"},
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
        let backend =
            CandleBackend::load(&parts.files, &parts.model, &parts.images, &EngineOptions::default()).unwrap();
        let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
        let arrays = Arrays(SafeTensors::deserialize(&bytes).unwrap());
        let golden: Golden = json(&dir.join("golden.json"));
        assert!(golden.cases.len() >= 2);
        for case in &golden.cases {
            let name = format!("{} {}", dir.file_name().unwrap().display(), case.name);
            let tiles = tiles(&dir, case, parts.images.tile_size);
            assert_eq!((tiles.rows, tiles.cols, tiles.count()), (case.rows, case.cols, case.tile_count), "{name}");
            let digest: String = Sha256::digest(&tiles.pixels).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(digest, case.tiles_sha256, "{name}: tile bytes");

            let messages = [Message::question(1, &case.question)];
            let ids = parts.prompt.build(&messages, &[Grid::from(&tiles)], &parts.tokenizer).unwrap();
            let input_ids: Vec<u32> = arrays.integers(case, "input_ids").iter().map(|&id| id as u32).collect();
            assert_eq!(ids, input_ids, "{name}: prompt ids");

            check_vision(&name, &backend, &tiles, &parts.model, case, &arrays);
            check_logits(&name, &backend, &tiles, &parts.model, &ids, case, &arrays);
        }
    }
}

fn check_vision(
    name: &str,
    backend: &CandleBackend,
    tiles: &Tiles,
    model: &ModelConfig,
    case: &Case,
    arrays: &Arrays<'_>,
) {
    let hidden = backend.vision_hidden_states(tiles).unwrap();
    let (patches, width) = (model.vision.patches(), model.vision.hidden_size);
    let mut picked = Vec::new();
    for tile in arrays.integers(case, "vision_tiles") {
        for patch in arrays.integers(case, "vision_patches") {
            let row = tile * patches + patch;
            picked.extend_from_slice(&hidden[row * width..][..width]);
        }
    }
    assert_close(&format!("{name} vision"), &picked, &arrays.floats(case, "vision"));

    let rows = backend.encode_images(tiles, &Stop::default()).unwrap();
    let picked: Vec<f32> = arrays
        .integers(case, "image_rows_index")
        .iter()
        .flat_map(|&r| &rows.values[r * rows.width..][..rows.width])
        .copied()
        .collect();
    assert_close(&format!("{name} connector"), &picked, &arrays.floats(case, "image_rows"));
}

/// Teacher-forced: each position's logits, by prefill, by rewinding into the prompt, and by decode steps.
fn check_logits(
    name: &str,
    backend: &CandleBackend,
    tiles: &Tiles,
    model: &ModelConfig,
    ids: &[u32],
    case: &Case,
    arrays: &Arrays<'_>,
) {
    let rows = backend.encode_images(tiles, &Stop::default()).unwrap();
    let stop = Stop::default();
    let vocab = model.text.vocab_size;
    let reference = arrays.floats(case, "logits");
    let positions = arrays.integers(case, "logits_index");
    let at = |position: usize| positions.iter().position(|&p| p == position).map(|i| &reference[i * vocab..][..vocab]);

    let mut decoder = backend.decoder().unwrap();
    let mut ours = Vec::new();
    let mut expected = Vec::new();
    decoder.prefill(ids, &rows.values, &stop).unwrap();
    // From the last position to the first: each needs only what lies before it.
    for &position in positions.iter().filter(|&&p| p < ids.len()).rev() {
        decoder.truncate(position);
        let image = ids[position] == model.image_token_id;
        let before = ids[..position].iter().filter(|&&id| id == model.image_token_id).count();
        let row = if image { &rows.values[before * rows.width..][..rows.width] } else { &[] };
        ours.extend_from_slice(decoder.prefill(&ids[position..=position], row, &stop).unwrap());
        expected.extend_from_slice(at(position).unwrap());
    }
    assert_close(&format!("{name} logits of the prompt"), &ours, &expected);

    let mut decoder = backend.decoder().unwrap();
    ours.clear();
    expected.clear();
    let mut logits = decoder.prefill(ids, &rows.values, &stop).unwrap().to_vec();
    for (i, &id) in case.greedy_ids.iter().enumerate() {
        check_choice(name, i, &logits, id, case.logits_std);
        ours.extend_from_slice(&logits);
        expected.extend_from_slice(at(ids.len() - 1 + i).unwrap());
        logits = decoder.step(id).unwrap().to_vec();
    }
    assert_close(&format!("{name} logits of the answer"), &ours, &expected);
}

/// Our choice is the reference's, or the two are each other's rivals by a hair.
fn check_choice(name: &str, step: usize, logits: &[f32], reference: u32, spread: f32) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if order[0] != reference as usize {
        let gap = logits[order[0]] - logits[order[1]];
        assert!(
            order[1] == reference as usize && gap <= FORK_GAP * spread,
            "{name}: step {step} chose {} for {reference}",
            order[0]
        );
    }
}

#[test]
fn the_whole_pipeline_says_what_the_reference_says() {
    let mut equal = 0;
    for dir in checkpoints() {
        let engine = Engine::load(&dir, &EngineOptions::default()).unwrap();
        let golden: Golden = json(&dir.join("golden.json"));
        for case in &golden.cases {
            let file = std::fs::read(dir.join(&case.image)).unwrap();
            let images = [ImageView::encoded(&file)];
            let request = Request {
                longest_edge: Some(case.longest_edge),
                split: case.split,
                max_new_tokens: case.greedy_ids.len(),
                ..Request::new(&case.question, &images)
            };
            let mut streamed = String::new();
            let answer = engine
                .process(&request, &mut |text| {
                    streamed.push_str(text);
                    ControlFlow::Continue(())
                })
                .unwrap();
            let (length, reason) = match case.greedy_stop {
                Some(n) => (n, FinishReason::EndOfText),
                None => (case.greedy_ids.len(), FinishReason::MaxTokens),
            };
            equal += usize::from(answer.token_ids == case.greedy_ids[..length] && answer.finish_reason == reason);
            assert_eq!(streamed, answer.text);
            assert_eq!(answer.token_ids[0], case.greedy_ids[0], "{} {}", dir.display(), case.name);
        }
    }
    // Forks by rounding alone are judged above, position by position; here most must agree to the end.
    assert!(equal >= 8, "only {equal} of the answers are the reference's");
}

/// bf16 keeps 8 bits: no more than its rounding may separate it from f32.
#[test]
fn bf16_is_f32_but_for_its_rounding() {
    const TOLERANCE: f32 = 0.1;
    for dir in checkpoints() {
        let parts = open(&dir);
        let load = |dtype| {
            let options = EngineOptions { dtype, ..Default::default() };
            CandleBackend::load(&parts.files, &parts.model, &parts.images, &options).unwrap()
        };
        let (exact, rounded) = (load(DTypeKind::F32), load(DTypeKind::Bf16));
        let golden: Golden = json(&dir.join("golden.json"));
        let case = &golden.cases[0];
        let tiles = tiles(&dir, case, parts.images.tile_size);
        let ids = parts
            .prompt
            .build(&[Message::question(1, &case.question)], &[Grid::from(&tiles)], &parts.tokenizer)
            .unwrap();
        let logits = |backend: &CandleBackend| {
            let rows = backend.encode_images(&tiles, &Stop::default()).unwrap();
            backend.decoder().unwrap().prefill(&ids, &rows.values, &Stop::default()).unwrap().to_vec()
        };
        let difference = difference(&logits(&rounded), &logits(&exact));
        println!("{}: {difference:.1e}", dir.display());
        assert!(difference > 0.0 && difference <= TOLERANCE, "{}: {difference}", dir.display());
    }
}
