//! One conversation: the whole pipeline, from pictures and a question to an answer, on one screen.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::backend::Canceller;
use crate::backend::{Decoder, Halt, Run, Stop, StopReason};
use crate::config::MAX_LONGEST_EDGE;
use crate::conversation::{self, Picture};
use crate::engine::{Engine, Inner};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImageView;
use crate::image_cache::{Encoded, Key};
use crate::metrics::{Metrics, ms_since};
use crate::output::Output;
use crate::preprocess::{self, TileOptions, Tiles};
use crate::process::OfProcess;
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
    decoder: OfProcess<Box<dyn Decoder>>,
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
    /// Leading image values that are those which the cache was made with.
    same_image_values: usize,
    generated: Vec<u32>,
    output: Output,
    metrics: Metrics,
    started: Instant,
}

impl Session {
    /// An empty conversation.
    pub fn new(engine: &Engine) -> Result<Self> {
        let backend = &engine.inner().backend;
        backend.check()?;
        Ok(Self {
            decoder: OfProcess::new(backend.decoder()?),
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
        self.answer(Asked::Question, request, on_text)
    }

    /// Answers turns that the templates take; see [`Session::converse`].
    pub(crate) fn answer_messages(
        &mut self,
        messages: Vec<Message>,
        pictures: &[Picture<'_>],
        request: &Request<'_>,
        on_text: &mut OnText<'_>,
    ) -> Result<Answer> {
        self.answer(Asked::Conversation { messages, pictures }, request, on_text)
    }

    fn answer(&mut self, asked: Asked<'_>, request: &Request<'_>, on_text: &mut OnText<'_>) -> Result<Answer> {
        self.decoder.check()?;
        let started = Instant::now();
        let stop = Stop::new(self.canceller.clone(), request.timeout.and_then(|t| started.checked_add(t)));
        let _running = Running::new(&self.canceller);

        let before = match asked {
            Asked::Question => Before::Shorter {
                messages: self.messages.len(),
                grids: self.grids.len(),
                image_values: self.image_rows.len(),
            },
            Asked::Conversation { .. } => Before::Other {
                messages: std::mem::take(&mut self.messages),
                grids: std::mem::take(&mut self.grids),
                image_rows: std::mem::take(&mut self.image_rows),
            },
        };
        let continues = asked.continues();
        let output = Output::new(request.stop);
        let mut turn = Turn {
            ids: Vec::new(),
            // Before the prefill nothing in the cache changes.
            reused: self.cached.len(),
            same_image_values: usize::MAX,
            generated: Vec::new(),
            output: Output::default(),
            metrics: Metrics::new(self.engine.placement()),
            started,
        };
        let end = match output {
            Ok(output) => {
                turn.output = if continues { output.continuing() } else { output };
                self.run(asked, &before, request, &mut turn, &stop, on_text)
            }
            Err(error) => Err(error.into()),
        };
        let mut answered = true;
        if matches!(end, Err(Halt::Failed(_)))
            || turn.generated.is_empty() && !matches!(end, Ok(FinishReason::EndOfText))
        {
            // Nothing of this turn may be found in the cache by a later question with other pictures.
            self.forget(before, turn.reused);
            answered = false;
        }
        let finish_reason = match end {
            Ok(reason) => reason,
            Err(Halt::Stopped(reason)) => reason.into(),
            Err(Halt::Failed(error)) => return Err(error),
        };
        turn.metrics.total_ms = ms_since(started);
        turn.metrics.generated_tokens = turn.generated.len();
        let (text, markers) = turn.output.into_text();
        match self.messages.last_mut().filter(|_| answered) {
            Some(last) if continues => last.append(&text, markers),
            Some(_) => self.messages.push(Message::answer(&text, markers)),
            None => {}
        }
        Ok(Answer { text, token_ids: turn.generated, prompt_token_ids: turn.ids, finish_reason, metrics: turn.metrics })
    }

    /// The pipeline. Each stage reads what the one before made.
    fn run(
        &mut self,
        asked: Asked<'_>,
        before: &Before,
        request: &Request<'_>,
        turn: &mut Turn,
        stop: &Stop,
        on_text: &mut OnText<'_>,
    ) -> Run<FinishReason> {
        let engine = self.engine.clone();
        let inner = engine.inner();
        let mut sampler = Sampler::new(request.sampling)?;

        let pictures = asked.pictures(request);
        let prepared = preprocess_images(inner, &pictures, request.longest_edge, stop, &mut turn.metrics)?;
        self.grids.extend(prepared.iter().map(Prepared::grid));
        match asked {
            Asked::Question => self.add_messages(request)?,
            Asked::Conversation { messages, .. } => {
                self.messages = messages;
                let texts = self.messages.iter().flat_map(Message::texts).map(str::len).sum();
                self.check_length("messages", texts)?;
            }
        }
        turn.ids = conversation::built(&mut self.messages, |messages| {
            inner.prompt.build(messages, &self.grids, &inner.tokenizer)
        })?;
        inner.check_ids(&turn.ids)?;
        self.check_context(turn, inner)?;
        self.encode_images(prepared, inner, stop, &mut turn.metrics)?;
        if let Before::Other { image_rows, .. } = before {
            turn.same_image_values = self.image_rows.iter().zip(image_rows).take_while(|(new, old)| new == old).count();
        }

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

    fn add_messages(&mut self, request: &Request<'_>) -> Result<()> {
        // A question without words is one about pictures.
        if request.prompt.is_empty() && request.images.is_empty() {
            return Err(Error::invalid_argument("prompt: empty"));
        }
        self.check_length("prompt", request.prompt.len())?;
        self.check_length("system_prompt", request.system_prompt.unwrap_or_default().len())?;
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
        self.messages.push(Message::question(request.images.len(), request.prompt));
        Ok(())
    }

    /// Refuses a text that no tokens could be few enough for, before it is rendered and tokenised.
    fn check_length(&self, name: &str, bytes: usize) -> Result<()> {
        let inner = self.engine.inner();
        let most = inner.context_tokens.saturating_mul(inner.tokenizer.longest_token_bytes());
        if bytes > most {
            let message = format!("{name}: {bytes} bytes; {} tokens hold at most {most}", inner.context_tokens);
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

    fn encode_images(&mut self, prepared: Vec<Prepared>, inner: &Inner, stop: &Stop, metrics: &mut Metrics) -> Run<()> {
        let start = Instant::now();
        let done = prepared.into_iter().try_for_each(|picture| {
            metrics.tiles += picture.tiles();
            match picture {
                Prepared::Known(encoded) => self.image_rows.extend_from_slice(&encoded.values),
                Prepared::Cut(tiles, key) => {
                    let values = inner.backend.encode_images(&tiles, stop)?.values;
                    self.image_rows.extend_from_slice(&values);
                    if let Some(key) = key {
                        let encoded = Encoded { grid: Grid::from(&tiles), tiles: tiles.count(), values: values.into() };
                        inner.image_cache.put(key, encoded);
                    }
                }
            }
            Ok(())
        });
        metrics.vision_ms = ms_since(start);
        done
    }

    /// Brings the cache from what it holds to the whole prompt; the logits after it.
    fn prefill(&mut self, turn: &mut Turn, inner: &Inner, stop: &Stop) -> Run<&[f32]> {
        let start = Instant::now();
        let images = |ids: &[u32]| ids.iter().filter(|&&id| id == inner.image_token_id).count();
        let all = images(&turn.ids);
        let width = self.image_rows.len().checked_div(all).unwrap_or(0);
        // The same ids may stand for another picture.
        let mut same_images = turn.same_image_values.checked_div(width).unwrap_or(0);
        let same = |&(a, b): &(&u32, &u32)| {
            let image = *b == inner.image_token_id;
            let same = a == b && (!image || same_images > 0);
            same_images -= usize::from(same && image);
            same
        };
        let shared = self.cached.iter().zip(&turn.ids).take_while(same).count();
        let Some(last) = turn.ids.len().checked_sub(1) else {
            return Err(Error::invalid_model("tokenizer.json: the prompt becomes no tokens").into());
        };
        // The last token always runs: its logits are wanted.
        turn.reused = shared.min(last);
        turn.metrics.cached_tokens = turn.reused;
        self.decoder.truncate(turn.reused);
        self.cached.truncate(turn.reused);

        let fresh = &turn.ids[turn.reused..];
        let wanted = images(fresh);
        let rows = &self.image_rows[(all - wanted) * width..];
        let logits = self.decoder.prefill(fresh, rows, stop);
        turn.metrics.prefill_ms = ms_since(start);
        if logits.is_ok() {
            self.cached.extend_from_slice(fresh);
        }
        logits
    }

    fn forget(&mut self, before: Before, cached: usize) {
        match before {
            Before::Shorter { messages, grids, image_values } => {
                self.messages.truncate(messages);
                self.grids.truncate(grids);
                self.image_rows.truncate(image_values);
            }
            Before::Other { messages, grids, image_rows } => {
                (self.messages, self.grids, self.image_rows) = (messages, grids, image_rows);
            }
        }
        self.cached.truncate(cached);
        self.decoder.truncate(cached);
    }
}

/// What is to be answered.
enum Asked<'a> {
    /// The request's, after what was said before.
    Question,
    /// Turns in place of what was said before.
    Conversation { messages: Vec<Message>, pictures: &'a [Picture<'a>] },
}

impl Asked<'_> {
    /// Whether the answer goes on from one that has begun.
    fn continues(&self) -> bool {
        match self {
            Self::Question => false,
            Self::Conversation { messages, .. } => messages.last().is_some_and(|m| m.role == Role::Assistant),
        }
    }

    fn pictures<'a>(&'a self, request: &'a Request<'a>) -> Vec<Picture<'a>> {
        match self {
            Self::Question => request.images.iter().map(|&view| Picture { view, split: request.split }).collect(),
            Self::Conversation { pictures, .. } => pictures.to_vec(),
        }
    }
}

/// The conversation before the call.
enum Before {
    /// It was the same, and so long.
    Shorter {
        messages: usize,
        grids: usize,
        image_values: usize,
    },
    Other {
        messages: Vec<Message>,
        grids: Vec<Grid>,
        image_rows: Vec<f32>,
    },
}

/// A picture on its way to its rows.
enum Prepared {
    /// Its key if its rows are to be kept.
    Cut(Tiles, Option<Key>),
    Known(Arc<Encoded>),
}

impl Prepared {
    fn tiles(&self) -> usize {
        match self {
            Self::Cut(tiles, _) => tiles.count(),
            Self::Known(encoded) => encoded.tiles,
        }
    }

    fn grid(&self) -> Grid {
        match self {
            Self::Cut(tiles, _) => Grid::from(tiles),
            Self::Known(encoded) => encoded.grid,
        }
    }
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

fn preprocess_images(
    inner: &Inner,
    pictures: &[Picture<'_>],
    longest_edge: Option<usize>,
    stop: &Stop,
    metrics: &mut Metrics,
) -> Run<Vec<Prepared>> {
    let start = Instant::now();
    let longest_edge = longest_edge.unwrap_or(inner.images.longest_edge);
    if !(1..=MAX_LONGEST_EDGE).contains(&longest_edge) {
        let message = format!("longest_edge: {longest_edge} given, 1 to {MAX_LONGEST_EDGE} accepted");
        return Err(Error::invalid_argument(message).into());
    }
    let mut all: Vec<Prepared> = Vec::new();
    let mut image_tokens = 0;
    let done = pictures.iter().enumerate().try_for_each(|(i, picture)| {
        stop.check()?;
        let prepared =
            preprocess_image(inner, picture, longest_edge, stop).map_err(|e| e.at(format!("images[{i}]")))?;
        let Some(prepared) = prepared else { return stop.check() };
        // Before more pictures take memory.
        image_tokens += prepared.tiles() * inner.prompt.tokens_per_tile();
        if image_tokens >= inner.context_tokens {
            let context = inner.context_tokens;
            let message =
                format!("images[{i}]: {image_tokens} image tokens up to here; the context holds {context} tokens");
            return Err(Error::new(ErrorKind::ContextOverflow, message).into());
        }
        all.push(prepared);
        Ok(())
    });
    metrics.preprocess_ms = ms_since(start);
    done.map(|()| all)
}

/// `None` means that `stop` said so.
fn preprocess_image(
    inner: &Inner,
    picture: &Picture<'_>,
    longest_edge: usize,
    stop: &Stop,
) -> Result<Option<Prepared>> {
    let split = picture.split && inner.images.split;
    let file = picture.view.file().filter(|_| inner.image_cache.is_on());
    let key = file.map(|(bytes, orient)| Key::new(bytes, orient, longest_edge, split));
    if let Some(known) = key.and_then(|key| inner.image_cache.get(&key)) {
        return Ok(Some(Prepared::Known(known)));
    }
    let options = TileOptions { tile_size: inner.images.tile_size, longest_edge, split, threads: inner.threads };
    let rgb = picture.view.to_rgb()?;
    let tiles = preprocess::tiles(&rgb, &options, &mut || stop.reason().is_some())?;
    Ok(tiles.map(|tiles| Prepared::Cut(tiles, key)))
}
