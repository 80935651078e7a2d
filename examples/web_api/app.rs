//! The routes, and what stands before them: the key, a place in the queue, the size of the body.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use subtle::ConstantTimeEq;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::error::{ApiError, Result};
use crate::json::json_response;
use crate::metrics::{self, Metrics};
use crate::options::Options;
use crate::queue::{Place, Queue};
use crate::worker::lock;
use crate::{analyze, chat, page, responses};

pub struct App {
    pub options: Options,
    pub model_id: String,
    pub queue: Queue,
    pub metrics: Arc<Metrics>,
    /// Unix time.
    pub started: u64,
}

pub type Shared = Arc<App>;

pub fn router(shared: Shared) -> Router {
    let questions = Router::new()
        .route("/analyze", post(analyze::analyze))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/responses", post(responses::responses))
        .route_layer(from_fn_with_state(shared.clone(), admit));
    let protected = Router::new()
        .route("/v1/models", get(chat::models))
        .route("/v1/models/{model}", get(chat::model))
        .route("/metrics", get(metrics::metrics))
        .merge(questions)
        .route_layer(from_fn_with_state(shared.clone(), authorize));
    let app = Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/openapi.json", get(page::openapi))
        .merge(protected)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(shared.options.max_body_bytes()))
        .layer(from_fn_with_state(shared.clone(), count));
    // Outermost: errors have its headers too, or no page could read them; and browsers ask for
    // leave without a key.
    let app = if shared.options.cors_origin.is_empty() { app } else { app.layer(cors(&shared.options.cors_origin)) };
    app.with_state(shared)
}

/// Leave for pages of other origins.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let any = origins.iter().any(|origin| origin == "*");
    let origins = if any { AllowOrigin::any() } else { AllowOrigin::list(origins.iter().cloned()) };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's client has more than Authorization and Content-Type.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        // A page of the web asks a machine of the local network.
        .allow_private_network(true)
        .max_age(Duration::from_secs(600))
}

async fn health(State(shared): State<Shared>) -> Response {
    let placement = shared.queue.engine().placement();
    let status = if shared.queue.is_closed() { "shutting down" } else { "ok" };
    json_response(
        StatusCode::OK,
        &json!({
            "status": status,
            "version": env!("CARGO_PKG_VERSION"),
            "model": shared.model_id,
            "backend": placement.backend.name(),
            "device": placement.device.name(),
            "dtype": placement.dtype.name(),
            "kv_cache": placement.kv_cache.name(),
        }),
    )
}

async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(80).collect();
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("{path}: nothing here; see /openapi.json"))
}

async fn method_not_allowed(request: Request) -> ApiError {
    let message = format!("{}: not a method of {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

async fn count(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    // Only paths that exist: anything else would be one counter for each guess of a stranger's.
    let path = request.extensions().get::<MatchedPath>().map_or("other".into(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    shared.metrics.responses.with_label_values(&[path.as_str(), response.status().as_str()]).inc();
    response
}

async fn authorize(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let Some(key) = &shared.options.api_key else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let given =
        given.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, key)| key);
    // The comparison takes as long for a wrong key as for the right one.
    if given.is_some_and(|given| bool::from(given.ct_eq(key.as_bytes()))) {
        return next.run(request).await;
    }
    let message = "authorization: send the server's key, as Authorization: Bearer KEY";
    refuse(request, ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)).await
}

/// A place in the queue, on its way to the handler; extensions must be `Clone`.
#[derive(Clone)]
pub struct Admitted(Arc<Mutex<Option<Place>>>);

impl Admitted {
    pub fn place(&self) -> Result<Place> {
        lock(&self.0).take().ok_or_else(|| ApiError::internal("a place in the queue was used twice"))
    }
}

/// Takes a place before the body is read: no more bodies are in memory than there are places.
async fn admit(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let most = shared.options.max_body_bytes();
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > most) {
        return refuse(request, ApiError::too_large(most)).await;
    }
    match shared.queue.place() {
        Ok(place) => {
            request.extensions_mut().insert(Admitted(Arc::new(Mutex::new(Some(place)))));
            next.run(request).await
        }
        Err(error) => refuse(request, error).await,
    }
}

/// Reads away what a client is sending: most read no response before they have sent all.
async fn refuse(request: Request, error: ApiError) -> Response {
    const MOST_BYTES: usize = 64 << 20;
    const MOST_TIME: Duration = Duration::from_secs(2);
    let _ = tokio::time::timeout(MOST_TIME, discard(request.into_body(), MOST_BYTES)).await;
    error.into_response()
}

async fn discard(body: Body, most: usize) {
    use futures_core::Stream;
    let mut data = std::pin::pin!(body.into_data_stream());
    let mut read = 0;
    while let Some(Ok(bytes)) = std::future::poll_fn(|context| data.as_mut().poll_next(context)).await {
        read += bytes.len();
        if read > most {
            return;
        }
    }
}
