//! JSON in.

use axum::body::to_bytes;
use axum::extract::Request;
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Result};
use crate::options::Options;

/// The whole body, within its size and time.
pub async fn json<T: DeserializeOwned>(request: Request, limits: &Options) -> Result<T> {
    let most = limits.max_body_bytes();
    let body = tokio::time::timeout(limits.client_timeout_s, to_bytes(request.into_body(), most));
    // The length that a header announces was looked at before; an I/O error has nobody who reads
    // this.
    let body = body.await.map_err(|_| ApiError::slow_client())?.map_err(|_| ApiError::too_large(most))?;
    serde_json::from_slice(&body).map_err(|e| ApiError::malformed(format!("body: {e}")))
}
