//! Errors as clients see them: a status and OpenAI's error object, one line that names the value at
//! fault.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use smolvlm::{Error, ErrorKind};

use crate::json::json_response;

pub type Result<T, E = ApiError> = std::result::Result<T, E>;

const TIMEOUT: &str = "timeout";

/// What a request gets instead of an answer.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    /// For programs to branch on.
    code: &'static str,
    /// The field at fault.
    param: Option<String>,
    message: String,
    retry_after_s: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        // Other libraries' texts may have several lines.
        let message = message.into().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { status, code, param: None, message, retry_after_s: None }
    }

    /// A value of the client's; `message` says what is wrong with it.
    pub fn invalid(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let text = format!("{param}: {message}");
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", text) }
    }

    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("body: at most {limit} bytes accepted");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub fn slow_client() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "body: it did not arrive in time")
    }

    pub fn timeout() -> Self {
        let message = "the request's time is up, and no token came in it";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, TIMEOUT, message).retry_after(1)
    }

    pub fn shutting_down() -> Self {
        let message = "the server is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message).retry_after(5)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// How the question ended, for the metrics.
    pub fn outcome(&self) -> &'static str {
        if self.code == TIMEOUT { TIMEOUT } else { "error" }
    }

    /// OpenAI's error object.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let (status, code) = match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::Unsupported => (StatusCode::BAD_REQUEST, "invalid_value"),
            ErrorKind::ContextOverflow => (StatusCode::BAD_REQUEST, "context_length_exceeded"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
        };
        Self::new(status, code, error.message())
    }
}
