//! Conversations that were held elsewhere: a session is made to have said what the client reports that it said.
//!
//! A session remembers the answers that it generated; the library has no call that adds one. So a backend stands
//! between, whose decoder computes nothing while its thread recalls: it keeps what it is given, and its logits name the
//! next token of the reported answer. What it kept runs through the model with the next real question, all at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::onnx::OnnxBackend;
use smolvlm::backend::{Backend, Decoder, ImageRows, Placement, Run, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::largest::Largest;
use smolvlm::preprocess::Tiles;
use smolvlm::tokenizer::Tokenizer;
use smolvlm::{BackendKind, Engine, EngineOptions, Error, ErrorKind, FinishReason, Request, Result, Sampling, Session};

/// A loaded checkpoint whose sessions can recall.
pub struct Model {
    pub engine: Engine,
    /// Ids by the bytes that they stand for.
    ids: HashMap<Box<[u8]>, u32>,
    end_of_text: u32,
}

impl Model {
    pub fn load(dir: &Path, options: &EngineOptions) -> Result<Self> {
        let files = ModelFiles::open(dir)?;
        let config = ModelConfig::load(&files)?;
        let images = ImageConfig::load(&files, &config)?;
        let inner: Box<dyn Backend> = match options.backend {
            BackendKind::Onnx => Box::new(OnnxBackend::load(&files, &config, &images, options)?),
            _ => Box::new(CandleBackend::load(&files, &config, &images, options)?),
        };
        let backend =
            RecallingBackend { inner, image_token_id: config.image_token_id, vocab_size: config.text.vocab_size };
        let engine = Engine::with_backend(dir, options, Box::new(backend))?;
        let end_of_text = engine.end_ids().first().copied();
        let end_of_text = end_of_text.ok_or_else(|| Error::new(ErrorKind::InvalidModel, "no token ends an answer"))?;
        Ok(Self { ids: ids_by_bytes(engine.tokenizer(), config.text.vocab_size), end_of_text, engine })
    }

    /// Adds a question and the answer that it is said to have had to the conversation.
    pub fn recall(&self, session: &mut Session, question: &Request<'_>, answer: &str) -> Result<FinishReason> {
        // The family's answers start with a space, which is not part of the text.
        let mut script = self.spell(&format!(" {answer}"))?;
        let request = Request {
            max_new_tokens: script.len() + 1,
            sampling: Sampling::default(),
            stop: &[],
            keep_special_tokens: false,
            ..question.clone()
        };
        script.push(self.end_of_text);
        let recalling = Recalling::new(script);
        let recalled = session.process(&request, &mut |_| ControlFlow::Continue(()));
        drop(recalling);
        match recalled?.finish_reason {
            FinishReason::MaxTokens => {
                let context = self.engine.context_tokens();
                let message = format!("messages: the conversation fills the context of {context} tokens");
                Err(Error::new(ErrorKind::ContextOverflow, message))
            }
            reason => Ok(reason),
        }
    }

    /// Some tokens that stand for `text`. Which ones does not matter: the next question's prompt has the text in the
    /// tokenizer's own, and what differs is forgotten.
    fn spell(&self, text: &str) -> Result<Vec<u32>> {
        let longest = self.engine.tokenizer().longest_token_bytes();
        let mut rest = text.as_bytes();
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let known = |n: &usize| self.ids.contains_key(&rest[..*n]);
            let Some(len) = (1..=longest.min(rest.len())).rev().find(known) else {
                let message = format!("messages: no token begins with the byte 0x{:02x}", rest[0]);
                return Err(Error::new(ErrorKind::Unsupported, message));
            };
            ids.push(self.ids[&rest[..len]]);
            rest = &rest[len..];
        }
        Ok(ids)
    }
}

/// Of the ids that the model can say: a tokenizer may have more.
fn ids_by_bytes(tokenizer: &Tokenizer, vocab_size: usize) -> HashMap<Box<[u8]>, u32> {
    let ids = 0..tokenizer.vocab_size().min(vocab_size) as u32;
    ids.map(|id| (tokenizer.token_bytes(id).into(), id))
        .filter(|(bytes, _): &(Box<[u8]>, _)| !bytes.is_empty())
        .collect()
}

thread_local! {
    /// The rest of the answer that this thread recalls.
    static SCRIPT: RefCell<Option<std::vec::IntoIter<u32>>> = const { RefCell::new(None) };
}

fn next_recalled() -> Option<u32> {
    SCRIPT.with_borrow_mut(|script| script.as_mut()?.next())
}

/// From `new` to drop, a panic's too, the thread recalls.
struct Recalling;

impl Recalling {
    fn new(script: Vec<u32>) -> Self {
        SCRIPT.set(Some(script.into_iter()));
        Self
    }
}

impl Drop for Recalling {
    fn drop(&mut self) {
        SCRIPT.set(None);
    }
}

struct RecallingBackend {
    inner: Box<dyn Backend>,
    image_token_id: u32,
    vocab_size: usize,
}

impl Backend for RecallingBackend {
    fn encode_images(&self, tiles: &Tiles, stop: &Stop) -> Run<ImageRows> {
        self.inner.encode_images(tiles, stop)
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(RecallingDecoder {
            inner: self.inner.decoder()?,
            image_token_id: self.image_token_id,
            ids: Vec::new(),
            image_rows: Vec::new(),
            logits: vec![0.0; self.vocab_size],
        }))
    }

    fn placement(&self) -> Placement {
        self.inner.placement()
    }
}

struct RecallingDecoder {
    inner: Box<dyn Decoder>,
    image_token_id: u32,
    /// What follows the inner cache and has not run yet.
    ids: Vec<u32>,
    image_rows: Vec<f32>,
    logits: Vec<f32>,
}

impl RecallingDecoder {
    /// Logits after which `id` is the likeliest.
    fn certain(&mut self, id: u32) -> &[f32] {
        self.logits.fill(0.0);
        self.logits[id as usize] = 1.0;
        &self.logits
    }

    fn images(&self) -> usize {
        self.ids.iter().filter(|&&id| id == self.image_token_id).count()
    }
}

impl Decoder for RecallingDecoder {
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]> {
        let recalled = next_recalled();
        if recalled.is_none() && self.ids.is_empty() {
            return self.inner.prefill(ids, image_rows, stop);
        }
        self.ids.extend_from_slice(ids);
        self.image_rows.extend_from_slice(image_rows);
        match recalled {
            Some(id) => Ok(self.certain(id)),
            None => {
                let (ids, rows) = (std::mem::take(&mut self.ids), std::mem::take(&mut self.image_rows));
                self.inner.prefill(&ids, &rows, stop)
            }
        }
    }

    fn step(&mut self, id: u32) -> Result<&[f32]> {
        match next_recalled() {
            Some(next) => {
                self.ids.push(id);
                Ok(self.certain(next))
            }
            None => self.inner.step(id),
        }
    }

    fn step_to(&mut self, id: u32, largest: &mut Largest) -> Result<()> {
        match next_recalled() {
            Some(next) => {
                self.ids.push(id);
                largest.clear();
                largest.take_in(0, self.certain(next));
                Ok(())
            }
            None => self.inner.step_to(id, largest),
        }
    }

    fn len(&self) -> usize {
        self.inner.len() + self.ids.len()
    }

    fn truncate(&mut self, len: usize) {
        let width = self.image_rows.len().checked_div(self.images()).unwrap_or(0);
        self.inner.truncate(len.min(self.inner.len()));
        self.ids.truncate(len - self.inner.len());
        self.image_rows.truncate(self.images() * width);
    }
}
