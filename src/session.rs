//! One conversation: the whole pipeline, from pictures and a question to an answer, on one screen.

mod asked;
mod converse;
mod pictures;
#[cfg(all(test, feature = "candle"))]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use crate::answer::Picture;
pub use crate::answer::{Answer, DEFAULT_MAX_NEW_TOKENS, FinishReason, OnText, Request};
use crate::backend::Decoder;
use crate::backend::threads::Call;
use crate::conversation;
use crate::error::{Error, ErrorKind, Result};
use crate::image_cache::Encoded;
use crate::loaded::Loaded;
use crate::metrics::{Metrics, ms_since};
use crate::output::Output;
use crate::process::OfProcess;
use crate::prompt::{Grid, Message, Role};
use crate::sampler::Sampler;
pub use crate::stop::Canceller;
use crate::stop::{Halt, Run, Stop};
use asked::{Asked, Before};
use pictures::{Prepared, preprocess_images};

/// A conversation and its KV cache.
pub struct Session {
    loaded: Arc<Loaded>,
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
struct Turn<'a> {
    ids: Vec<u32>,
    /// Leading ids that the cache holds already.
    reused: usize,
    /// Leading image values that are those which the cache was made with.
    same_image_values: usize,
    generated: Vec<u32>,
    output: Output,
    metrics: Metrics,
    started: Instant,
    call: Call<'a>,
}

impl Session {
    /// An empty conversation.
    pub(crate) fn with(loaded: Arc<Loaded>) -> Result<Self> {
        loaded.backend.check()?;
        Ok(Self {
            decoder: OfProcess::new(loaded.backend.decoder()?),
            loaded,
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
        // In a child its memory may be in a state between two.
        if self.decoder.check().is_ok() {
            self.decoder.truncate(0);
        }
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
        let loaded = self.loaded.clone();

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
            metrics: Metrics::new(loaded.backend.placement()),
            started,
            call: loaded.backend.threads().call(),
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
            // Nothing of this turn may be found in the cache by a later question with other
            // pictures.
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
        turn: &mut Turn<'_>,
        stop: &Stop,
        on_text: &mut OnText<'_>,
    ) -> Run<FinishReason> {
        let loaded = self.loaded.clone();
        let loaded = &*loaded;
        let mut sampler = Sampler::new(request.sampling)?;

        let pictures = asked.pictures(request);
        let prepared = preprocess_images(loaded, &pictures, request.longest_edge, stop, &mut turn.metrics)?;
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
            loaded.prompt.build(messages, &self.grids, &loaded.tokenizer)
        })?;
        loaded.check_ids(&turn.ids)?;
        self.check_context(turn, loaded)?;
        self.encode_images(prepared, loaded, stop, &mut turn.metrics)?;
        if let Before::Other { image_rows, .. } = before {
            turn.same_image_values = self.image_rows.iter().zip(image_rows).take_while(|(new, old)| new == old).count();
        }

        let mut largest = sampler.needs();
        let logits = self.prefill(turn, loaded, stop)?;
        let mut next = sampler.sample(logits, &turn.ids)?;
        let budget = match request.max_new_tokens {
            0 => DEFAULT_MAX_NEW_TOKENS,
            n => n,
        };
        let budget = budget.min(loaded.context_tokens - turn.ids.len());
        let padding = loaded.prompt.padding(&loaded.tokenizer);
        let decoding = Instant::now();
        let mut context = turn.ids.clone();
        let reason = loop {
            let id = next;
            if turn.generated.is_empty() {
                turn.metrics.time_to_first_token_ms = ms_since(turn.started);
            }
            if loaded.eos.contains(&id) {
                break FinishReason::EndOfText;
            }
            turn.generated.push(id);
            context.push(id);
            match loaded.tokenizer.special_text(id).filter(|_| request.keep_special_tokens && padding != Some(id)) {
                Some(special) => turn.output.push_special(special),
                None => turn.output.push(loaded.tokenizer.token_bytes(id)),
            }
            if let Some(reason) = turn.call.outside(|| turn.output.release(on_text)) {
                break reason;
            }
            if let Some(reason) = stop.reason() {
                break reason.into();
            }
            if turn.generated.len() == budget {
                break FinishReason::MaxTokens;
            }
            let picked = match &mut largest {
                Some(largest) => self.decoder.step_to(id, largest, stop).and_then(|()| Ok(sampler.pick(largest)?)),
                None => self.decoder.step(id, stop).and_then(|logits| Ok(sampler.sample(logits, &context)?)),
            };
            match picked {
                Ok(id) => next = id,
                Err(Halt::Stopped(reason)) => break reason.into(),
                Err(failed) => return Err(failed),
            }
            self.cached.push(id);
        };
        let reason = turn.call.outside(|| turn.output.finish(reason, on_text));
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
        let loaded = &self.loaded;
        let most = loaded.context_tokens.saturating_mul(loaded.tokenizer.longest_token_bytes());
        if bytes > most {
            let message = format!("{name}: {bytes} bytes; {} tokens hold at most {most}", loaded.context_tokens);
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        Ok(())
    }

    fn check_context(&self, turn: &mut Turn<'_>, loaded: &Loaded) -> Result<()> {
        let prompt_tokens = turn.ids.len();
        let image_tokens = turn.ids.iter().filter(|&&id| id == loaded.image_token_id).count();
        turn.metrics.prompt_tokens = prompt_tokens;
        turn.metrics.image_tokens = image_tokens;
        if prompt_tokens >= loaded.context_tokens {
            let message = format!(
                "prompt: {prompt_tokens} tokens, {image_tokens} of them for images; the context holds {}",
                loaded.context_tokens
            );
            return Err(Error::new(ErrorKind::ContextOverflow, message));
        }
        Ok(())
    }

    fn encode_images(
        &mut self,
        prepared: Vec<Prepared>,
        loaded: &Loaded,
        stop: &Stop,
        metrics: &mut Metrics,
    ) -> Run<()> {
        let start = Instant::now();
        let done = prepared.into_iter().try_for_each(|picture| {
            metrics.tiles += picture.tiles();
            match picture {
                Prepared::Known(encoded) => self.image_rows.extend_from_slice(&encoded.values),
                Prepared::Cut(tiles, key) => {
                    let values = loaded.backend.encode_images(&tiles, stop)?.values;
                    self.image_rows.extend_from_slice(&values);
                    if let Some(key) = key {
                        let encoded = Encoded { grid: Grid::from(&tiles), tiles: tiles.count(), values: values.into() };
                        loaded.image_cache.put(key, encoded);
                    }
                }
            }
            Ok(())
        });
        metrics.vision_ms = ms_since(start);
        done
    }

    /// Brings the cache from what it holds to the whole prompt; the logits after it.
    fn prefill(&mut self, turn: &mut Turn<'_>, loaded: &Loaded, stop: &Stop) -> Run<&[f32]> {
        let start = Instant::now();
        let images = |ids: &[u32]| ids.iter().filter(|&&id| id == loaded.image_token_id).count();
        let all = images(&turn.ids);
        let width = self.image_rows.len().checked_div(all).unwrap_or(0);
        // The same ids may stand for another picture.
        let mut same_images = turn.same_image_values.checked_div(width).unwrap_or(0);
        let same = |&(a, b): &(&u32, &u32)| {
            let image = *b == loaded.image_token_id;
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
