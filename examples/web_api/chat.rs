//! `POST /v1/chat/completions`: OpenAI's image messages in, OpenAI's completion or its chunks out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::{Admitted, Shared};
use crate::body;
use crate::error::{ApiError, Result};
use crate::json::{json_response, metrics, openai_finish_reason};
use crate::messages::{Message, conversation, flag};
use crate::refused;
use crate::settings::Parameters;
use crate::stream::Chunks;
use crate::worker::Finished;

#[derive(Deserialize)]
struct ChatRequest {
    messages: Vec<Message>,
    /// Fields that nobody looks at are ignored, as OpenAI's clients expect.
    #[serde(flatten)]
    fields: Map<String, Value>,
}

pub async fn completions(
    State(shared): State<Shared>,
    Extension(admitted): Extension<Admitted>,
    request: Request,
) -> Result<Response> {
    let limits = &shared.options;
    let chat: ChatRequest = body::json(request, limits).await?;
    refused::check(&chat.fields)?;
    let stream = flag(&chat.fields, "stream")?;
    let parameters = Parameters::from_json(&chat.fields)?;
    let conversation = conversation("messages", &chat.messages, parameters.split, limits)?;
    // The pictures have been copied out of it.
    drop(chat.messages);
    let settings = parameters.settings(limits)?;
    let reply = shared.queue.ask(admitted.place()?, conversation, settings);
    let head = Head { id: new_id("chatcmpl-"), created: unix_time(), model: shared.model_id.clone() };
    if stream {
        let include_usage = chat.fields.get("stream_options").is_some_and(|options| options["include_usage"] == true);
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
    let context = shared.queue.engine().context_tokens();
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
