//! A loaded checkpoint: weights, tokenizer, prompt and image settings; immutable, shared by every
//! session.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::{self, Backend, BackendKind, DTypeKind, DeviceKind, Placement};
use crate::config::{self, ImageConfig, ModelConfig};
use crate::ends;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::fork::no_fork;
use crate::image_cache::{ImageCache, ImageCacheStats};
use crate::process::OfProcess;
use crate::prompt::{ChatTemplate, IMAGE_TOKEN, PromptBuilder};
use crate::session::{Answer, OnText, Request, Session};
use crate::tokenizer::Tokenizer;

/// How a checkpoint is loaded. Zero means default.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    pub backend: BackendKind,
    pub device: DeviceKind,
    /// Which of several accelerators.
    pub device_index: usize,
    pub dtype: DTypeKind,
    /// What the KV cache has keys and values in. Candle: `Int8` or `Bf16` where `dtype` is `Bf16`,
    /// `Int8` or `Int4` on the CPU, whichever the weights are in; `Auto` is `Bf16` for `Bf16`, else
    /// `Int8`. Otherwise it is as `dtype` or the ONNX graphs say, and asking for another one is an
    /// error.
    pub kv_cache: DTypeKind,
    /// Threads that compute, 0: one per core at hand. The engine never takes more: calls that run
    /// at once share them.
    pub num_threads: usize,
    /// Refuse to load if weights and one full KV cache need more, 0: no limit.
    pub max_memory_bytes: u64,
    /// Longest context of a session, 0: the checkpoint's.
    pub context_tokens: usize,
    /// The ONNX Runtime library.
    pub onnxruntime_path: Option<PathBuf>,
    /// A directory in which Candle keeps weights as the kernels want them, in bf16, int8 and int4:
    /// a load that finds them there reads no others, but the embedding. It is made if it is missing,
    /// and must be trusted as the checkpoint is; its files are checked against their digests. Of
    /// the weights that a `SHA256SUMS` lists, all that a load uses is verified by it, or against
    /// what was made of them when they were. `None`: nothing is kept.
    pub packed_cache_dir: Option<PathBuf>,
    /// Most bytes of encoded pictures that the engine keeps, for the next question about the same
    /// file. 0: none.
    pub image_cache_bytes: usize,
}

/// A loaded checkpoint. Cloning shares it; any thread may use it.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) backend: OfProcess<Box<dyn Backend>>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) prompt: PromptBuilder,
    pub(crate) image_cache: ImageCache,
    pub(crate) images: ImageConfig,
    pub(crate) image_token_id: u32,
    /// Rows of the embedding.
    pub(crate) vocab_size: usize,
    /// Ids that end an answer.
    pub(crate) eos: Vec<u32>,
    pub(crate) context_tokens: usize,
}

impl Engine {
    /// Loads the checkpoint in `model_dir`: a directory, or a hub id (`owner/name`,
    /// `owner/name@revision`) that the hub's local cache holds. Errors name the file at fault.
    pub fn load(model_dir: &Path, options: &EngineOptions) -> Result<Self> {
        Self::assemble(model_dir, options, backend::open)
    }

    /// The checkpoint's tokenizer and settings around a backend of the caller's.
    pub fn with_backend(model_dir: &Path, options: &EngineOptions, backend: Box<dyn Backend>) -> Result<Self> {
        Self::assemble(model_dir, options, |_, _, _, _, _| Ok(backend))
    }

    fn assemble(
        model_dir: &Path,
        options: &EngineOptions,
        open: impl FnOnce(
            &ModelFiles,
            &ModelConfig,
            &ImageConfig,
            &EngineOptions,
            &mut backend::Beside<'_>,
        ) -> Result<Box<dyn Backend>>,
    ) -> Result<Self> {
        // What packed weights are made of is proven where they are made.
        let packed = options.packed_cache_dir.is_some();
        let files = ModelFiles::open_but(model_dir, |name| packed && name.ends_with(".safetensors"))?;
        let model = ModelConfig::load(&files)?;
        let images = ImageConfig::load(&files, &model)?;
        config::check_processor(&files, &model)?;
        let context_tokens = context(options, &model)?;

        // It takes one thread, and as long as packed weights: the backend has it done beside them,
        // or not at all.
        let load_tokenizer = || no_fork_during(|| Tokenizer::load(&files));
        let mut tokenizer = None;
        let backend = open(&files, &model, &images, options, &mut || tokenizer = Some(load_tokenizer()));
        let tokenizer = tokenizer.unwrap_or_else(load_tokenizer)?;
        let vocab_size = model.text.vocab_size;
        if tokenizer.vocab_size() > vocab_size {
            crate::log::warn(format_args!(
                "{}: has ids up to {}, the embedding {vocab_size} rows: a prompt that needs one of the others will be an error",
                files.path("tokenizer.json").display(),
                tokenizer.vocab_size() - 1
            ));
        }
        let image_token = tokenizer.special_tokens(IMAGE_TOKEN).next().map(|(_, id)| id);
        if image_token != Some(model.image_token_id) {
            let id = image_token.map_or("no special token".into(), |id| format!("token {id}"));
            let message = format!("{IMAGE_TOKEN} is {id}, config.json's image_token_id is {}", model.image_token_id);
            return Err(Error::invalid_model(message).at(files.path("tokenizer.json").display()));
        }
        let eos = ends::ids(&files, &tokenizer, vocab_size)?;
        if eos.is_empty() {
            return Err(Error::invalid_model(format!(
                "{}: nothing here says which token ends an answer; set eos_token_id in generation_config.json",
                model_dir.display()
            )));
        }
        let prompt = PromptBuilder::new(no_fork_during(|| ChatTemplate::load(&files))?, model.tokens_per_tile());
        let backend = backend?;
        let Placement { backend: name, device, dtype, kv_cache } = backend.placement();
        crate::log::info(format_args!(
            "{}: loaded on {}, device {}, {}, KV cache in {}, context of {context_tokens} tokens",
            model_dir.display(),
            name.name(),
            device.name(),
            dtype.name(),
            kv_cache.name()
        ));
        let image_token_id = model.image_token_id;
        Ok(Self(Arc::new(Inner {
            backend: OfProcess::new(backend),
            tokenizer,
            prompt,
            image_cache: ImageCache::new(options.image_cache_bytes),
            images,
            image_token_id,
            vocab_size,
            eos,
            context_tokens,
        })))
    }

    /// Answers one question; nothing is remembered. Many threads may call at once.
    pub fn process(&self, request: &Request<'_>, on_text: &mut OnText<'_>) -> Result<Answer> {
        Session::new(self)?.process(request, on_text)
    }

    /// Answers one question without streaming.
    pub fn ask(&self, request: &Request<'_>) -> Result<Answer> {
        self.process(request, &mut |_| ControlFlow::Continue(()))
    }

    /// What really computes.
    pub fn placement(&self) -> Placement {
        self.0.backend.placement()
    }

    /// The checkpoint's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The ids that end an answer, at least one.
    pub fn end_ids(&self) -> &[u32] {
        &self.0.eos
    }

    /// What the cache of encoded pictures did so far, and what it holds.
    pub fn image_cache(&self) -> ImageCacheStats {
        self.0.image_cache.stats()
    }

    /// The longest context of a session, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.0.context_tokens
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }
}

impl Inner {
    /// Refuses ids that the embedding has no row for.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size) else { return Ok(()) };
        let token = self.tokenizer.token(*id).unwrap_or_default();
        Err(Error::invalid_model(format!(
            "prompt: needs the token \"{token}\", id {id}, and the embedding has {} rows; take the tokenizer and chat template that \
             the model was trained with, or resize its embedding",
            self.vocab_size
        )))
    }
}

/// Tokenizers and templates have tables that a process makes once.
fn no_fork_during<T>(load: impl FnOnce() -> T) -> T {
    let _no_fork = no_fork();
    load()
}

fn context(options: &EngineOptions, model: &ModelConfig) -> Result<usize> {
    let most = model.text.max_position_embeddings;
    match options.context_tokens {
        0 => Ok(most),
        n if n <= most => Ok(n),
        n => Err(Error::invalid_argument(format!("context_tokens: {n} given, the checkpoint was trained for {most}"))),
    }
}
