//! A completion in chunks: server-sent events as OpenAI has them, ended by `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::{Value, json};

use crate::chat::{Head, extension, usage};
use crate::json::openai_finish_reason;
use crate::queue::Reply;
use crate::worker::{Event, Finished};

pub struct Chunks {
    head: Head,
    reply: Reply,
    include_usage: bool,
    /// What is ready to be sent.
    ready: VecDeque<SseEvent>,
    done: bool,
}

impl Chunks {
    pub fn new(head: Head, first: Event, reply: Reply, include_usage: bool) -> Self {
        let mut chunks = Self { head, reply, include_usage, ready: VecDeque::new(), done: false };
        chunks.send(json!({ "role": "assistant", "content": "" }));
        chunks.take(first);
        chunks
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Started => {}
            Event::Text(text) => self.send(json!({ "content": text })),
            Event::Finished(finished) => self.finish(&finished),
            Event::Failed(error) => {
                self.ready.push_back(data(&error.body()));
                self.end();
            }
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

    fn end(&mut self) {
        self.ready.push_back(SseEvent::default().data("[DONE]"));
        self.done = true;
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
    type Item = Result<SseEvent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.done {
                return Poll::Ready(None);
            }
            match ready!(self.reply.poll_next(context)) {
                Some(event) => self.take(event),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl IntoResponse for Chunks {
    fn into_response(self) -> Response {
        Sse::new(self).into_response()
    }
}
