//! `POST /analyze`: pictures and a question as a form, the whole answer as JSON.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use smolvlm::prompt::{Message, Role};

use crate::app::{Admitted, Shared};
use crate::error::{ApiError, Result};
use crate::images;
use crate::json::{json_response, metrics};
use crate::options::Options;
use crate::settings::Parameters;
use crate::worker::{Conversation, Picture};

pub async fn analyze(
    State(shared): State<Shared>,
    Extension(admitted): Extension<Admitted>,
    request: Request,
) -> Result<Response> {
    let limits = &shared.options;
    let form = tokio::time::timeout(limits.client_timeout_s, Form::read(request, limits));
    let form = form.await.map_err(|_| ApiError::slow_client())??;
    let split = form.parameters.split.unwrap_or(true);
    let system = form.system.iter().map(|text| Message::text(Role::System, text));
    let question = Message::question(form.images.len(), &form.prompt);
    let conversation = Conversation {
        messages: system.chain([question]).collect(),
        pictures: form.images.into_iter().map(|file| Picture { file, split }).collect(),
    };
    let reply = shared.queue.ask(admitted.place()?, conversation, form.parameters.settings(limits)?);
    let finished = reply.finished().await?;
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "text": finished.answer.text,
            "finish_reason": finished.answer.finish_reason.name(),
            "model": shared.model_id,
            "metrics": metrics(&finished),
        }),
    ))
}

#[derive(Default)]
struct Form {
    system: Option<String>,
    images: Vec<Bytes>,
    /// Without one, the family answers with a caption.
    prompt: String,
    parameters: Parameters,
}

impl Form {
    async fn read(request: Request, limits: &Options) -> Result<Self> {
        let mut parts = Multipart::from_request(request, &()).await.map_err(|e| {
            ApiError::malformed(format!("content-type: {}; multipart/form-data expected", e.body_text()))
        })?;
        let broken = |e: MultipartError| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(limits.max_body_bytes()),
            _ => ApiError::malformed(format!("multipart: {}", e.body_text())),
        };
        let mut form = Self::default();
        while let Some(field) = parts.next_field().await.map_err(broken)? {
            form.take(field, limits, broken).await?;
        }
        if form.images.is_empty() {
            return Err(ApiError::invalid("image", format!("missing; send a {} file", smolvlm::image::FORMATS)));
        }
        Ok(form)
    }

    async fn take(
        &mut self,
        field: Field<'_>,
        limits: &Options,
        broken: impl Fn(MultipartError) -> ApiError,
    ) -> Result<()> {
        let name = field.name().unwrap_or_default().to_owned();
        let bytes = field.bytes().await.map_err(broken)?;
        if name == "image" {
            let at = format!("image[{}]", self.images.len());
            if self.images.len() == limits.max_images {
                return Err(ApiError::invalid(at, format!("at most {} pictures accepted", limits.max_images)));
            }
            // Pages post what a canvas gives them.
            let bytes = match std::str::from_utf8(&bytes) {
                Ok(url) if is_data_url(url) => images::from_url(&at, url, limits)?,
                _ => bytes,
            };
            self.images.push(images::checked(&at, bytes, limits)?);
            return Ok(());
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| ApiError::invalid(name.as_str(), e))?;
        match name.as_str() {
            "prompt" => self.prompt = text.to_owned(),
            "system" => self.system = Some(text.to_owned()),
            _ if self.parameters.set(&name, text)? => {}
            _ => {
                let shown: String = name.chars().take(40).collect();
                return Err(ApiError::malformed(format!("field \"{shown}\": not known; see /openapi.json")));
            }
        }
        Ok(())
    }
}

fn is_data_url(text: &str) -> bool {
    text.trim_ascii_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}
