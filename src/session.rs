//! One conversation: the whole pipeline, from pictures and a question to an answer, on one screen.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

pub use crate::backend::Canceller;
use crate::backend::{Decoder, Halt, Run, Stop, StopReason};
use crate::config::MAX_LONGEST_EDGE;
use crate::engine::{Engine, Inner};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageView;
use crate::metrics::{Metrics, ms_since};
use crate::output::Output;
use crate::preprocess::{self, TileOptions, Tiles};
use crate::prompt::{Grid, Message, Role};
use crate::sampler::{Sampler, Sampling};

/// Takes text as it is made, in whole code points; `Break` stops the generation.
pub type OnText<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// The longest answer where a request does not say, in tokens.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 256;

/// One question.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// May be empty where there is a picture: the family answers with a caption.
    pub prompt: &'a str,
    /// Only with the first question of a conversation.
    pub system_prompt: Option<&'a str>,
    pub images: &'a [ImageView<'a>],
    /// Tile budget: the longest edge of a picture before it is split, in pixels. `None`: the checkpoint's.
    pub longest_edge: Option<usize>,
    /// Split large pictures into tiles. `false`: one tile a picture.
    pub split: bool,
    /// 0: [`DEFAULT_MAX_NEW_TOKENS`].
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: &'a [&'a str],
    /// Covers everything from the call on.
    pub timeout: Option<Duration>,
    /// The special tokens of the answer are in its text, but for those that end it and padding. Checkpoints that write
    /// a document's layout do so in such tokens.
    pub keep_special_tokens: bool,
}

impl<'a> Request<'a> {
    /// A greedy, unhurried question about `images`.
    pub fn new(prompt: &'a str, images: &'a [ImageView<'a>]) -> Self {
        Self {
            prompt,
            system_prompt: None,
            images,
            longest_edge: None,
            split: true,
            max_new_tokens: 0,
            sampling: Sampling::default(),
            stop: &[],
            timeout: None,
            keep_special_tokens: false,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    EndOfText,
    /// `max_new_tokens`, or the context, is used up.
    MaxTokens,
    StopString,
    Cancelled,
    Timeout,
}

impl From<StopReason> for FinishReason {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled => Self::Cancelled,
            StopReason::Timeout => Self::Timeout,
        }
    }
}

impl FinishReason {
    /// The lower-case name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::MaxTokens => "max_tokens",
            Self::StopString => "stop_string",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }
}

/// An answer, complete or as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    /// What the model generated, without the token that ends an answer.
    pub token_ids: Vec<u32>,
    pub prompt_token_ids: Vec<u32>,
    pub finish_reason: FinishReason,
    pub metrics: Metrics,
}

/// A conversation and its KV cache.
pub struct Session {
    engine: Engine,
    decoder: Box<dyn Decoder>,
    canceller: Canceller,
    messages: Vec<Message>,
    grids: Vec<Grid>,
    /// Image rows of all pictures in `grids`, one after the other.
    image_rows: Vec<f32>,
    /// The ids that the decoder's cache holds.
    cached: Vec<u32>,
}

/// What a question is on its way to becoming part of the conversation.
struct Turn {
    ids: Vec<u32>,
    /// Leading ids that the cache holds already.
    reused: usize,
    generated: Vec<u32>,
    output: Output,
    metrics: Metrics,
    started: Instant,
}

impl Session {
    /// An empty conversation.
    pub fn new(engine: &Engine) -> Result<Self> {
        Ok(Self {
            decoder: engine.inner().backend.decoder()?,
            engine: engine.clone(),
            canceller: Canceller::default(),
            messages: Vec::new(),
            grids: Vec::new(),
            image_rows: Vec::new(),
            cached: Vec::new(),
        })
    }

    /// Ends the generation that runs, from any thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Forgets the conversation.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.grids.clear();
        self.image_rows.clear();
        self.cached.clear();
        self.decoder.truncate(0);
    }

    /// Answers a question, with what was said before in mind.
    ///
    /// An error, or a stop before the first token, leaves the conversation as it was.
    pub fn process(&mut self, request: &Request<'_>, on_text: &mut OnText<'_>) -> Result<Answer> {
        let started = Instant::now();
        let stop = Stop::new(self.canceller.clone(), request.timeout.and_then(|t| started.checked_add(t)));
        let _running = Running::new(&self.canceller);

        let before =
            Mark { messages: self.messages.len(), grids: self.grids.len(), image_values: self.image_rows.len() };
        let mut turn = Turn {
            ids: Vec::new(),
            // Before the prefill nothing in the cache changes.
            reused: self.cached.len(),
            generated: Vec::new(),
            output: Output::new(request.stop)?,
            metrics: Metrics::new(self.engine.placement()),
            started,
        };
        let end = self.run(request, &mut turn, &stop, on_text);
        if turn.generated.is_empty() && !matches!(end, Ok(FinishReason::EndOfText)) {
            // Nothing of this turn may be found in the cache by a later question with other pictures.
            self.forget(&before, turn.reused);
        }
        let finish_reason = match end {
            Ok(reason) => reason,
            Err(Halt::Stopped(reason)) => reason.into(),
            Err(Halt::Failed(error)) => {
                self.forget(&before, turn.reused);
                return Err(error);
            }
        };
        turn.metrics.total_ms = ms_since(started);
        turn.metrics.generated_tokens = turn.generated.len();
        let (text, markers) = turn.output.into_text();
        if self.messages.len() > before.messages {
            self.messages.push(Message::answer(&text, markers));
        }
        Ok(Answer { text, token_ids: turn.generated, prompt_token_ids: turn.ids, finish_reason, metrics: turn.metrics })
    }

    /// The pipeline. Each stage reads what the one before made.
    fn run(
        &mut self,
        request: &Request<'_>,
        turn: &mut Turn,
        stop: &Stop,
        on_text: &mut OnText<'_>,
    ) -> Run<FinishReason> {
        let engine = self.engine.clone();
        let inner = engine.inner();
        let mut sampler = Sampler::new(request.sampling)?;

        let tiles = preprocess_images(inner, request, stop, &mut turn.metrics)?;
        self.add_messages(request, &tiles)?;
        turn.ids = inner.prompt.build(&self.messages, &self.grids, &inner.tokenizer)?;
        inner.check_ids(&turn.ids)?;
        self.check_context(turn, inner)?;
        self.encode_images(&tiles, inner, stop, &mut turn.metrics)?;

        let mut largest = sampler.needs();
        let logits = self.prefill(turn, inner, stop)?;
        let mut next = sampler.sample(logits, &turn.ids)?;
        let budget = match request.max_new_tokens {
            0 => DEFAULT_MAX_NEW_TOKENS,
            n => n,
        };
        let budget = budget.min(inner.context_tokens - turn.ids.len());
        let padding = inner.prompt.padding(&inner.tokenizer);
        let decoding = Instant::now();
        let mut context = turn.ids.clone();
        let reason = loop {
            let id = next;
            if turn.generated.is_empty() {
                turn.metrics.time_to_first_token_ms = ms_since(turn.started);
            }
            if inner.eos.contains(&id) {
                break FinishReason::EndOfText;
            }
            turn.generated.push(id);
            context.push(id);
            match inner.tokenizer.special_text(id).filter(|_| request.keep_special_tokens && padding != Some(id)) {
                Some(special) => turn.output.push_special(special),
                None => turn.output.push(inner.tokenizer.token_bytes(id)),
            }
            if let Some(reason) = turn.output.release(on_text) {
                break reason;
            }
            if let Some(reason) = stop.reason() {
                break reason.into();
            }
            if turn.generated.len() == budget {
                break FinishReason::MaxTokens;
            }
            self.cached.push(id);
            next = match &mut largest {
                Some(largest) => {
                    self.decoder.step_to(id, largest)?;
                    sampler.pick(largest)?
                }
                None => sampler.sample(self.decoder.step(id)?, &context)?,
            };
        };
        let reason = turn.output.finish(reason, on_text);
        turn.metrics.decode_ms = ms_since(decoding);
        Ok(reason)
    }

    fn add_messages(&mut self, request: &Request<'_>, tiles: &[Tiles]) -> Result<()> {
        // A question without words is one about pictures.
        if request.prompt.is_empty() && tiles.is_empty() {
            return Err(Error::invalid_argument("prompt: empty"));
        }
        self.check_length("prompt", request.prompt)?;
        self.check_length("system_prompt", request.system_prompt.unwrap_or_default())?;
        if let Some(text) = request.system_prompt {
            let system = Message::text(Role::System, text);
            match self.messages.first() {
                None => self.messages.push(system),
                Some(first) if *first == system => {}
                Some(_) => {
                    return Err(Error::invalid_argument(
                        "system_prompt: the conversation has begun with another one; reset it",
                    ));
                }
            }
        }
        self.messages.push(Message::question(tiles.len(), request.prompt));
        self.grids.extend(tiles.iter().map(Grid::from));
        Ok(())
    }

    /// Refuses a text that no tokens could be few enough for, before it is rendered and tokenised.
    fn check_length(&self, name: &str, text: &str) -> Result<()> {
        let inner = self.engine.inner();
        let most = inner.context_tokens.saturating_mul(inner.tokenizer.longest_token_bytes());
        if text.len() > most {
            let message = format!("{name}: {} bytes; {} tokens hold at most {most}", text.len(), inner.context_tokens);
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        Ok(())
    }

    fn check_context(&self, turn: &mut Turn, inner: &Inner) -> Result<()> {
        let prompt_tokens = turn.ids.len();
        let image_tokens = turn.ids.iter().filter(|&&id| id == inner.image_token_id).count();
        turn.metrics.prompt_tokens = prompt_tokens;
        turn.metrics.image_tokens = image_tokens;
        if prompt_tokens >= inner.context_tokens {
            let message = format!(
                "prompt: {prompt_tokens} tokens, {image_tokens} of them for images; the context holds {}",
                inner.context_tokens
            );
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        Ok(())
    }

    fn encode_images(&mut self, tiles: &[Tiles], inner: &Inner, stop: &Stop, metrics: &mut Metrics) -> Run<()> {
        let start = Instant::now();
        let done = tiles.iter().try_for_each(|tiles| {
            metrics.tiles += tiles.count();
            self.image_rows.extend(inner.backend.encode_images(tiles, stop)?.values);
            Ok(())
        });
        metrics.vision_ms = ms_since(start);
        done
    }

    /// Brings the cache from what it holds to the whole prompt; the logits after it.
    fn prefill(&mut self, turn: &mut Turn, inner: &Inner, stop: &Stop) -> Run<&[f32]> {
        let start = Instant::now();
        let shared = self.cached.iter().zip(&turn.ids).take_while(|(a, b)| a == b).count();
        let Some(last) = turn.ids.len().checked_sub(1) else {
            return Err(Error::invalid_model("tokenizer.json: the prompt becomes no tokens").into());
        };
        // The last token always runs: its logits are wanted.
        turn.reused = shared.min(last);
        turn.metrics.cached_tokens = turn.reused;
        self.decoder.truncate(turn.reused);
        self.cached.truncate(turn.reused);

        let fresh = &turn.ids[turn.reused..];
        let images = |ids: &[u32]| ids.iter().filter(|&&id| id == inner.image_token_id).count();
        let (all, wanted) = (images(&turn.ids), images(fresh));
        let width = self.image_rows.len().checked_div(all).unwrap_or(0);
        let rows = &self.image_rows[(all - wanted) * width..];
        let logits = self.decoder.prefill(fresh, rows, stop);
        turn.metrics.prefill_ms = ms_since(start);
        if logits.is_ok() {
            self.cached.extend_from_slice(fresh);
        }
        logits
    }

    fn forget(&mut self, mark: &Mark, cached: usize) {
        self.messages.truncate(mark.messages);
        self.grids.truncate(mark.grids);
        self.image_rows.truncate(mark.image_values);
        self.cached.truncate(cached);
        self.decoder.truncate(cached);
    }
}

/// How long the conversation was.
struct Mark {
    messages: usize,
    grids: usize,
    image_values: usize,
}

/// A canceller works between `new` and drop.
struct Running(Canceller);

impl Running {
    fn new(canceller: &Canceller) -> Self {
        canceller.start();
        Self(canceller.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn preprocess_images(inner: &Inner, request: &Request<'_>, stop: &Stop, metrics: &mut Metrics) -> Run<Vec<Tiles>> {
    let start = Instant::now();
    let longest_edge = request.longest_edge.unwrap_or(inner.images.longest_edge);
    if !(1..=MAX_LONGEST_EDGE).contains(&longest_edge) {
        let message = format!("longest_edge: {longest_edge} given, 1 to {MAX_LONGEST_EDGE} accepted");
        return Err(Error::invalid_argument(message).into());
    }
    let split = request.split && inner.images.split;
    let options = TileOptions { tile_size: inner.images.tile_size, longest_edge, split, threads: inner.threads };
    let mut all: Vec<Tiles> = Vec::new();
    let mut image_tokens = 0;
    let done = request.images.iter().enumerate().try_for_each(|(i, view)| {
        stop.check()?;
        let tiles = view
            .to_rgb()
            .and_then(|rgb| preprocess::tiles(&rgb, &options, &mut || stop.reason().is_some()))
            .map_err(|e| e.at(format!("images[{i}]")))?;
        let Some(tiles) = tiles else { return stop.check() };
        // Before more pictures take memory.
        image_tokens += tiles.count() * inner.prompt.tokens_per_tile();
        if image_tokens >= inner.context_tokens {
            let context = inner.context_tokens;
            let message =
                format!("images[{i}]: {image_tokens} image tokens up to here; the context holds {context} tokens");
            return Err(Error::new(ErrorKind::ContextOverflow, message).into());
        }
        all.push(tiles);
        Ok(())
    });
    metrics.preprocess_ms = ms_since(start);
    done.map(|()| all)
}
