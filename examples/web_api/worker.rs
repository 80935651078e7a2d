//! The threads that answer: one question at a time each, on the engine that all share.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use smolvlm::prompt::Message;
use smolvlm::{Answer, Canceller, Engine, FinishReason, ImageView, Request, Sampling, Session};
use tokio::sync::mpsc::UnboundedSender;

use crate::error::{ApiError, Result};
use crate::metrics::Metrics;
use crate::queue::Place;

/// A conversation that waits for an answer.
#[derive(Default)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Those of the messages, in order.
    pub pictures: Vec<Picture>,
}

/// An image file, looked at and found to be within the limits.
pub struct Picture {
    pub file: Bytes,
    pub split: bool,
}

/// How it is answered.
#[derive(Clone)]
pub struct Settings {
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub longest_edge: Option<usize>,
    pub timeout: Duration,
    pub keep_special_tokens: bool,
}

pub enum Event {
    /// A worker has taken it up.
    Started,
    Text(String),
    Finished(Box<Finished>),
    Failed(ApiError),
}

pub struct Finished {
    pub answer: Answer,
    pub queue_ms: f64,
}

/// What the workers and the queue both see.
pub struct Shared {
    pub engine: Engine,
    pub metrics: Arc<Metrics>,
    /// Of all jobs that wait or run.
    pub open: Mutex<Vec<Arc<Control>>>,
    pub stopping: AtomicBool,
}

pub struct Job {
    pub conversation: Conversation,
    pub settings: Settings,
    pub asked: Instant,
    pub events: UnboundedSender<Event>,
    pub control: Arc<Control>,
    pub _place: Place,
}

/// Ends a job, whether it waits or runs.
#[derive(Default)]
pub struct Control {
    cancelled: AtomicBool,
    session: Mutex<Option<Canceller>>,
}

impl Control {
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(session) = lock(&self.session).as_ref() {
            session.cancel();
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Shared {
    pub fn new(engine: Engine, metrics: Arc<Metrics>) -> Self {
        Self { engine, metrics, open: Mutex::default(), stopping: AtomicBool::new(false) }
    }

    pub fn run(&self, job: Job) {
        let metrics = &self.metrics;
        metrics.waiting.dec();
        let queued = job.asked.elapsed();
        metrics.queue_seconds.observe(queued.as_secs_f64());
        let event = if job.control.is_cancelled() {
            metrics.ended("abandoned");
            // Whoever still listens hears it at the end of a shutdown.
            Event::Failed(ApiError::shutting_down())
        } else {
            let _ = job.events.send(Event::Started);
            metrics.running.inc();
            let started = Instant::now();
            let answered = catch_unwind(AssertUnwindSafe(|| self.answer(&job)))
                .unwrap_or_else(|_| Err(ApiError::internal("the engine panicked; this is a defect")));
            metrics.running.dec();
            match answered {
                Ok(answer) => {
                    metrics.answered(&answer, started.elapsed());
                    Event::Finished(Box::new(Finished { answer, queue_ms: ms(queued) }))
                }
                Err(error) => {
                    // A stop before the first token leaves nothing to answer with.
                    metrics.ended(if job.control.is_cancelled() { "cancelled" } else { error.outcome() });
                    Event::Failed(error)
                }
            }
        };
        lock(&self.open).retain(|control| !Arc::ptr_eq(control, &job.control));
        let _ = job.events.send(event);
    }

    fn answer(&self, job: &Job) -> Result<Answer> {
        let mut session = Session::new(&self.engine)?;
        *lock(&job.control.session) = Some(session.canceller());
        let Conversation { messages, pictures } = &job.conversation;
        let pictures: Vec<_> = pictures
            .iter()
            .map(|picture| smolvlm::Picture { view: ImageView::encoded(&picture.file), split: picture.split })
            .collect();
        let stop: Vec<&str> = job.settings.stop.iter().map(String::as_str).collect();
        let deadline = job.asked + job.settings.timeout;
        let request = Request {
            longest_edge: job.settings.longest_edge,
            max_new_tokens: job.settings.max_new_tokens,
            sampling: job.settings.sampling,
            stop: &stop,
            keep_special_tokens: job.settings.keep_special_tokens,
            timeout: Some(deadline.saturating_duration_since(Instant::now())),
            ..Request::new("", &[])
        };
        let answer = session.converse(messages, &pictures, &request, &mut |text| {
            let sent = job.events.send(Event::Text(text.to_owned()));
            if sent.is_err() || job.control.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match answer.finish_reason {
            FinishReason::Timeout if answer.token_ids.is_empty() => Err(ApiError::timeout()),
            FinishReason::Cancelled if answer.token_ids.is_empty() => Err(ApiError::shutting_down()),
            _ => Ok(answer),
        }
    }
}

/// What is behind these locks is whole at any time, whoever panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
