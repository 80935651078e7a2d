//! What is loaded of a checkpoint: weights, tokenizer, prompt and image settings; immutable.

use std::path::Path;

use crate::backend::{Backend, Beside};
use crate::config::{self, ImageConfig, ModelConfig};
use crate::ends;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::fork::no_fork;
use crate::image_cache::ImageCache;
use crate::log;
use crate::options::{EngineOptions, Placement};
use crate::process::OfProcess;
use crate::prompt::{ChatTemplate, IMAGE_TOKEN, PromptBuilder};
use crate::tokenizer::Tokenizer;

pub(crate) struct Loaded {
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

impl Loaded {
    /// The checkpoint's tokenizer and settings, around the backend that `open` opens.
    pub(crate) fn assemble(
        model_dir: &Path,
        options: &EngineOptions,
        open: impl FnOnce(
            &ModelFiles,
            &ModelConfig,
            &ImageConfig,
            &EngineOptions,
            &mut Beside<'_>,
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
            log::warn(format_args!(
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
        log::info(format_args!(
            "{}: loaded on {}, device {}, {}, KV cache in {}, context of {context_tokens} tokens",
            model_dir.display(),
            name.name(),
            device.name(),
            dtype.name(),
            kv_cache.name()
        ));
        let image_token_id = model.image_token_id;
        Ok(Self {
            backend: OfProcess::new(backend),
            tokenizer,
            prompt,
            image_cache: ImageCache::new(options.image_cache_bytes),
            images,
            image_token_id,
            vocab_size,
            eos,
            context_tokens,
        })
    }

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
