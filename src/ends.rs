//! The ids that end an answer: every file of a checkpoint that names one is believed, since tools differ in which they write.

use serde::Deserialize;
use serde_json::Value;

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::log;
use crate::tokenizer::Tokenizer;

const GENERATION: &str = "generation_config.json";
const CONFIG: &str = "config.json";
/// Where a tokenizer says it; the second is how transformers 4 repeated it.
const TOKENIZER: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// An `eos_token_id`: an integer, a list of them, null, or absent.
#[derive(Default, Deserialize)]
struct Ids {
    #[serde(default)]
    eos_token_id: Value,
}

impl Ids {
    /// Those that are tokens of a vocabulary of `size`: published files name others as well, such as 128001 of 49280.
    fn below(&self, size: usize) -> Result<Vec<u32>> {
        let ids = match &self.eos_token_id {
            Value::Null => &[],
            Value::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        if let Some(bad) = ids.iter().find(|id| !(id.is_i64() || id.is_u64())) {
            return Err(Error::invalid_model(format!("eos_token_id: {bad} is not an integer")));
        }
        let known = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        Ok(known.filter(|&id| (id as usize) < size).collect())
    }
}

/// A token as a string, or as the object that `AddedToken` becomes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

/// The union of what `generation_config.json`, `config.json`, its `text_config`, the tokenizer's files and `<end_of_utterance>` name;
/// `size`: ids of tokens are below it. Errors name the file.
pub fn ids(files: &ModelFiles, tokenizer: &Tokenizer, size: usize) -> Result<Vec<u32>> {
    let mut ends = stated::<Ids>(files, GENERATION)?.below(size).map_err(|e| e.at(files.path(GENERATION).display()))?;

    #[derive(Default, Deserialize)]
    struct Config {
        #[serde(flatten)]
        own: Ids,
        text_config: Option<Ids>,
    }
    let config = stated::<Config>(files, CONFIG)?;
    for ids in [Some(config.own), config.text_config].into_iter().flatten() {
        let ids = ids.below(size).map_err(|e| e.at(files.path(CONFIG).display()))?;
        // transformers 5 writes LlamaConfig's default, 2, where nobody chose one: in another vocabulary that is a word.
        ends.extend(ids.into_iter().filter(|&id| tokenizer.is_special(id)));
    }

    #[derive(Default, Deserialize)]
    struct Named {
        eos_token: Option<Token>,
    }
    for file in TOKENIZER {
        let Some(Token::Text(text) | Token::Added { content: text }) = stated::<Named>(files, file)?.eos_token else {
            continue;
        };
        match tokenizer.id(&text) {
            Some(id) => ends.push(id),
            None => log::warn(format_args!(
                "{}: eos_token \"{text}\" is no token of tokenizer.json, and ends nothing",
                files.path(file).display()
            )),
        }
    }
    ends.extend(tokenizer.end_of_utterance());
    ends.retain(|&id| (id as usize) < size);
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

/// What a file says, or its default where there is none.
fn stated<T: Default + serde::de::DeserializeOwned>(files: &ModelFiles, name: &str) -> Result<T> {
    if files.has(name) { parse(files, name) } else { Ok(T::default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_integer_or_several_and_of_this_vocabulary() {
        let below = |json| serde_json::from_value::<Ids>(json).unwrap().below(100);
        for (json, expected) in [
            (serde_json::json!({}), vec![]),
            (serde_json::json!({"eos_token_id": null}), vec![]),
            (serde_json::json!({"eos_token_id": 2}), vec![2]),
            (serde_json::json!({"eos_token_id": [99, 100, -1, 128001, 7]}), vec![99, 7]),
            (serde_json::json!({"eos_token_id": u64::MAX}), vec![]),
        ] {
            assert_eq!(below(json).unwrap(), expected);
        }
        let error = below(serde_json::json!({"eos_token_id": [1, "two"]})).unwrap_err();
        assert_eq!(error.message(), "eos_token_id: \"two\" is not an integer");
    }
}
