//! What happened so far, in Prometheus' text format.

use std::sync::Mutex;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result, TEXT_FORMAT,
    TextEncoder, exponential_buckets,
};
use smolvlm::{Answer, ImageCacheStats};

use crate::app::Shared;
use crate::worker::lock;

pub struct Metrics {
    registry: Registry,
    pub responses: IntCounterVec,
    ended: IntCounterVec,
    pub waiting: IntGauge,
    pub running: IntGauge,
    pub connections: IntGauge,
    prompt_tokens: IntCounter,
    image_tokens: IntCounter,
    generated_tokens: IntCounter,
    pub queue_seconds: Histogram,
    first_token_seconds: Histogram,
    answer_seconds: Histogram,
    image_cache: Mutex<ImageCache>,
}

/// What the engine's cache of encoded pictures had done when it was last asked.
struct ImageCache {
    hits: IntCounter,
    misses: IntCounter,
    pictures: IntGauge,
    bytes: IntGauge,
}

impl Metrics {
    pub fn new(model: &str) -> Result<Self> {
        let registry = Registry::new();
        let model_info =
            gauge(&registry, Opts::new("smolvlm_model_info", "The model that answers.").const_label("model", model))?;
        model_info.set(1);
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Result::Ok(counter)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Result::Ok(counters)
        };
        let seconds = |name: &str, help: &str| {
            // 1 ms to 131 s.
            let options = HistogramOpts::new(name, help).buckets(exponential_buckets(0.001, 2.0, 18)?);
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Result::Ok(histogram)
        };
        let answers_help =
            "Questions that left the queue, by how they ended: a finish reason, error, or abandoned by the client.";
        Ok(Self {
            responses: counters("smolvlm_http_responses_total", "HTTP responses.", &["path", "status"])?,
            ended: counters("smolvlm_answers_total", answers_help, &["finish_reason"])?,
            waiting: gauge(&registry, Opts::new("smolvlm_questions_waiting", "Questions that wait for a worker."))?,
            running: gauge(&registry, Opts::new("smolvlm_questions_running", "Questions that are being answered."))?,
            connections: gauge(&registry, Opts::new("smolvlm_connections", "Open connections."))?,
            prompt_tokens: counter("smolvlm_prompt_tokens_total", "Tokens of prompts, image tokens included.")?,
            image_tokens: counter("smolvlm_image_tokens_total", "Tokens of pictures.")?,
            generated_tokens: counter("smolvlm_generated_tokens_total", "Tokens of answers.")?,
            queue_seconds: seconds("smolvlm_queue_seconds", "Time in the queue.")?,
            first_token_seconds: seconds(
                "smolvlm_first_token_seconds",
                "From the start of the work to the first token.",
            )?,
            answer_seconds: seconds("smolvlm_answer_seconds", "From the start of the work to the last token.")?,
            image_cache: Mutex::new(ImageCache {
                hits: counter("smolvlm_image_cache_hits_total", "Pictures that were encoded already.")?,
                misses: counter("smolvlm_image_cache_misses_total", "Pictures that were not, and had to be.")?,
                pictures: gauge(
                    &registry,
                    Opts::new("smolvlm_image_cache_pictures", "Encoded pictures that are kept."),
                )?,
                bytes: gauge(&registry, Opts::new("smolvlm_image_cache_bytes", "Memory that they take."))?,
            }),
            registry,
        })
    }

    pub fn answered(&self, answer: &Answer, whole: Duration) {
        let m = &answer.metrics;
        self.ended(answer.finish_reason.name());
        self.prompt_tokens.inc_by(m.prompt_tokens as u64);
        self.image_tokens.inc_by(m.image_tokens as u64);
        self.generated_tokens.inc_by(m.generated_tokens as u64);
        self.answer_seconds.observe(whole.as_secs_f64());
        if m.generated_tokens > 0 {
            self.first_token_seconds.observe(m.time_to_first_token_ms / 1e3);
        }
    }

    pub fn ended(&self, how: &str) {
        self.ended.with_label_values(&[how]).inc();
    }

    pub fn mean_answer_seconds(&self) -> f64 {
        let answers = &self.answer_seconds;
        answers.get_sample_sum() / answers.get_sample_count().max(1) as f64
    }

    fn text(&self, cache: ImageCacheStats) -> Result<Vec<u8>> {
        {
            // One at a time: a counter only takes what is added.
            let last = lock(&self.image_cache);
            last.hits.inc_by(cache.hits.saturating_sub(last.hits.get()));
            last.misses.inc_by(cache.misses.saturating_sub(last.misses.get()));
            last.pictures.set(cache.pictures as i64);
            last.bytes.set(cache.bytes as i64);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn gauge(registry: &Registry, options: Opts) -> Result<IntGauge> {
    let gauge = IntGauge::with_opts(options)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

/// `GET /metrics`
pub async fn metrics(State(shared): State<Shared>) -> crate::error::Result<impl IntoResponse> {
    let text = shared
        .metrics
        .text(shared.queue.engine().image_cache())
        .map_err(|e| crate::error::ApiError::internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text))
}
