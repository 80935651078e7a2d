//! A completion in chunks: server-sent events as OpenAI has them, ended by `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::{Value, json};
use tokio::time::{Interval, interval, timeout};

use crate::chat::{Head, extension, usage};
use crate::error::{ApiError, Result};
use crate::json::openai_finish_reason;
use crate::queue::Reply;
use crate::worker::{Event, Finished};

/// Within this time an error has a status of its own; then the head goes out, and an error is an
/// event.
const STATUS_TIME: Duration = Duration::from_secs(1);
/// Proxies and clients close connections that say nothing for long, the shortest after 30 s or so.
const COMMENT_INTERVAL: Duration = Duration::from_secs(5);

pub struct Chunks {
    head: Head,
    state: State,
    include_usage: bool,
    /// What is ready to be sent.
    ready: VecDeque<SseEvent>,
}

/// The wait for the first token, and the reply that is waited for.
type First = Pin<Box<dyn Future<Output = (Result<Event>, Reply)> + Send>>;

enum State {
    Reading(First, Interval),
    Answering(Reply),
    Done,
}

impl Chunks {
    pub async fn new(head: Head, mut reply: Reply, include_usage: bool) -> Result<Self> {
        let mut first: First = Box::pin(async move { (reply.first().await, reply) });
        let known = timeout(STATUS_TIME, first.as_mut()).await;
        let state = State::Reading(first, interval(COMMENT_INTERVAL));
        let mut chunks = Self { head, state, include_usage, ready: VecDeque::new() };
        if let Ok((event, reply)) = known {
            chunks.begin(event?, reply);
        }
        Ok(chunks)
    }

    fn begin(&mut self, first: Event, reply: Reply) {
        self.state = State::Answering(reply);
        self.send(json!({ "role": "assistant", "content": "" }));
        self.take(first);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started => {}
            Event::Text(text) => self.send(json!({ "content": text })),
            Event::Finished(finished) => self.finish(&finished),
            Event::Failed(error) => self.fail(&error),
        }
    }

    fn send(&mut self, delta: Value) {
        let chunk = self.chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }]));
        self.ready.push_back(data(&chunk));
    }

    fn finish(&mut self, finished: &Finished) {
        let reason = openai_finish_reason(&finished.answer);
        let mut last = self.chunk(json!([{ "index": 0, "delta": {}, "logprobs": null, "finish_reason": reason }]));
        last["smolvlm"] = extension(finished);
        self.ready.push_back(data(&last));
        if self.include_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(finished);
            self.ready.push_back(data(&chunk));
        }
        self.end();
    }

    fn fail(&mut self, error: &ApiError) {
        self.ready.push_back(data(&error.body()));
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back(SseEvent::default().data("[DONE]"));
        self.state = State::Done;
    }

    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.head.object("chat.completion.chunk");
        chunk["choices"] = choices;
        if self.include_usage {
            // All chunks but one have none.
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

fn data(value: &Value) -> SseEvent {
    SseEvent::default().data(value.to_string())
}

impl Stream for Chunks {
    type Item = std::result::Result<SseEvent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match &mut self.state {
                State::Reading(first, comments) => match first.as_mut().poll(context) {
                    Poll::Ready((Ok(event), reply)) => self.begin(event, reply),
                    Poll::Ready((Err(error), _)) => self.fail(&error),
                    Poll::Pending => {
                        ready!(comments.poll_tick(context));
                        self.ready.push_back(SseEvent::default().comment("reading the prompt"));
                    }
                },
                State::Answering(reply) => match ready!(reply.poll_next(context)) {
                    Some(event) => self.take(event),
                    None => return Poll::Ready(None),
                },
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

impl IntoResponse for Chunks {
    fn into_response(self) -> Response {
        // nginx and its kin keep answers back until a buffer is full. Sse itself forbids caching.
        ([("x-accel-buffering", "no")], Sse::new(self)).into_response()
    }
}
