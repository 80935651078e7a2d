//! The front door for Rust: a model, a picture, a question, a string.

use std::path::PathBuf;

use image::DynamicImage;

use crate::backend::{BackendKind, DTypeKind, DeviceKind};
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::image::ImageView;
use crate::session::Request;

/// The published sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ModelSize {
    /// 256 million parameters.
    #[default]
    Small,
    /// 500 million parameters.
    Medium,
    /// 2.2 billion parameters.
    Large,
}

impl ModelSize {
    /// The checkpoint's name on the hub, below `HuggingFaceTB/`; also its directory below
    /// `models/`.
    pub fn checkpoint(self) -> &'static str {
        match self {
            Self::Small => "SmolVLM-256M-Instruct",
            Self::Medium => "SmolVLM-500M-Instruct",
            Self::Large => "SmolVLM-Instruct",
        }
    }
}

impl std::str::FromStr for ModelSize {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "small" => Ok(Self::Small),
            "medium" => Ok(Self::Medium),
            "large" => Ok(Self::Large),
            _ => Err(Error::invalid_argument(format!("model size: \"{s}\" is none of small, medium, large"))),
        }
    }
}

/// What [`SmolVLM::new`] loads and how.
#[derive(Clone, Debug, Default)]
pub struct SmolVLMConfig {
    /// Chooses the directory where `model_path` does not.
    pub model_size: ModelSize,
    pub backend: BackendKind,
    pub device: DeviceKind,
    pub dtype: DTypeKind,
    /// What keys and values are kept in, see [`EngineOptions::kv_cache`].
    pub kv_cache: DTypeKind,
    /// A checkpoint directory, or a hub id in the hub's local cache. `None`: `models/` and the name
    /// of the published checkpoint.
    pub model_path: Option<PathBuf>,
    /// 0: one per core.
    pub num_threads: usize,
    /// The ONNX Runtime library. `None`: `ORT_DYLIB_PATH`, else the system's.
    pub onnxruntime_path: Option<PathBuf>,
    /// Where packed weights are kept for the next time. `None`: nowhere.
    pub packed_cache_dir: Option<PathBuf>,
    /// 0: [`crate::session::DEFAULT_MAX_NEW_TOKENS`].
    pub max_new_tokens: usize,
}

/// A loaded model that answers questions about pictures.
pub struct SmolVLM {
    engine: Engine,
    max_new_tokens: usize,
}

impl SmolVLM {
    /// Loads the checkpoint.
    pub fn new(config: SmolVLMConfig) -> Result<Self> {
        let path = config.model_path.unwrap_or_else(|| PathBuf::from("models").join(config.model_size.checkpoint()));
        let options = EngineOptions {
            backend: config.backend,
            device: config.device,
            dtype: config.dtype,
            kv_cache: config.kv_cache,
            num_threads: config.num_threads,
            onnxruntime_path: config.onnxruntime_path,
            packed_cache_dir: config.packed_cache_dir,
            ..Default::default()
        };
        Ok(Self { engine: Engine::load(&path, &options)?, max_new_tokens: config.max_new_tokens })
    }

    /// Answers `prompt` about `image`, greedily. The image is used as it lies, see
    /// [`ImageView::decoded`].
    pub fn process_image(&self, image: &DynamicImage, prompt: &str) -> Result<String> {
        let images = [ImageView::decoded(image)];
        let request = Request { max_new_tokens: self.max_new_tokens, ..Request::new(prompt, &images) };
        Ok(self.engine.ask(&request)?.text)
    }

    /// The engine underneath, for sessions, streaming and settings.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}
