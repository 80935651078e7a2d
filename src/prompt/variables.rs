//! The special tokens that a template knows by name: `bos_token`, `eos_token` and the like.

use serde_json::{Map, Value};

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

const CONFIG: &str = "tokenizer_config.json";
/// Older versions saved the names here as well.
const LEGACY: &str = "special_tokens_map.json";

/// The reference's `SPECIAL_TOKENS_ATTRIBUTES`.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Those of them that GPT-2's tokenizer class has where the file does not say.
const GPT2_NAMES: [&str; 3] = ["bos_token", "eos_token", "unk_token"];
const GPT2_TOKEN: &str = "<|endoftext|>";

/// Name and text of each named special token. Errors name the file and the field.
pub(super) fn special_tokens(files: &ModelFiles) -> Result<Vec<(&'static str, String)>> {
    let read =
        |file| -> Result<Map<String, Value>> { if files.has(file) { parse(files, file) } else { Ok(Map::new()) } };
    let config = read(CONFIG)?;
    // The reference asks the older file only where the newer one lists no added tokens; then the older one wins.
    let legacy = if config.contains_key("added_tokens_decoder") { Map::new() } else { read(LEGACY)? };
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let is_gpt2 = class.strip_suffix("Fast").unwrap_or(class) == "GPT2Tokenizer";

    let mut tokens = Vec::new();
    for name in NAMES {
        let found = legacy.get(name).map(|v| (LEGACY, v)).or_else(|| config.get(name).map(|v| (CONFIG, v)));
        let token = match found {
            Some((file, value)) => token(name, value).map_err(|e| e.at(files.path(file).display()))?,
            None if is_gpt2 && GPT2_NAMES.contains(&name) => Some(GPT2_TOKEN.to_owned()),
            None => None,
        };
        tokens.extend(token.map(|token| (name, token)));
    }
    Ok(tokens)
}

/// A text, or a saved `AddedToken`.
fn token(name: &str, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(added) => match added.get("content") {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            _ => Err(Error::invalid_model(format!("{name}: an object without a text `content`"))),
        },
        _ => Err(Error::invalid_model(format!("{name}: {value}, a text or an object needed"))),
    }
}
