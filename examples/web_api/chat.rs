//! `POST /v1/chat/completions`: OpenAI's image messages in, OpenAI's completion or its chunks out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::{Admitted, Shared};
use crate::body;
use crate::error::{ApiError, Result};
use crate::json::{json_response, metrics, openai_finish_reason};
use crate::messages::{Message, conversation};
use crate::settings::Parameters;
use crate::stream::Chunks;
use crate::worker::Finished;

/// Fields that are not here, and do nothing, are ignored, as OpenAI's clients expect.
#[derive(Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(flatten)]
    parameters: Parameters,
    #[serde(flatten)]
    refused: Refused,
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// Fields that would change the answer, and that no SmolVLM honours.
#[derive(Deserialize)]
struct Refused {
    n: Option<u64>,
    tools: Option<Value>,
    functions: Option<Value>,
    response_format: Option<Value>,
    logprobs: Option<bool>,
    logit_bias: Option<Value>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
}

impl Refused {
    fn check(&self) -> Result<()> {
        let empty = |value: &Option<Value>| match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            _ => false,
        };
        let is_text = self.response_format.as_ref().is_none_or(|f| f.is_null() || f["type"] == "text");
        let checks = [
            ("n", self.n.is_none_or(|n| n == 1), "only 1 accepted"),
            ("tools", empty(&self.tools), "the model calls no tools"),
            ("functions", empty(&self.functions), "the model calls no functions"),
            ("response_format", is_text, "only text accepted"),
            ("logprobs", !self.logprobs.unwrap_or(false), "not reported"),
            ("logit_bias", empty(&self.logit_bias), "not supported"),
            (
                "frequency_penalty",
                self.frequency_penalty.unwrap_or(0.0) == 0.0,
                "not supported; see repetition_penalty",
            ),
            ("presence_penalty", self.presence_penalty.unwrap_or(0.0) == 0.0, "not supported; see repetition_penalty"),
        ];
        match checks.iter().find(|(_, fine, _)| !fine) {
            Some((name, _, message)) => Err(ApiError::invalid(*name, message)),
            None => Ok(()),
        }
    }
}

pub async fn completions(
    State(shared): State<Shared>,
    Extension(admitted): Extension<Admitted>,
    request: Request,
) -> Result<Response> {
    let limits = &shared.options;
    let chat: ChatRequest = body::json(request, limits).await?;
    chat.refused.check()?;
    let conversation = conversation("messages", &chat.messages, chat.parameters.split, limits)?;
    // The pictures have been copied out of it.
    drop(chat.messages);
    let settings = chat.parameters.settings(limits)?;
    let reply = shared.queue.ask(admitted.place()?, conversation, settings);
    let head = Head { id: new_id("chatcmpl-"), created: unix_time(), model: shared.model_id.clone() };
    if chat.stream.unwrap_or(false) {
        let include_usage = chat.stream_options.unwrap_or_default().include_usage;
        return Ok(Chunks::new(head, reply, include_usage).await?.into_response());
    }
    let finished = reply.finished().await?;
    let mut completion = head.object("chat.completion");
    completion["choices"] = json!([{
        "index": 0,
        "message": { "role": "assistant", "content": finished.answer.text, "refusal": null },
        "logprobs": null,
        "finish_reason": openai_finish_reason(&finished.answer),
    }]);
    completion["usage"] = usage(&finished);
    completion["smolvlm"] = extension(&finished);
    Ok(json_response(StatusCode::OK, &completion))
}

/// What all chunks of a completion have in common.
pub struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    pub fn object(&self, kind: &str) -> Value {
        json!({ "id": self.id, "object": kind, "created": self.created, "model": self.model })
    }
}

pub fn usage(finished: &Finished) -> Value {
    let m = &finished.answer.metrics;
    json!({
        "prompt_tokens": m.prompt_tokens,
        "completion_tokens": m.generated_tokens,
        "total_tokens": m.prompt_tokens + m.generated_tokens,
    })
}

/// What OpenAI's objects have no field for.
pub fn extension(finished: &Finished) -> Value {
    json!({ "finish_reason": finished.answer.finish_reason.name(), "metrics": metrics(finished) })
}

/// `GET /v1/models`
pub async fn models(State(shared): State<Shared>) -> Response {
    json_response(StatusCode::OK, &json!({ "object": "list", "data": [model_object(&shared)] }))
}

/// `GET /v1/models/{id}`
pub async fn model(State(shared): State<Shared>, Path(id): Path<String>) -> Result<Response> {
    if id != shared.model_id {
        let message = format!("model: \"{id}\" is not served here, \"{}\" is", shared.model_id);
        return Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message));
    }
    Ok(json_response(StatusCode::OK, &model_object(&shared)))
}

fn model_object(shared: &Shared) -> Value {
    let context = shared.queue.model().engine.context_tokens();
    // That pictures are accepted, each client looks for under another name.
    json!({
        "id": shared.model_id,
        "object": "model",
        "created": shared.started,
        "owned_by": "libsmolvlm",
        // LM Studio's.
        "type": "vlm",
        "max_context_length": context,
        // vLLM's.
        "max_model_len": context,
        // OpenRouter's, of which llama.cpp has the middle two.
        "context_length": context,
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
        },
        "input_modalities": ["text", "image"],
        "output_modalities": ["text"],
        "modalities": { "input": ["text", "image"], "output": ["text"] },
        // Mistral's and LM Studio's.
        "capabilities": { "completion_chat": true, "vision": true, "function_calling": false },
    })
}

pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Unique among the ids of this server, and unlikely to be another's.
pub fn new_id(kind: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    format!("{kind}{nanos:016x}{:08x}", COUNT.fetch_add(1, Ordering::Relaxed))
}
