//! `POST /v1/responses`: the smaller part of OpenAI's newer protocol, for pictures and texts, whole
//! answers only.

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app::{Admitted, Shared};
use crate::body;
use crate::chat::{extension, new_id, unix_time};
use crate::error::{ApiError, Result};
use crate::json::{json_response, openai_finish_reason};
use crate::messages::{Message, check_turn, conversation, flag};
use crate::refused;
use crate::settings::Parameters;
use crate::worker::Finished;

#[derive(Deserialize)]
struct ResponsesRequest {
    input: Input,
    instructions: Option<String>,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "input: neither a text nor an array of messages")]
enum Input {
    Text(String),
    Messages(Vec<Message>),
}

pub async fn responses(
    State(shared): State<Shared>,
    Extension(admitted): Extension<Admitted>,
    request: Request,
) -> Result<Response> {
    let limits = &shared.options;
    let asked: ResponsesRequest = body::json(request, limits).await?;
    refused::check(&asked.fields)?;
    if flag(&asked.fields, "stream")? {
        return Err(ApiError::invalid("stream", "not here; /v1/chat/completions streams"));
    }
    let parameters = Parameters::from_json(&asked.fields)?;
    let mut messages = match asked.input {
        Input::Text(text) => vec![Message::text("user", text)],
        Input::Messages(messages) => messages,
    };
    if let Some(text) = asked.instructions {
        messages.insert(0, Message::text("system", text));
    }
    let conversation = conversation("input", &messages, parameters.split, limits)?;
    check_turn(&asked.fields, &conversation)?;
    // The pictures have been copied out of it.
    drop(messages);
    let settings = parameters.settings(limits)?;
    let finished = shared.queue.ask(admitted.place()?, conversation, settings).finished().await?;
    Ok(json_response(StatusCode::OK, &response_object(&shared.model_id, &finished)))
}

fn response_object(model: &str, finished: &Finished) -> Value {
    let m = &finished.answer.metrics;
    let whole = openai_finish_reason(&finished.answer) == "stop";
    let status = if whole { "completed" } else { "incomplete" };
    let content = json!({ "type": "output_text", "text": finished.answer.text, "annotations": [] });
    json!({
        "id": new_id("resp_"),
        "object": "response",
        "created_at": unix_time(),
        "status": status,
        "error": null,
        "incomplete_details": if whole { Value::Null } else { json!({ "reason": "max_output_tokens" }) },
        "model": model,
        "output": [{
            "type": "message",
            "id": new_id("msg_"),
            "status": status,
            "role": "assistant",
            "content": [content],
        }],
        "parallel_tool_calls": false,
        "tool_choice": "none",
        "tools": [],
        "usage": {
            "input_tokens": m.prompt_tokens,
            "input_tokens_details": { "cached_tokens": 0 },
            "output_tokens": m.generated_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": m.prompt_tokens + m.generated_tokens,
        },
        "smolvlm": extension(finished),
    })
}
