//! Sessions whose decoder is listened to, or fails when it is told to: no model's own does so in
//! the middle of an answer.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use image::DynamicImage;

use super::*;
use crate::backend::DTypeKind;
use crate::engine::{Engine, EngineOptions};
use crate::image::ImageView;
use crate::largest::Largest;
use crate::sampler::Sampling;
use crate::stop::StopReason;

const LIST: &str = "What objects are in this image?";
const ARROW: &str = "Which way does the arrow point?";

/// What a session asked of its decoder, and what is to come.
#[derive(Default)]
struct Log {
    /// Calls up to the one that fails; 0: none does.
    fails_at: usize,
    /// Steps up to the one that is stopped before it has its turn; 0: none is.
    stops_at: usize,
    /// The logits of each call that had all of them.
    logits: Vec<Vec<f32>>,
    /// Calls that had only the largest.
    largest: usize,
}

/// The engine's own decoder, and what is between it and the session.
struct Watched {
    inner: Box<dyn Decoder>,
    log: Arc<Mutex<Log>>,
    logits: Vec<f32>,
}

impl Watched {
    /// After the work is done: the worst moment, since the KV cache has grown.
    fn fail(&self) -> Result<()> {
        let mut log = self.log.lock().unwrap();
        log.fails_at = log.fails_at.wrapping_sub(1);
        if log.fails_at == 0 { Err(Error::internal("on purpose")) } else { Ok(()) }
    }

    fn wait(&self) -> Run<()> {
        let mut log = self.log.lock().unwrap();
        log.stops_at = log.stops_at.wrapping_sub(1);
        if log.stops_at == 0 { Err(Halt::Stopped(StopReason::Timeout)) } else { Ok(()) }
    }
}

impl Decoder for Watched {
    fn prefill(&mut self, ids: &[u32], image_rows: &[f32], stop: &Stop) -> Run<&[f32]> {
        self.logits = self.inner.prefill(ids, image_rows, stop)?.to_vec();
        self.fail()?;
        self.log.lock().unwrap().logits.push(self.logits.clone());
        Ok(&self.logits)
    }

    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]> {
        self.wait()?;
        self.logits = self.inner.step(id, stop)?.to_vec();
        self.fail()?;
        self.log.lock().unwrap().logits.push(self.logits.clone());
        Ok(&self.logits)
    }

    fn step_to(&mut self, id: u32, largest: &mut Largest, stop: &Stop) -> Run<()> {
        self.wait()?;
        self.inner.step_to(id, largest, stop)?;
        self.fail()?;
        self.log.lock().unwrap().largest += 1;
        Ok(())
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        self.inner.truncate(len);
    }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn engine(directory: &Path) -> Engine {
    Engine::load(directory, &EngineOptions { dtype: DTypeKind::F32, ..Default::default() }).unwrap()
}

fn watched(engine: &Engine) -> (Session, Arc<Mutex<Log>>) {
    let mut session = Session::new(engine).unwrap();
    let log = Arc::default();
    let inner = Session::new(engine).unwrap().loaded.backend.decoder().unwrap();
    session.decoder = OfProcess::new(Box::new(Watched { inner, log: Arc::clone(&log), logits: Vec::new() }));
    (session, log)
}

fn go_on(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn process(session: &mut Session, prompt: &str, images: &[ImageView<'_>]) -> Result<Answer> {
    session.process(&Request::new(prompt, images), &mut go_on)
}

fn converse(session: &mut Session, messages: &[Message], image: &DynamicImage) -> Result<Answer> {
    let pictures = [Picture { view: ImageView::decoded(image), split: true }];
    session.converse(messages, &pictures, &Request::new("", &[]), &mut go_on)
}

/// All that a later question sees of a session.
fn assert_same(session: &Session, other: &Session) {
    assert_eq!(session.messages, other.messages);
    assert_eq!(session.grids, other.grids);
    assert_eq!(session.image_rows, other.image_rows);
    assert_eq!(session.decoder.len(), session.cached.len(), "the cache and what is known of it");
    assert!(other.cached.starts_with(&session.cached), "what the cache holds is the old conversation's");
}

type Ask<'a> = dyn Fn(&mut Session) -> Result<Answer> + 'a;

#[test]
fn a_session_is_as_it_was_after_an_error_in_mid_answer() {
    let engine = engine(&demo());
    let left = image::open(demo().join("test_image.jpg")).unwrap();
    let right = left.fliph();
    let asked = [Message::question(1, LIST)];
    let begun = [Message::question(1, LIST), Message::text(Role::Assistant, "A red star,")];
    let views = [ImageView::decoded(&right)];
    let asks: [&Ask<'_>; 4] = [
        &|session| process(session, LIST, &[]),
        &|session| process(session, LIST, &views),
        &|session| converse(session, &asked, &right),
        &|session| converse(session, &begun, &right),
    ];
    let (mut before, mut after) = (Session::new(&engine).unwrap(), Session::new(&engine).unwrap());
    for session in [&mut before, &mut after] {
        process(session, LIST, &[ImageView::decoded(&left)]).unwrap();
    }
    let expected = process(&mut after, ARROW, &[]).unwrap();
    assert_eq!(expected.text, "Left.");
    // The prompt, the first token's step, and one that text came before.
    for fails_at in [1, 2, 5] {
        for (i, ask) in asks.into_iter().enumerate() {
            let (mut session, log) = watched(&engine);
            process(&mut session, LIST, &[ImageView::decoded(&left)]).unwrap();
            log.lock().unwrap().fails_at = fails_at;
            assert_eq!(ask(&mut session).unwrap_err().message(), "on purpose", "{i}");
            assert_same(&session, &before);
            let answer = process(&mut session, ARROW, &[]).unwrap();
            assert_eq!(
                (answer.prompt_token_ids, answer.text),
                (expected.prompt_token_ids.clone(), expected.text.clone())
            );
            assert_same(&session, &after);
        }
    }
}

#[test]
fn a_session_is_as_it_was_after_a_stop_before_the_first_token() {
    let engine = engine(&demo());
    let left = image::open(demo().join("test_image.jpg")).unwrap();
    let right = left.fliph();
    let views = [ImageView::decoded(&right)];
    let (mut session, mut undisturbed) = (Session::new(&engine).unwrap(), Session::new(&engine).unwrap());
    for session in [&mut session, &mut undisturbed] {
        process(session, LIST, &[ImageView::decoded(&left)]).unwrap();
    }
    let late = Request { timeout: Some(Duration::ZERO), ..Request::new(LIST, &views) };
    let answer = session.process(&late, &mut go_on).unwrap();
    assert_eq!((answer.finish_reason, answer.text.as_str()), (FinishReason::Timeout, ""));
    assert_same(&session, &undisturbed);
    let messages = [Message::question(1, LIST), Message::text(Role::Assistant, "A red star,")];
    let pictures = [Picture { view: views[0], split: true }];
    let late = Request { timeout: Some(Duration::ZERO), ..Request::new("", &[]) };
    let answer = session.converse(&messages, &pictures, &late, &mut go_on).unwrap();
    assert_eq!((answer.finish_reason, answer.text.as_str()), (FinishReason::Timeout, ""));
    assert_same(&session, &undisturbed);
}

#[test]
fn a_stop_while_a_step_waits_for_its_turn_keeps_what_was_said() {
    let engine = engine(&demo());
    let left = image::open(demo().join("test_image.jpg")).unwrap();
    let views = [ImageView::decoded(&left)];
    let whole = engine.ask(&Request::new(LIST, &views)).unwrap();
    let (mut session, log) = watched(&engine);
    log.lock().unwrap().stops_at = 4;
    let mut streamed = String::new();
    let answer = session
        .process(&Request::new(LIST, &views), &mut |text| {
            streamed += text;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((answer.finish_reason, answer.token_ids.len()), (FinishReason::Timeout, 4));
    assert!(!answer.text.is_empty() && whole.text.starts_with(&answer.text), "{:?}", answer.text);
    assert_eq!(streamed, answer.text);
    assert!(answer.metrics.decode_ms > 0.0);
    assert_eq!(session.decoder.len(), session.cached.len());
    assert_eq!(process(&mut session, ARROW, &[]).unwrap().text, "Left.");
}

/// By the definition that OpenAI gives: count times the one, and once the other, of tokens that
/// were generated.
#[test]
fn the_answer_s_penalties_are_taken_from_all_logits() {
    // A random model: its choices are close.
    let engine = engine(&demo().join("../../tests/golden/smolvlm2-defaults-bf16"));
    let left = image::open(demo().join("test_image.jpg")).unwrap();
    let views = [ImageView::decoded(&left)];
    let best = |logits: &[f32]| (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    let mut changed = [0; 3];
    let penalties = [(2.0, 0.0), (0.0, -2.0), (0.75, -1.25)];
    for ((frequency_penalty, presence_penalty), changed) in penalties.into_iter().zip(&mut changed) {
        let (mut session, log) = watched(&engine);
        let sampling = Sampling { frequency_penalty, presence_penalty, ..Default::default() };
        let request = Request { sampling, max_new_tokens: 40, ..Request::new(LIST, &views) };
        let answer = session.process(&request, &mut go_on).unwrap();
        let log = log.lock().unwrap();
        assert_eq!(log.largest, 0, "the largest of the logits as they are say nothing");
        assert!(answer.token_ids.len() > 5 && log.logits.len() >= answer.token_ids.len());
        for (i, (id, logits)) in answer.token_ids.iter().zip(&log.logits).enumerate() {
            let mut penalised = logits.clone();
            for (token, logit) in penalised.iter_mut().enumerate() {
                let count = answer.token_ids[..i].iter().filter(|&&said| said as usize == token).count() as f32;
                *logit -= count * frequency_penalty + if count > 0.0 { presence_penalty } else { 0.0 };
            }
            assert_eq!(*id as usize, best(&penalised), "token {i}");
            *changed += usize::from(best(logits) != best(&penalised));
        }
    }
    assert!(changed[0] > 0 && changed[1] > 0, "{changed:?}: choices that were other ones for it");
    let (mut session, log) = watched(&engine);
    process(&mut session, LIST, &views).unwrap();
    assert!(log.lock().unwrap().largest > 5, "without them the largest are enough");
}
