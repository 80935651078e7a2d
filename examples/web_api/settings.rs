//! Optional parameters, common to all doors, and what is accepted for each.

use std::time::Duration;

use serde_json::{Map, Value};
use smolvlm::Sampling;
use smolvlm::sampler::Sampler;

use crate::error::{ApiError, Result};
use crate::options::Options;
use crate::worker::Settings;

/// More stop strings than anybody needs; each is searched for at each token.
const MAX_STOPS: usize = 16;

/// The names of the longest answer, our own first, then OpenAI's; the first that is given counts.
const LONGEST: [&str; 4] = ["max_new_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens"];

/// As clients give them; what is missing has its default.
#[derive(Default)]
pub struct Parameters {
    /// In the order of [`LONGEST`].
    longest: [Option<usize>; LONGEST.len()],
    sampling: Sampling,
    stop: Vec<String>,
    longest_edge: Option<usize>,
    pub split: Option<bool>,
    timeout_ms: Option<u64>,
    skip_special_tokens: Option<bool>,
}

/// A value as it came.
#[derive(Clone, Copy)]
enum Given<'a> {
    /// In a form.
    Text(&'a str),
    Json(&'a Value),
}

impl Parameters {
    /// Those among the fields of a request; `null` is the default. Fields that are no parameters
    /// are left alone.
    pub fn from_json(fields: &Map<String, Value>) -> Result<Self> {
        let mut parameters = Self::default();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            parameters.take(name, Given::Json(value))?;
        }
        Ok(parameters)
    }

    /// Sets the parameter that a form calls `name`; false if there is none.
    pub fn set(&mut self, name: &str, text: &str) -> Result<bool> {
        self.take(name, Given::Text(text))
    }

    fn take(&mut self, name: &str, value: Given<'_>) -> Result<bool> {
        let sampling = &mut self.sampling;
        match name {
            "temperature" => sampling.temperature = value.number(name)?,
            "top_k" => sampling.top_k = value.count(name)?.unwrap_or_default(),
            "top_p" => sampling.top_p = value.number(name)?,
            "min_p" => sampling.min_p = value.number(name)?,
            "repetition_penalty" => sampling.repetition_penalty = value.number(name)?,
            "frequency_penalty" => sampling.frequency_penalty = value.number(name)?,
            "presence_penalty" => sampling.presence_penalty = value.number(name)?,
            // Any integer is a seed, a negative one too.
            "seed" => sampling.seed = value.integer(name)? as u64,
            "longest_edge" => self.longest_edge = value.count(name)?,
            "split" => self.split = Some(value.boolean(name)?),
            "timeout_ms" => self.timeout_ms = value.count(name)?.map(|ms| ms as u64),
            "skip_special_tokens" => self.skip_special_tokens = Some(value.boolean(name)?),
            "stop" => self.stop.extend(value.texts(name)?.into_iter().filter(|text| !text.is_empty())),
            _ => match LONGEST.iter().position(|longest| *longest == name) {
                None => return Ok(false),
                Some(i) => {
                    let given = value.count(name)?;
                    if given == Some(0) {
                        return Err(ApiError::invalid(name, "0 given, 1 or more accepted; -1: the default"));
                    }
                    self.longest[i] = given;
                }
            },
        }
        Ok(true)
    }

    pub fn settings(self, limits: &Options) -> Result<Settings> {
        let given = self.longest.into_iter().flatten().next();
        // OpenAI's server refuses more than the model has; those that run on one's own machine
        // shorten it, and their clients send any large number.
        let max_new_tokens = given.unwrap_or(smolvlm::session::DEFAULT_MAX_NEW_TOKENS).min(limits.max_new_tokens);
        if self.stop.len() > MAX_STOPS {
            let given = self.stop.len();
            return Err(ApiError::invalid("stop", format!("{given} given, at most {MAX_STOPS} accepted")));
        }
        // Refuses senseless values before they wait in the queue.
        Sampler::new(self.sampling)?;
        Ok(Settings {
            max_new_tokens,
            sampling: self.sampling,
            stop: self.stop,
            longest_edge: self.longest_edge,
            timeout: self.timeout_ms.map_or(limits.timeout_s, Duration::from_millis).min(limits.timeout_s),
            keep_special_tokens: self.skip_special_tokens == Some(false),
        })
    }
}

impl Given<'_> {
    fn number(self, name: &str) -> Result<f32> {
        match self {
            Self::Text(text) => parse(name, text),
            Self::Json(value) => value.as_f64().map(|n| n as f32).ok_or_else(|| no(name, value, "number")),
        }
    }

    /// Clients in languages without integers write 100.0.
    fn integer(self, name: &str) -> Result<i64> {
        /// Up to here a float has every integer.
        const MOST: f64 = (1u64 << 53) as f64;
        let whole = |n: f64| (n.fract() == 0.0 && n.abs() <= MOST).then_some(n as i64);
        match self {
            Self::Text(text) => match text.trim().parse().ok().and_then(whole) {
                Some(whole) if text.trim().parse::<i64>().is_err() => Ok(whole),
                _ => parse(name, text),
            },
            Self::Json(value) => value
                .as_i64()
                .or_else(|| value.as_u64().map(|n| n as i64))
                .or_else(|| value.as_f64().and_then(whole))
                .ok_or_else(|| no(name, value, "integer")),
        }
    }

    /// -1 is what many clients send for the default, or for no limit.
    fn count(self, name: &str) -> Result<Option<usize>> {
        match self.integer(name)? {
            -1 => Ok(None),
            n => usize::try_from(n)
                .map(Some)
                .map_err(|_| ApiError::invalid(name, format!("{n} given, 0 or more accepted"))),
        }
    }

    fn boolean(self, name: &str) -> Result<bool> {
        match self {
            Self::Text(text) => parse(name, text),
            Self::Json(value) => value.as_bool().ok_or_else(|| no(name, value, "true or false")),
        }
    }

    fn texts(self, name: &str) -> Result<Vec<String>> {
        let neither = || ApiError::invalid(name, "neither a text nor an array of texts");
        match self {
            Self::Text(text) => Ok(vec![text.to_owned()]),
            Self::Json(Value::String(text)) => Ok(vec![text.clone()]),
            Self::Json(Value::Array(texts)) => {
                texts.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(neither)).collect()
            }
            Self::Json(_) => Err(neither()),
        }
    }
}

fn no(name: &str, value: &Value, wanted: &str) -> ApiError {
    let shown: String = value.to_string().chars().take(40).collect();
    ApiError::invalid(name, format!("{shown} given, {wanted} expected"))
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T> {
    text.trim().parse().map_err(|e| {
        let shown: String = text.chars().take(40).collect();
        ApiError::invalid(name, format!("\"{shown}\": {e}"))
    })
}
