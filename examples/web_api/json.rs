//! JSON out.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use smolvlm::{Answer, FinishReason};

use crate::worker::Finished;

pub fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Body::from(format!("{body}\n"))).into_response()
}

/// What an answer cost, and where the time went.
pub fn metrics(finished: &Finished) -> Value {
    let m = &finished.answer.metrics;
    json!({
        "prompt_tokens": m.prompt_tokens,
        "image_tokens": m.image_tokens,
        "generated_tokens": m.generated_tokens,
        "tiles": m.tiles,
        "backend": m.placement.backend.name(),
        "device": m.placement.device.name(),
        "dtype": m.placement.dtype.name(),
        "kv_cache": m.placement.kv_cache.name(),
        "timings_ms": {
            "queue": finished.queue_ms,
            "preprocess": m.preprocess_ms,
            "vision": m.vision_ms,
            "prefill": m.prefill_ms,
            "decode": m.decode_ms,
            "time_to_first_token": m.time_to_first_token_ms,
            "total": m.total_ms,
        },
    })
}

/// OpenAI's name; the library's own is in the `smolvlm` object.
pub fn openai_finish_reason(answer: &Answer) -> &'static str {
    match answer.finish_reason {
        FinishReason::EndOfText | FinishReason::StopString => "stop",
        FinishReason::MaxTokens | FinishReason::Cancelled | FinishReason::Timeout => "length",
    }
}
