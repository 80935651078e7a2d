//! Fields that would change the answer, and that no SmolVLM honours: refused by name, but for what
//! means nothing.

use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// Clients send a list of tools with every question, and leave the choice to the model: that may be
/// answered in words. A demand for a call may not.
pub fn check(fields: &Map<String, Value>) -> Result<()> {
    const NONE: &Value = &Value::Null;
    let field = |name: &str| fields.get(name).unwrap_or(NONE);
    let number_is = |name: &str, wanted: f64| field(name).is_null() || field(name).as_f64() == Some(wanted);
    let text_only = |format: &Value| format.is_null() || *format == "text" || format["type"] == "text";
    let modalities = field("modalities").as_array().is_none_or(|kinds| kinds.iter().all(|kind| *kind == "text"));
    let checks = [
        ("n", number_is("n", 1.0), "only 1 accepted"),
        ("best_of", number_is("best_of", 1.0), "only 1 accepted"),
        (
            "tool_choice",
            free(field("tool_choice")),
            "the model calls no tools; \"auto\" and \"none\" are answered in words",
        ),
        (
            "function_call",
            free(field("function_call")),
            "the model calls no functions; \"auto\" and \"none\" are answered in words",
        ),
        ("response_format", text_only(field("response_format")), "only text accepted"),
        ("text", text_only(&field("text")["format"]), "only the format text is accepted"),
        ("modalities", modalities, "only text accepted"),
        ("logprobs", empty(field("logprobs")), "not reported"),
        ("top_logprobs", empty(field("top_logprobs")), "not reported"),
        ("logit_bias", empty(field("logit_bias")), "not supported"),
        ("previous_response_id", empty(field("previous_response_id")), "nothing is kept; send the conversation"),
    ];
    match checks.iter().find(|(_, fine, _)| !fine) {
        Some((name, _, message)) => Err(ApiError::invalid(*name, message)),
        None => Ok(()),
    }
}

/// A choice that leaves it to the model, or wants no call.
fn free(choice: &Value) -> bool {
    let kind = if choice.is_object() { &choice["type"] } else { choice };
    kind.is_null() && !choice.is_object() || *kind == "none" || *kind == "auto"
}

/// What says that nothing is wanted.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) => false,
    }
}
