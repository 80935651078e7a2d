//! The command line: pictures and a question in, the answer streamed to standard output.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use smolvlm::{
    Answer, BackendKind, DTypeKind, DeviceKind, Engine, EngineOptions, Error, ErrorKind, ImageView, ModelSize, Request,
    Sampling,
};

/// Ask a SmolVLM model about pictures.
#[derive(Parser)]
#[command(name = "smolvlm_demo", version, after_help = EXAMPLES)]
struct Args {
    /// Checkpoint directory, or a hub id in the hub's local cache [default: models/demo, or that of
    /// --model-size]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<PathBuf>,
    /// A published size below models/: small (256M), medium (500M) or large (2.2B)
    #[arg(long, value_name = "SIZE", conflicts_with = "model")]
    model_size: Option<ModelSize>,
    /// JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file; several make a question about
    /// several pictures
    #[arg(short, long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// The question; an empty one about a picture asks for a caption
    #[arg(short, long, value_name = "TEXT", default_value = "What objects are in this image?")]
    prompt: String,
    /// Put before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// candle, onnx or auto
    #[arg(long, value_name = "NAME", default_value = "auto")]
    backend: BackendKind,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else the system's]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// cpu, cuda, metal, tensorrt or auto (the CPU)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: DeviceKind,
    /// f32, bf16, int8, int4; with onnx f32, f16, int8, uint8, quantized, q4, q4f16 or bnb4; or
    /// auto
    #[arg(long, value_name = "NAME", default_value = "auto")]
    dtype: DTypeKind,
    /// Keys and values in int8 (half the memory) or bf16, with dtype bf16, int8 or int4; or auto
    #[arg(long, value_name = "NAME", default_value = "auto")]
    kv_cache: DTypeKind,
    /// Keep packed weights in this directory, for the next start
    #[arg(long, value_name = "DIR")]
    packed_cache_dir: Option<PathBuf>,
    /// Threads that compute, 0: one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// 0: always the likeliest token
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    temperature: f32,
    /// Draw among the N likeliest, 0: off
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Draw among the likeliest that reach probability F, 0: off
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    top_p: f32,
    /// Drop what is less likely than F times the likeliest, 0: off
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    min_p: f32,
    /// Over 1: repeat less, 0: off
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    repetition_penalty: f32,
    /// Taken from a token's score for each time that the answer has it, -2 to 2
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Taken once from the score of each token that the answer has, -2 to 2
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// The same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Show the answer's special tokens, but for its end
    #[arg(long)]
    keep_special_tokens: bool,
    /// Tile budget: longest edge of a picture before it is split, in pixels; the largest latency
    /// lever
    #[arg(long, value_name = "N", conflicts_with = "no_split")]
    longest_edge: Option<usize>,
    /// One tile a picture, no splitting
    #[arg(long)]
    no_split: bool,
    /// Stop after this long, with the text so far
    #[arg(long, value_name = "N")]
    timeout_ms: Option<u64>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
    /// Print times and counts to standard error
    #[arg(long)]
    stats: bool,
}

const EXAMPLES: &str = "\
Examples:
  smolvlm_demo --image models/demo/test_image.jpg --prompt \"What objects are in this image?\"
  smolvlm_demo --image a.jpg b.jpg --prompt \"What differs?\" --model-size small --stats
  smolvlm_demo --image a.jpg --model HuggingFaceTB/SmolVLM-256M-Instruct      # after `hf download` of it
  smolvlm_demo --image frame.png --prompt \"Describe this image.\" --no-split --max-new-tokens 40 --json

Exit codes: 0 answered, 1 an error of the model or the machine, 2 a wrong argument or a missing file.";

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smolvlm_demo: {error}");
            ExitCode::from(match error.kind() {
                ErrorKind::InvalidArgument | ErrorKind::NotFound | ErrorKind::Unsupported => 2,
                _ => 1,
            })
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let files = args.image.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let images: Vec<ImageView<'_>> = files.iter().map(|bytes| ImageView::encoded(bytes)).collect();
    let stop: Vec<&str> = args.stop.iter().map(String::as_str).collect();

    let loading = Instant::now();
    let engine = Engine::load(&model_dir(args), &options(args))?;
    let load_ms = loading.elapsed().as_secs_f64() * 1e3;

    let request = Request {
        system_prompt: args.system.as_deref(),
        longest_edge: args.longest_edge,
        split: !args.no_split,
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            frequency_penalty: args.frequency_penalty,
            presence_penalty: args.presence_penalty,
            seed: args.seed,
        },
        stop: &stop,
        timeout: args.timeout_ms.map(Duration::from_millis),
        keep_special_tokens: args.keep_special_tokens,
        ..Request::new(&args.prompt, &images)
    };
    let answer = engine.process(&request, &mut |text| {
        if args.json {
            return ControlFlow::Continue(());
        }
        let mut out = io::stdout().lock();
        // A closed pipe ends the answer, not the program.
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;

    let mut out = io::stdout().lock();
    let _ = if args.json { writeln!(out, "{}", report(&answer, load_ms)) } else { writeln!(out) };
    if args.stats {
        eprint!("{}", stats(&answer, load_ms));
    }
    Ok(())
}

fn model_dir(args: &Args) -> PathBuf {
    match (&args.model, args.model_size) {
        (Some(dir), _) => dir.clone(),
        (None, Some(size)) => PathBuf::from("models").join(size.checkpoint()),
        (None, None) => PathBuf::from("models/demo"),
    }
}

fn options(args: &Args) -> EngineOptions {
    EngineOptions {
        backend: args.backend,
        device: args.device,
        dtype: args.dtype,
        kv_cache: args.kv_cache,
        num_threads: args.threads,
        onnxruntime_path: args.onnxruntime.clone(),
        packed_cache_dir: args.packed_cache_dir.clone(),
        ..Default::default()
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| Error::new(ErrorKind::NotFound, format!("{}: {e}", path.display())))
}

fn report(answer: &Answer, load_ms: f64) -> serde_json::Value {
    let m = &answer.metrics;
    json!({
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_token_ids": answer.prompt_token_ids,
        "prompt_tokens": m.prompt_tokens,
        "image_tokens": m.image_tokens,
        "generated_tokens": m.generated_tokens,
        "finish_reason": answer.finish_reason.name(),
        "backend": m.placement.backend.name(),
        "device": m.placement.device.name(),
        "dtype": m.placement.dtype.name(),
        "kv_cache": m.placement.kv_cache.name(),
        "timings_ms": {
            "load": load_ms,
            "preprocess": m.preprocess_ms,
            "vision": m.vision_ms,
            "prefill": m.prefill_ms,
            "decode": m.decode_ms,
            "time_to_first_token": m.time_to_first_token_ms,
            "total": m.total_ms,
        },
    })
}

fn stats(answer: &Answer, load_ms: f64) -> String {
    let m = &answer.metrics;
    let rate = if m.decode_ms > 0.0 { m.generated_tokens as f64 / m.decode_ms * 1e3 } else { 0.0 };
    let p = &m.placement;
    format!(
        "{} on {} in {}; finished by {}\n\
         load {load_ms:8.1} ms\npreprocess {:.1} ms, {} tiles\nvision {:.1} ms, {} image tokens\n\
         prefill {:.1} ms, {} tokens\ndecode {:.1} ms, {} tokens, {rate:.1} tokens/s\n\
         first token after {:.1} ms, all after {:.1} ms\n",
        p.backend.name(),
        p.device.name(),
        p.dtype.name(),
        answer.finish_reason.name(),
        m.preprocess_ms,
        m.tiles,
        m.vision_ms,
        m.image_tokens,
        m.prefill_ms,
        m.prompt_tokens,
        m.decode_ms,
        m.generated_tokens,
        m.time_to_first_token_ms,
        m.total_ms,
    )
}
