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
    /// That it took, what is compared included.
    seconds: f64,
    steps: Agreement,
    prompts: Agreement,
    answers: Answers,
}

impl Subject {
    fn new(name: &str, decoder: Box<dyn Decoder>) -> Self {
        let name = name.split_once('=').map_or(name, |(name, _)| name).trim_start_matches("peer ");
        Self {
            name: name.to_owned(),
            decoder,
            seconds: 0.0,
            steps: Agreement::default(),
            prompts: Agreement::default(),
            answers: Answers::default(),
        }
    }

    fn row(&self) -> Row {
        Row {
            name: self.name.clone(),
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
    /// What could not be loaded, and why.
    missing: Vec<String>,
    answers: Vec<Vec<u32>>,
}

/// A decoder of `model`, by the name of a backend and a precision, and that of keys and values if
/// they have another one than suits it.
fn open(model: &Path, name: &str, threads: usize) -> Anything<Box<dyn Decoder>> {
    let (kind, what) = name.split_once(' ').ok_or_else(|| format!("{name}: a backend and a precision wanted"))?;
    if kind == "peer" {
        let (_, command) = what.split_once('=').ok_or_else(|| format!("{name}: no command"))?;
        return Ok(Box::new(Peer::start(command)?));
    }
    let files = ModelFiles::open(model)?;
    let config = ModelConfig::load(&files)?;
    let images = ImageConfig::load(&files, &config)?;
    let (dtype, kv_cache) = what.split_once(' ').unwrap_or((what, "auto"));
    let (dtype, kv_cache): (DTypeKind, DTypeKind) = (dtype.parse()?, kv_cache.parse()?);
    let options = EngineOptions { dtype, kv_cache, num_threads: threads, ..Default::default() };
    Ok(match kind {
        "candle" => CandleBackend::load(&files, &config, &images, &options)?.decoder()?,
        "onnx" => OnnxBackend::load(&files, &config, &images, &options)?.decoder()?,
        other => return Err(format!("{other}: neither candle, onnx nor peer").into()),
    })
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

/// Everything about a text; what is known by then is written after every window and question.
fn read(options: &Options, text: &Text) -> Anything<()> {
    let mut reference =
        Reference::new(open(&options.model, &options.reference, options.threads)?, options.reference != F32);
    let mut report = Report { reference: options.reference.clone(), ..Default::default() };
    let mut subjects = Vec::new();
    for name in &options.subjects {
        match open(&options.model, name, options.threads) {
            Ok(decoder) => subjects.push(Subject::new(name, decoder)),
            Err(error) => report.missing.push(format!("{name}: {error}")),
        }
    }
    for (number, window) in text.windows.iter().enumerate() {
        eprintln!("window {} of {}", number + 1, text.windows.len());
        reference.read(window, text.given)?;
        report.perplexity = reference.perplexity();
        for subject in &mut subjects {
            let start = Instant::now();
            measure::steps(&reference, &mut *subject.decoder, window, text.given, &mut subject.steps)?;
            measure::prompts(&reference, &mut *subject.decoder, window, &text.prompts, &mut subject.prompts)?;
            subject.seconds += start.elapsed().as_secs_f64();
        }
        report.rows = subjects.iter().map(Subject::row).collect();
        write(&options.out, &report)?;
    }
    for (number, question) in text.questions.iter().enumerate() {
        eprintln!("question {} of {}", number + 1, text.questions.len());
        let ends = (text.new_tokens, &*text.ends);
        let expected = reference.answer(question, ends)?;
        for subject in &mut subjects {
            let start = Instant::now();
            let given = measure::answer(&mut *subject.decoder, question, ends)?;
            subject.seconds += start.elapsed().as_secs_f64();
            reference.judge(question, &given, &expected, &mut subject.answers)?;
        }
        report.answers.push(expected);
        report.rows = subjects.iter().map(Subject::row).collect();
        write(&options.out, &report)?;
    }
    Ok(())
}
