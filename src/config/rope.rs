//! The rotary embedding's frequencies, in the kinds of `ROPE_INIT_FUNCTIONS` of transformers 5.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::checks::in_range;
use crate::error::{Error, Result};

/// What turns queries and keys by their position.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians a position [head_dim / 2].
    pub inv_freq: Vec<f32>,
    /// Cosines and sines are multiplied by it.
    pub scale: f32,
}

/// How frequencies come from theta.
#[derive(Clone, Debug, PartialEq)]
pub enum Rope {
    Default,
    /// All of them are divided by the factor.
    Linear {
        factor: f64,
    },
    /// Slow ones are divided by `factor`, fast ones kept.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn {
        factor: f64,
        /// Of cosines and sines.
        scale: f64,
        fast: f64,
        slow: f64,
        original: f64,
        truncate: bool,
    },
    /// Each has its own factor. Those for contexts over the original length are never needed: none
    /// gets that long here.
    LongRope {
        factors: Vec<f64>,
        scale: f64,
    },
    /// Only the first `share` of the pairs turn.
    Proportional {
        factor: f64,
        share: f64,
    },
}

impl Rope {
    pub(super) fn rotary(&self, theta: f64, head_dim: usize) -> Rotary {
        let (half, dim) = (head_dim / 2, head_dim as f64);
        let plain = |pair: usize| theta.powf(-(2.0 * pair as f64) / dim);
        let all = |frequency: &dyn Fn(usize) -> f64| (0..half).map(|pair| frequency(pair) as f32).collect();
        let (inv_freq, scale) = match self {
            Self::Default => (all(&plain), 1.0),
            Self::Linear { factor } => (all(&|pair| plain(pair) / factor), 1.0),
            Self::Llama3 { factor, low, high, original } => {
                let frequency = |pair| {
                    let frequency: f64 = plain(pair);
                    let turns = original * frequency / (2.0 * PI);
                    if turns < *low {
                        frequency / factor
                    } else if turns > *high {
                        frequency
                    } else {
                        let smooth = (turns - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                (all(&frequency), 1.0)
            }
            Self::Yarn { factor, scale, fast, slow, original, truncate } => {
                // The pair that turns so many times within the original context.
                let pair_of = |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
                let (mut first, mut last) = (pair_of(*fast), pair_of(*slow));
                if *truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, mut last) = (first.max(0.0), last.min(dim - 1.0));
                if first == last {
                    last += 0.001;
                }
                let frequency = |pair: usize| {
                    let slowed = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    plain(pair) * (slowed / factor + 1.0 - slowed)
                };
                (all(&frequency), *scale)
            }
            Self::LongRope { factors, scale } => {
                (factors.iter().enumerate().map(|(pair, factor)| (plain(pair) / factor) as f32).collect(), *scale)
            }
            Self::Proportional { factor, share } => {
                let turning = (share * head_dim as f64 / 2.0) as usize;
                (all(&|pair| if pair < turning { plain(pair) / factor } else { 0.0 }), 1.0)
            }
        };
        Rotary { inv_freq, scale: scale as f32 }
    }
}

/// The text settings that a kind of rope may look at.
pub(super) struct Around {
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// `text_config.original_max_position_embeddings`.
    pub original: Option<usize>,
}

/// What rope's settings say: kind, theta if it is among them, and the context that this kind is
/// computed for.
pub(super) struct Read {
    pub rope: Rope,
    pub theta: Option<f64>,
    pub max_position_embeddings: usize,
}

/// Reads `rope_scaling` or `rope_parameters`; as in the reference, the former wins where it says
/// something.
pub(super) fn read(
    scaling: Option<&Map<String, Value>>,
    parameters: Option<&Map<String, Value>>,
    around: &Around,
) -> Result<Read> {
    let empty = Map::new();
    let named = [("rope_scaling", scaling), ("rope_parameters", parameters)];
    let said = named.into_iter().find_map(|(name, map)| Some((name, map.filter(|map| !map.is_empty())?)));
    let (name, map) = said.unwrap_or(("rope_parameters", &empty));
    let fields = Fields { name, map };
    if let Some((key, _)) = map.iter().find(|(key, value)| value.is_object() || key.starts_with("mrope")) {
        let message = format!("text_config.{name}.{key}: only one rotary embedding for all layers is known");
        return Err(Error::unsupported(message));
    }
    // Transformers 4.4x wrote both keys; the reference looks at the newer one first.
    let kind = match map.get("rope_type").or_else(|| map.get("type")) {
        None | Some(Value::Null) => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(Error::invalid_model(format!("text_config.{name}.rope_type: {other} is no text"))),
    };
    let share = fields.number("partial_rotary_factor")?.unwrap_or(1.0);
    if kind != "proportional" && share != 1.0 {
        let message =
            format!("text_config.{name}.partial_rotary_factor: {share}, with rope_type {kind} only 1 is known");
        return Err(Error::unsupported(message));
    }
    let mut max_position_embeddings = around.max_position_embeddings;
    let original = || fields.original(around);
    let rope = match kind {
        "default" => Rope::Default,
        "linear" => Rope::Linear { factor: fields.factor("factor")? },
        // It begins to differ from the default where the context ends here.
        "dynamic" if map.get("original_max_position_embeddings").is_none_or(Value::is_null) => {
            fields.factor("factor")?;
            Rope::Default
        }
        "llama3" => {
            let (low, high) = (fields.factor("low_freq_factor")?, fields.factor("high_freq_factor")?);
            if low >= high {
                let message = format!("text_config.{name}: low_freq_factor {low} is not below high_freq_factor {high}");
                return Err(Error::invalid_model(message));
            }
            Rope::Llama3 { factor: fields.factor("factor")?, low, high, original: original()? as f64 }
        }
        "yarn" => fields.yarn(original()? as f64, around)?,
        "longrope" => {
            let original = original()?;
            let factors = fields.factors("short_factor", around.head_dim / 2)?;
            fields.factors("long_factor", around.head_dim / 2)?;
            let ratio = around.max_position_embeddings as f64 / original as f64;
            let factor = fields.number("factor")?.unwrap_or(ratio);
            let scale = match fields.number("attention_factor")? {
                Some(scale) => scale,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            max_position_embeddings = max_position_embeddings.min(original);
            Rope::LongRope { factors, scale: in_bounds(name, "attention_factor", scale)? }
        }
        "proportional" if (0.0..=1.0).contains(&share) => {
            Rope::Proportional { factor: fields.optional_factor("factor")?.unwrap_or(1.0), share }
        }
        other => {
            return Err(Error::unsupported(format!(
                "text_config.{name}: rope_type \"{other}\" with these settings is not known; default, linear, llama3, \
                 yarn, longrope, dynamic and proportional are"
            )));
        }
    };
    Ok(Read { rope, theta: fields.number("rope_theta")?, max_position_embeddings })
}

/// Numbers beyond this are a damaged file's; they would make infinities.
const MAX_FACTOR: f64 = 1e6;

fn in_bounds(name: &str, key: &str, value: f64) -> Result<f64> {
    if value > 0.0 && value <= MAX_FACTOR {
        return Ok(value);
    }
    Err(Error::invalid_model(format!(
        "text_config.{name}.{key}: {value}, a number above 0 and to {MAX_FACTOR} expected"
    )))
}

struct Fields<'a> {
    name: &'a str,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    /// `None` where it is absent or null.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::invalid_model(format!("text_config.{}.{key}: {value} is no number", self.name))),
        }
    }

    fn optional_factor(&self, key: &str) -> Result<Option<f64>> {
        self.number(key)?.map(|value| in_bounds(self.name, key, value)).transpose()
    }

    fn factor(&self, key: &str) -> Result<f64> {
        self.optional_factor(key)?
            .ok_or_else(|| Error::invalid_model(format!("text_config.{}.{key}: is not there", self.name)))
    }

    fn factors(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let wrong = |what: &str| Error::invalid_model(format!("text_config.{}.{key}: {what}", self.name));
        let list = self.map.get(key).and_then(Value::as_array).ok_or_else(|| wrong("is no list"))?;
        if list.len() != count {
            return Err(wrong(&format!("{} numbers, {count} expected", list.len())));
        }
        let number = |value: &Value| in_bounds(self.name, key, value.as_f64().unwrap_or(f64::NAN));
        list.iter().map(number).collect()
    }

    /// The context that the model was first trained for.
    fn original(&self, around: &Around) -> Result<usize> {
        let key = "original_max_position_embeddings";
        let inside = self.number(key)?.map(|value| value as usize);
        match (around.original, inside) {
            (Some(outside), Some(inside)) if outside != inside => Err(Error::invalid_model(format!(
                "text_config.{key}: {outside}, but text_config.{} says {inside}",
                self.name
            ))),
            (outside, inside) => {
                let original = outside.or(inside).unwrap_or(around.max_position_embeddings);
                // Logarithms of it are divided by.
                if original < 2 {
                    return Err(Error::invalid_model(format!("text_config.{key}: {original}, at least 2 expected")));
                }
                in_range(&format!("text_config.{key}"), original).map(|()| original)
            }
        }
    }

    fn yarn(&self, original: f64, around: &Around) -> Result<Rope> {
        let factor = self.optional_factor("factor")?.unwrap_or(around.max_position_embeddings as f64 / original);
        let growth = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        // Zero counts as absent, here and below: it is Python.
        let said = |key| Ok::<_, Error>(self.number(key)?.filter(|&value| value != 0.0));
        let scale = match (self.number("attention_factor")?, said("mscale")?, said("mscale_all_dim")?) {
            (Some(scale), ..) => scale,
            (None, Some(one), Some(all)) => growth(one) / growth(all),
            _ => growth(1.0),
        };
        let turns = |key, default| in_bounds(self.name, key, said(key)?.unwrap_or(default));
        let truncate = match self.map.get("truncate") {
            None => true,
            Some(value) => value.as_bool().ok_or_else(|| {
                Error::invalid_model(format!("text_config.{}.truncate: {value} is neither true nor false", self.name))
            })?,
        };
        Ok(Rope::Yarn {
            factor: in_bounds(self.name, "factor", factor)?,
            scale: in_bounds(self.name, "attention_factor", scale)?,
            fast: turns("beta_fast", 32.0)?,
            slow: turns("beta_slow", 1.0)?,
            original,
            truncate,
        })
    }
}

#[cfg(test)]
mod tests;
