//! What `tools/make_golden.py` wrote, and how an engine is compared with it; its documentation says
//! what each array is.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions, Tiles};
use smolvlm::prompt::{ChatTemplate, Grid, Message, PromptBuilder};
use smolvlm::tokenizer::Tokenizer;
use smolvlm::{Engine, FinishReason, ImageView, Request};

/// At a fork of greedy text, the two candidates' logits may differ by this share of the spread of
/// all logits.
const FORK_GAP: f32 = 1e-3;

#[derive(Deserialize)]
pub struct Golden {
    #[allow(dead_code, reason = "the ONNX tests do not look at it")]
    pub resolved: serde_json::Value,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub image: String,
    pub question: String,
    pub longest_edge: usize,
    pub split: bool,
    pub rows: usize,
    pub cols: usize,
    pub tile_count: usize,
    pub tiles_sha256: String,
    pub greedy_ids: Vec<u32>,
    pub greedy_stop: Option<usize>,
    pub logits_std: f32,
}

pub struct Arrays<'a>(pub SafeTensors<'a>);

impl Arrays<'_> {
    pub fn floats(&self, case: &Case, name: &str) -> Vec<f32> {
        let view = self.0.tensor(&format!("{}.{name}", case.name)).unwrap();
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn integers(&self, case: &Case, name: &str) -> Vec<usize> {
        let view = self.0.tensor(&format!("{}.{name}", case.name)).unwrap();
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    }
}

pub fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every checkpoint directory below tests/golden.
pub fn checkpoints() -> Vec<PathBuf> {
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

pub struct Parts {
    pub files: ModelFiles,
    pub model: ModelConfig,
    pub images: ImageConfig,
    pub tokenizer: Tokenizer,
    pub prompt: PromptBuilder,
}

pub fn open(dir: &Path) -> Parts {
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

pub fn tiles(dir: &Path, case: &Case, tile_size: usize) -> Tiles {
    let file = std::fs::read(dir.join(&case.image)).unwrap();
    let rgb = ImageView::encoded(&file).to_rgb().unwrap();
    let options = TileOptions { tile_size, longest_edge: case.longest_edge, split: case.split, threads: 2 };
    preprocess::tiles(&rgb, &options, &mut || false).unwrap().unwrap()
}

/// The largest difference as a share of the reference's root mean square.
pub fn difference(ours: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(ours.len(), reference.len());
    let largest = ours.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    largest / root_mean_square(reference)
}

pub fn root_mean_square(x: &[f32]) -> f32 {
    (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64).sqrt() as f32
}

pub fn assert_close(what: &str, ours: &[f32], reference: &[f32], tolerance: f32) {
    let difference = difference(ours, reference);
    println!("{what}: {difference:.1e}");
    assert!(difference <= tolerance, "{what}: differs by {difference:.1e} of the reference's root mean square");
}

/// A case, its arrays, and its tiles as we cut them.
pub struct Subject<'a> {
    pub name: String,
    pub case: &'a Case,
    pub arrays: &'a Arrays<'a>,
    pub tiles: Tiles,
}

/// Preprocessing, prompt, connector and logits of every case of a checkpoint; `extra` sees each
/// case too.
pub fn check_stages(dir: &Path, backend: &dyn Backend, tolerance: f32, extra: &mut dyn FnMut(&Subject<'_>)) {
    let parts = open(dir);
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let arrays = Arrays(SafeTensors::deserialize(&bytes).unwrap());
    let golden: Golden = json(&dir.join("golden.json"));
    assert!(golden.cases.len() >= 2);
    for case in &golden.cases {
        let name = format!("{} {}", dir.file_name().unwrap().display(), case.name);
        let tiles = tiles(dir, case, parts.images.tile_size);
        assert_eq!((tiles.rows, tiles.cols, tiles.count()), (case.rows, case.cols, case.tile_count), "{name}");
        let digest: String = Sha256::digest(&tiles.pixels).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, case.tiles_sha256, "{name}: tile bytes");

        let messages = [Message::question(1, &case.question)];
        let ids = parts.prompt.build(&messages, &[Grid::from(&tiles)], &parts.tokenizer).unwrap();
        let input_ids: Vec<u32> = arrays.integers(case, "input_ids").iter().map(|&id| id as u32).collect();
        assert_eq!(ids, input_ids, "{name}: prompt ids");

        let subject = Subject { name, case, arrays: &arrays, tiles };
        extra(&subject);
        check_rows(&subject, backend, tolerance);
        check_logits(&subject, &ids, &parts.model, backend, tolerance);
    }
}

fn check_rows(subject: &Subject<'_>, backend: &dyn Backend, tolerance: f32) {
    let Subject { name, case, arrays, tiles } = subject;
    let rows = backend.encode_images(tiles, &Stop::default()).unwrap();
    let picked: Vec<f32> = arrays
        .integers(case, "image_rows_index")
        .iter()
        .flat_map(|&r| &rows.values[r * rows.width..][..rows.width])
        .copied()
        .collect();
    assert_close(&format!("{name} connector"), &picked, &arrays.floats(case, "image_rows"), tolerance);
}

/// Teacher-forced: each position's logits, by prefill, by rewinding into the prompt, and by decode
/// steps.
fn check_logits(subject: &Subject<'_>, ids: &[u32], model: &ModelConfig, backend: &dyn Backend, tolerance: f32) {
    let Subject { name, case, arrays, tiles } = subject;
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
    assert_close(&format!("{name} logits of the prompt"), &ours, &expected, tolerance);

    let mut decoder = backend.decoder().unwrap();
    ours.clear();
    expected.clear();
    let mut logits = decoder.prefill(ids, &rows.values, &stop).unwrap().to_vec();
    for (i, &id) in case.greedy_ids.iter().enumerate() {
        check_choice(name, i, &logits, id, case.logits_std);
        ours.extend_from_slice(&logits);
        expected.extend_from_slice(at(ids.len() - 1 + i).unwrap());
        logits = decoder.step(id, &stop).unwrap().to_vec();
    }
    assert_close(&format!("{name} logits of the answer"), &ours, &expected, tolerance);
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

/// How many of a checkpoint's cases the engine answers to the end as the reference does; the first
/// token must always be its.
pub fn count_equal_answers(dir: &Path, engine: &Engine) -> usize {
    let mut equal = 0;
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
    equal
}
