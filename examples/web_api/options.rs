//! The command line, and what the limits are.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use clap::Parser;
use smolvlm::image::MAX_PIXELS;
use smolvlm::{BackendKind, DTypeKind, DeviceKind, EngineOptions};

/// Serve a SmolVLM model over HTTP: a page, POST /analyze, and OpenAI's POST /v1/chat/completions.
#[derive(Clone, Parser)]
#[command(name = "web_api", version, after_help = EXAMPLES)]
pub struct Options {
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on, 0: any free one
    #[arg(long, value_name = "N", default_value_t = 3000)]
    pub port: u16,
    /// Ask clients for this key, as `Authorization: Bearer KEY`; better given by the environment,
    /// since others see arguments
    #[arg(long, value_name = "KEY", env = "SMOLVLM_API_KEY", hide_env_values = true, value_parser = key)]
    pub api_key: Option<String>,
    /// Let pages of this origin ask, such as http://localhost:5173, `null` for pages opened as
    /// files, or `*` for all; repeatable
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub cors_origin: Vec<HeaderValue>,
    /// Let requests name pictures in this directory, as file:///PATH: regular files, no links out
    /// of it; repeatable
    #[arg(long, value_name = "DIR", value_parser = directory)]
    pub allow_image_dir: Vec<PathBuf>,

    /// Checkpoint directory
    #[arg(long, value_name = "DIR", default_value = "models/demo", help_heading = "Model")]
    pub model: PathBuf,
    /// candle, onnx or auto
    #[arg(long, value_name = "NAME", default_value = "auto", help_heading = "Model")]
    pub backend: BackendKind,
    /// The ONNX Runtime library [default: $ORT_DYLIB_PATH, else the system's]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub onnxruntime: Option<PathBuf>,
    /// cpu, cuda, metal, tensorrt or auto (the CPU)
    #[arg(long, value_name = "NAME", default_value = "auto", help_heading = "Model")]
    pub device: DeviceKind,
    /// f32, bf16, int8, int4; with onnx f32, f16, int8, uint8, quantized, q4, q4f16 or bnb4; or
    /// auto
    #[arg(long, value_name = "NAME", default_value = "auto", help_heading = "Model")]
    pub dtype: DTypeKind,
    /// Keys and values in int8 (half the memory) or bf16, with dtype bf16, int8 or int4; or auto
    #[arg(long, value_name = "NAME", default_value = "auto", help_heading = "Model")]
    pub kv_cache: DTypeKind,
    /// Keep packed weights in this directory, for the next start
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub packed_cache_dir: Option<PathBuf>,
    /// Threads that compute, shared by all workers, 0: one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub threads: usize,

    /// Questions that are answered at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one, help_heading = "Limits")]
    pub workers: usize,
    /// Questions that wait for a worker; one more gets 429
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Limits")]
    pub queue: usize,
    /// Open connections; one more waits to be accepted
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one, help_heading = "Limits")]
    pub max_connections: usize,
    /// Largest request, in MiB; a larger one gets 413
    #[arg(long, value_name = "MIB", default_value_t = 10, value_parser = at_least_one, help_heading = "Limits")]
    pub max_body_mib: usize,
    /// Most pictures of one request, a conversation's earlier ones included
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one, help_heading = "Limits")]
    pub max_images: usize,
    /// Most pixels of one picture, as its header gives them
    #[arg(long, value_name = "N", default_value_t = 25_000_000, value_parser = clap::value_parser!(u64).range(1..=MAX_PIXELS), help_heading = "Limits")]
    pub max_pixels: u64,
    /// Memory for encoded pictures, in MiB, so that the next question about the same file encodes
    /// nothing; 0: none are kept
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(..=1 << 20), help_heading = "Limits")]
    pub image_cache_mb: u64,
    /// Longest answer of a request, in tokens; one that asks for more gets so many
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one, help_heading = "Limits")]
    pub max_new_tokens: usize,
    /// Most time of one request, from its last byte to its answer's
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds, help_heading = "Limits")]
    pub timeout_s: Duration,
    /// Most time in which a client sends its header, then its body, and reads what was sent
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds, help_heading = "Limits")]
    pub client_timeout_s: Duration,
    /// What runs at SIGINT or SIGTERM gets this long to finish
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds, help_heading = "Limits")]
    pub grace_s: Duration,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release --example web_api
  cargo run --release --example web_api -- --model models/SmolVLM-256M-Instruct --dtype int8
  SMOLVLM_API_KEY=$(openssl rand -hex 16) web_api --host 0.0.0.0 --port 8080

  curl -F image=@models/demo/test_image.jpg -F prompt=\"What objects are in this image?\" localhost:3000/analyze";

impl Options {
    pub fn engine(&self) -> EngineOptions {
        EngineOptions {
            backend: self.backend,
            device: self.device,
            dtype: self.dtype,
            kv_cache: self.kv_cache,
            num_threads: self.threads,
            onnxruntime_path: self.onnxruntime.clone(),
            packed_cache_dir: self.packed_cache_dir.clone(),
            image_cache_bytes: usize::try_from(self.image_cache_mb << 20).unwrap_or(usize::MAX),
            ..Default::default()
        }
    }

    /// What clients call the model: the directory's name.
    pub fn model_id(&self) -> String {
        let path = self.model.canonicalize().unwrap_or_else(|_| self.model.clone());
        path.file_name().map_or_else(|| "smolvlm".into(), |name| name.to_string_lossy().into_owned())
    }

    pub fn max_body_bytes(&self) -> usize {
        self.max_body_mib.saturating_mul(1 << 20)
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    /// More of anything than a machine has memory for.
    const MOST: usize = 1 << 20;
    text.parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or_else(|| format!("1 to {MOST} accepted"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    /// A day: sums with it stay far from overflow.
    const MOST: f64 = 86_400.0;
    let seconds = text.parse().ok().filter(|s| *s > 0.0 && *s <= MOST);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("more than 0, up to {MOST} seconds accepted"))
}

/// An empty variable is a mistake, and no wish for a server without a key.
fn key(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("empty".into()) } else { Ok(text.to_owned()) }
}

/// As browsers write it in their `Origin` headers: in lower case, without the scheme's own port.
fn origin(text: &str) -> Result<HeaderValue, String> {
    const FORM: &str = "SCHEME://HOST[:PORT] without a path, null or * accepted";
    if text == "*" || text == "null" {
        return HeaderValue::from_str(text).map_err(|e| e.to_string());
    }
    let uri: Uri = text.parse().map_err(|e| format!("{e}; {FORM}"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(FORM.into()) };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(FORM.into());
    }
    let own = matches!((scheme, uri.port_u16()), ("http", Some(80)) | ("https", Some(443)));
    let authority = if own { authority.host() } else { authority.as_str() };
    HeaderValue::from_str(&format!("{scheme}://{authority}").to_ascii_lowercase()).map_err(|e| e.to_string())
}

/// Without links, as the files in it are compared with.
fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text).canonicalize().map_err(|e| e.to_string())?;
    if path.is_dir() { Ok(path) } else { Err("not a directory".into()) }
}
