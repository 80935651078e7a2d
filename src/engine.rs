//! The handle of a loaded checkpoint, shared by every session.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::answer::{Answer, OnText, Request};
use crate::backend::{self, Backend};
use crate::error::Result;
use crate::image_cache::ImageCacheStats;
use crate::loaded::Loaded;
pub use crate::options::EngineOptions;
use crate::options::Placement;
use crate::session::Session;
use crate::tokenizer::Tokenizer;

/// A loaded checkpoint. Cloning shares it; any thread may use it.
#[derive(Clone)]
pub struct Engine(Arc<Loaded>);

impl Engine {
    /// Loads the checkpoint in `model_dir`: a directory, or a hub id (`owner/name`,
    /// `owner/name@revision`) that the hub's local cache holds. Errors name the file at fault.
    pub fn load(model_dir: &Path, options: &EngineOptions) -> Result<Self> {
        Ok(Self(Arc::new(Loaded::assemble(model_dir, options, backend::open)?)))
    }

    /// The checkpoint's tokenizer and settings around a backend of the caller's.
    pub fn with_backend(model_dir: &Path, options: &EngineOptions, backend: Box<dyn Backend>) -> Result<Self> {
        Ok(Self(Arc::new(Loaded::assemble(model_dir, options, |_, _, _, _, _| Ok(backend))?)))
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
}

impl Session {
    /// An empty conversation.
    pub fn new(engine: &Engine) -> Result<Self> {
        Self::with(engine.0.clone())
    }
}
