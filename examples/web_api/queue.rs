//! Questions on their way to the engine: a bounded number waits, a fixed number of threads answers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use axum::http::StatusCode;
use smolvlm::Engine;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, Result};
use crate::metrics::Metrics;
use crate::worker::{Control, Conversation, Event, Finished, Job, Settings, Shared, lock};

/// A claim on a worker or on a place in the queue: taken before a body is read, given back when the
/// answer is complete.
pub struct Place(#[expect(dead_code, reason = "it is dropped, not read")] OwnedSemaphorePermit);

pub struct Queue {
    places: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
    workers: usize,
    shared: Arc<Shared>,
}

/// The handler's end of a job; dropping it, as hyper does when a client disconnects, ends the
/// generation.
pub struct Reply {
    events: UnboundedReceiver<Event>,
    control: Arc<Control>,
    deadline: Instant,
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.control.cancel();
    }
}

impl Reply {
    /// The first text, the end of an answer without text, or what is in its way.
    pub async fn first(&mut self) -> Result<Event> {
        // The engine keeps the deadline from here on.
        match tokio::time::timeout_at(self.deadline.into(), self.next()).await {
            Ok(Event::Started) => {}
            Ok(Event::Failed(error)) => return Err(error),
            Ok(event) => return Ok(event),
            Err(_) => return Err(ApiError::timeout()),
        }
        match self.next().await {
            Event::Failed(error) => Err(error),
            event => Ok(event),
        }
    }

    async fn next(&mut self) -> Event {
        let gone = || Event::Failed(ApiError::internal("the worker is gone"));
        self.events.recv().await.unwrap_or_else(gone)
    }

    pub fn poll_next(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Option<Event>> {
        self.events.poll_recv(context)
    }

    /// The whole answer.
    pub async fn finished(mut self) -> Result<Finished> {
        let mut event = self.first().await?;
        loop {
            match event {
                Event::Finished(finished) => return Ok(*finished),
                Event::Failed(error) => return Err(error),
                Event::Started | Event::Text(_) => event = self.next().await,
            }
        }
    }
}

impl Queue {
    pub fn start(engine: Engine, workers: usize, waiting: usize, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let shared = Arc::new(Shared::new(engine, metrics));
        for i in 0..workers {
            let (shared, receiver) = (shared.clone(), receiver.clone());
            thread::Builder::new().name(format!("worker-{i}")).spawn(move || {
                loop {
                    let job = lock(&receiver).recv();
                    let Ok(job) = job else { return };
                    shared.run(job);
                }
            })?;
        }
        let places = workers.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        Ok(Self { places: Arc::new(Semaphore::new(places)), jobs, workers, shared })
    }

    /// A place for one question, or 429, or 503 on the way out.
    pub fn place(&self) -> Result<Place> {
        if self.is_closed() {
            return Err(ApiError::shutting_down());
        }
        self.places.clone().try_acquire_owned().map(Place).map_err(|_| {
            let message = "queue: full; ask again later";
            let seconds = self.shared.metrics.mean_answer_seconds() / self.workers as f64;
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
                // When a worker should be free.
                .retry_after((seconds.ceil() as u64).clamp(1, 60))
        })
    }

    pub fn ask(&self, place: Place, conversation: Conversation, settings: Settings) -> Reply {
        let (events, receiver) = unbounded_channel();
        let control = Arc::new(Control::default());
        let asked = Instant::now();
        let deadline = asked + settings.timeout;
        self.shared.metrics.waiting.inc();
        lock(&self.shared.open).push(control.clone());
        let job = Job { conversation, settings, asked, events, control: control.clone(), _place: place };
        // Workers live as long as the queue; if none did, the reply's channel would say so.
        let _ = self.jobs.send(job);
        Reply { events: receiver, control, deadline }
    }

    /// No more places.
    pub fn close(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_closed(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    /// Ends what waits and what runs.
    pub fn cancel_all(&self) {
        lock(&self.shared.open).iter().for_each(|control| control.cancel());
    }

    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }
}
