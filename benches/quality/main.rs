//! What a precision keeps of f32: distributions of the next token on given text, and greedy
//! answers, beside Candle's f32 of the same weights.
//!
//! `make quality`; benches/quality/quality.py writes the text, runs this, and prints what it found.

mod measure;
mod peer;
mod vision;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use serde::{Deserialize, Serialize};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::backend::{Backend, Decoder};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::{DTypeKind, EngineOptions};

use measure::{Agreement, Answers, Reference};
use peer::Peer;

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

/// What everything is compared with, where nothing else is named.
const F32: &str = "candle f32";

#[derive(Parser)]
struct Options {
    /// A checkpoint.
    model: PathBuf,
    /// Written: JSON.
    out: PathBuf,
    /// JSON: windows of text and prompts, as ids; how long answers may be, and what ends one.
    #[arg(long)]
    text: Option<PathBuf>,
    /// Instead of a text: what vision makes of a picture.
    #[arg(long = "picture", required_unless_present = "text")]
    pictures: Vec<PathBuf>,
    /// What to measure: `candle int8`, `candle int8 bf16` (with keys and values in bf16), `onnx q4`,
    /// or `peer NAME=COMMAND`, a program that speaks the protocol of peer.rs.
    #[arg(long = "subject")]
    subjects: Vec<String>,
    /// What a text's subjects are compared with, named as they are.
    #[arg(long, default_value = F32)]
    reference: String,
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Deserialize)]
struct Text {
    windows: Vec<Vec<u32>>,
    /// As many tokens of a window are given at once, and nothing about them is compared but the
    /// last one's logits.
    #[serde(default)]
    given: usize,
    /// Lengths of a window's beginnings that are given at once.
    prompts: Vec<usize>,
    questions: Vec<Vec<u32>>,
    new_tokens: usize,
    ends: Vec<u32>,
}

struct Subject {
    name: String,
    decoder: Box<dyn Decoder>,
    /// Of weights, that a step of ours reads.
    bytes: Option<u64>,
    /// That it took, what is compared included.
    seconds: f64,
    steps: Agreement,
    prompts: Agreement,
    answers: Answers,
}

impl Subject {
    fn new(name: &str, (decoder, bytes): (Box<dyn Decoder>, Option<u64>)) -> Self {
        let name = name.split_once('=').map_or(name, |(name, _)| name).trim_start_matches("peer ");
        Self {
            name: name.to_owned(),
            decoder,
            bytes,
            seconds: 0.0,
            steps: Agreement::default(),
            prompts: Agreement::default(),
            answers: Answers::default(),
        }
    }

    fn row(&self) -> Row {
        Row {
            name: self.name.clone(),
            bytes: self.bytes,
            steps: self.steps.figures(),
            prompts: self.prompts.figures(),
            answers: self.answers.figures(),
            seconds: self.seconds,
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    bytes: Option<u64>,
    steps: measure::Figures,
    prompts: measure::Figures,
    answers: measure::AnswerFigures,
    seconds: f64,
}

#[derive(Default, Serialize)]
struct Report {
    reference: String,
    perplexity: f64,
    rows: Vec<Row>,
    /// What could not be loaded or failed later, and why.
    missing: Vec<String>,
    answers: Vec<Vec<u32>>,
}

/// A decoder of `model`, by the name of a backend and a precision, and that of keys and values if
/// they have another one than suits it; and where we pack weights the
/// size of what was packed: the decoder without its embedding, since vision is next to nothing in
/// the checkpoints that read a text.
fn open(model: &Path, name: &str, threads: usize, packed: &Path) -> Anything<(Box<dyn Decoder>, Option<u64>)> {
    let (kind, what) = name.split_once(' ').ok_or_else(|| format!("{name}: a backend and a precision wanted"))?;
    if kind == "peer" {
        let (_, command) = what.split_once('=').ok_or_else(|| format!("{name}: no command"))?;
        return Ok((Box::new(Peer::start(command)?), None));
    }
    let files = ModelFiles::open(model)?;
    let config = ModelConfig::load(&files)?;
    let images = ImageConfig::load(&files, &config)?;
    let (dtype, kv_cache) = what.split_once(' ').unwrap_or((what, "auto"));
    let (dtype, kv_cache): (DTypeKind, DTypeKind) = (dtype.parse()?, kv_cache.parse()?);
    let packs = kind == "candle" && dtype != DTypeKind::F32;
    let packed_cache_dir = packs.then(|| packed.to_owned());
    let options = EngineOptions { dtype, kv_cache, num_threads: threads, packed_cache_dir, ..Default::default() };
    Ok(match kind {
        "candle" => {
            let decoder = CandleBackend::load(&files, &config, &images, &options)?.decoder()?;
            (decoder, if packs { Some(take_size(packed)?) } else { None })
        }
        "onnx" => (OnnxBackend::load(&files, &config, &images, &options)?.decoder()?, None),
        other => return Err(format!("{other}: neither candle, onnx nor peer").into()),
    })
}

/// The size of the files in a folder, which is removed.
fn take_size(folder: &Path) -> Anything<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    std::fs::remove_dir_all(folder)?;
    Ok(bytes)
}

fn write(out: &Path, report: &impl Serialize) -> Anything<()> {
    Ok(std::fs::write(out, serde_json::to_vec_pretty(report)?)?)
}

fn main() -> Anything<()> {
    let options = Options::parse();
    match &options.text {
        Some(text) => read(&options, &serde_json::from_slice(&std::fs::read(text)?)?),
        None => write(&options.out, &vision::look(&options.model, &options.pictures, &options.subjects)?),
    }
}

/// The same for all subjects; one that fails is missing from then on, and the others go on.
fn each(subjects: &mut Vec<Subject>, missing: &mut Vec<String>, mut work: impl FnMut(&mut Subject) -> Anything<()>) {
    subjects.retain_mut(|subject| match work(subject) {
        Ok(()) => true,
        Err(error) => {
            missing.push(format!("{}: {error}", subject.name));
            false
        }
    });
}

/// Everything about a text; what is known by then is written after every window and question.
fn read(options: &Options, text: &Text) -> Anything<()> {
    let packed = options.out.with_extension("packed");
    let (decoder, _) = open(&options.model, &options.reference, options.threads, &packed)?;
    let mut reference = Reference::new(decoder, options.reference != F32);
    let mut report = Report { reference: options.reference.clone(), ..Default::default() };
    let mut subjects = Vec::new();
    for name in &options.subjects {
        match open(&options.model, name, options.threads, &packed) {
            Ok(opened) => subjects.push(Subject::new(name, opened)),
            Err(error) => report.missing.push(format!("{name}: {error}")),
        }
    }
    for (number, window) in text.windows.iter().enumerate() {
        eprintln!("window {} of {}", number + 1, text.windows.len());
        reference.read(window, text.given)?;
        report.perplexity = reference.perplexity();
        each(&mut subjects, &mut report.missing, |subject| {
            let start = Instant::now();
            measure::steps(&reference, &mut *subject.decoder, window, text.given, &mut subject.steps)?;
            measure::prompts(&reference, &mut *subject.decoder, window, &text.prompts, &mut subject.prompts)?;
            subject.seconds += start.elapsed().as_secs_f64();
            Ok(())
        });
        report.rows = subjects.iter().map(Subject::row).collect();
        write(&options.out, &report)?;
    }
    for (number, question) in text.questions.iter().enumerate() {
        eprintln!("question {} of {}", number + 1, text.questions.len());
        let ends = (text.new_tokens, &*text.ends);
        let expected = reference.answer(question, ends)?;
        each(&mut subjects, &mut report.missing, |subject| {
            let start = Instant::now();
            let given = measure::answer(&mut *subject.decoder, question, ends)?;
            subject.seconds += start.elapsed().as_secs_f64();
            reference.judge(question, &given, &expected, &mut subject.answers)
        });
        report.answers.push(expected);
        report.rows = subjects.iter().map(Subject::row).collect();
        write(&options.out, &report)?;
    }
    Ok(())
}
