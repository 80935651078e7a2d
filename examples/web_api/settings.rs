//! Optional parameters, common to all doors, and what is accepted for each.

use std::time::Duration;

use serde::Deserialize;
use smolvlm::Sampling;
use smolvlm::sampler::Sampler;

use crate::error::{ApiError, Result};
use crate::options::Options;
use crate::worker::Settings;

/// More stop strings than anybody needs; each is searched for at each token.
const MAX_STOPS: usize = 16;

/// As clients give them; what is missing has its default.
#[derive(Default, Deserialize)]
pub struct Parameters {
    pub max_new_tokens: Option<usize>,
    /// OpenAI's two names for it.
    max_completion_tokens: Option<usize>,
    max_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub stop: Option<Stop>,
    pub longest_edge: Option<usize>,
    pub split: Option<bool>,
    pub timeout_ms: Option<u64>,
    pub skip_special_tokens: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "stop: neither a text nor an array of texts")]
pub enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Parameters {
    /// Sets the parameter that a form calls `name`; false if there is none.
    pub fn set(&mut self, name: &str, text: &str) -> Result<bool> {
        match name {
            "max_new_tokens" => self.max_new_tokens = Some(parse(name, text)?),
            "temperature" => self.temperature = Some(parse(name, text)?),
            "top_k" => self.top_k = Some(parse(name, text)?),
            "top_p" => self.top_p = Some(parse(name, text)?),
            "min_p" => self.min_p = Some(parse(name, text)?),
            "repetition_penalty" => self.repetition_penalty = Some(parse(name, text)?),
            "seed" => self.seed = Some(parse(name, text)?),
            "longest_edge" => self.longest_edge = Some(parse(name, text)?),
            "split" => self.split = Some(parse(name, text)?),
            "timeout_ms" => self.timeout_ms = Some(parse(name, text)?),
            "skip_special_tokens" => self.skip_special_tokens = Some(parse(name, text)?),
            "stop" => match self.stop.get_or_insert(Stop::Many(Vec::new())) {
                Stop::Many(stops) => stops.push(text.to_owned()),
                Stop::One(_) => unreachable!("a form makes many"),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub fn settings(self, limits: &Options) -> Result<Settings> {
        let default = smolvlm::session::DEFAULT_MAX_NEW_TOKENS.min(limits.max_new_tokens);
        let given = self.max_new_tokens.or(self.max_completion_tokens).or(self.max_tokens);
        let max_new_tokens = given.unwrap_or(default);
        if !(1..=limits.max_new_tokens).contains(&max_new_tokens) {
            let message = format!("{max_new_tokens} given, 1 to {} accepted", limits.max_new_tokens);
            return Err(ApiError::invalid("max_new_tokens", message));
        }
        let stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        if stop.len() > MAX_STOPS {
            return Err(ApiError::invalid("stop", format!("{} given, at most {MAX_STOPS} accepted", stop.len())));
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or_default(),
            top_k: self.top_k.unwrap_or_default(),
            top_p: self.top_p.unwrap_or_default(),
            min_p: self.min_p.unwrap_or_default(),
            repetition_penalty: self.repetition_penalty.unwrap_or_default(),
            // Any integer is a seed, a negative one too.
            seed: self.seed.unwrap_or_default() as u64,
        };
        // Refuses senseless values before they wait in the queue.
        Sampler::new(sampling)?;
        let timeout = self.timeout_ms.map_or(limits.timeout_s, Duration::from_millis).min(limits.timeout_s);
        let keep_special_tokens = self.skip_special_tokens == Some(false);
        Ok(Settings { max_new_tokens, sampling, stop, longest_edge: self.longest_edge, timeout, keep_special_tokens })
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T> {
    text.trim().parse().map_err(|e| {
        let shown: String = text.chars().take(40).collect();
        ApiError::invalid(name, format!("\"{shown}\": {e}"))
    })
}
