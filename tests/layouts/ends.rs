//! Which files are believed when they name a token that ends an answer.

use serde_json::{Value, json};
use smolvlm::ErrorKind;

use crate::copy::{Copy, SAVED};

/// Its answers have many different tokens.
const VARIED: &str = "saved-smolvlm2-bf16";

/// An answer, and a token in it that is not there before place `n`: (the answer, n, the token's id,
/// its text).
fn subject(test: &str) -> (Vec<u32>, usize, u32, String) {
    let copy = Copy::new(test, VARIED);
    let ids = copy.ask().ids;
    let n = (2..ids.len()).rev().find(|&n| !ids[..n].contains(&ids[n])).expect("an answer of more than two tokens");
    let tokenizer = copy.json("tokenizer.json");
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let (text, id) = (vocab.iter().find(|(_, id)| id.as_u64() == Some(ids[n].into())).unwrap().0.clone(), ids[n]);
    (ids, n, id, text)
}

#[test]
fn an_end_that_any_file_names_ends_an_answer() {
    let (ids, n, id, text) = subject("ends");
    let special = json!({"content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    let many = json!([128_001, -1, id, 49_999]);
    for (file, part, name, value) in [
        ("generation_config.json", "", "eos_token_id", json!(id)),
        ("generation_config.json", "", "eos_token_id", many.clone()),
        ("config.json", "", "eos_token_id", json!(id)),
        ("config.json", "", "eos_token_id", many.clone()),
        ("config.json", "/text_config", "eos_token_id", json!(id)),
        ("config.json", "/text_config", "eos_token_id", many),
        ("tokenizer_config.json", "", "eos_token", json!(text)),
        ("tokenizer_config.json", "", "eos_token", special.clone()),
        ("special_tokens_map.json", "", "eos_token", json!(text)),
        ("special_tokens_map.json", "", "eos_token", special.clone()),
    ] {
        let copy = Copy::new("ends", VARIED);
        copy.edit(file, |all| all.pointer_mut(part).unwrap()[name] = value.clone());
        if file == "config.json" {
            // A number there may be a default that nobody chose: an ordinary word ends nothing.
            assert_eq!(copy.ask().ids, ids, "{file} {part}: {value}");
            let mut token = special.clone();
            token["id"] = json!(id);
            copy.edit("tokenizer.json", |all| all["added_tokens"].as_array_mut().unwrap().push(token));
        }
        assert_eq!(copy.ask().ids, ids[..n], "{file} {part}: {value}");
    }
    // Where it is in none of them.
    let copy = Copy::new("ends", VARIED);
    for (file, value) in [("tokenizer_config.json", json!("<|nowhere|>")), ("special_tokens_map.json", Value::Null)] {
        copy.set(file, "eos_token", value);
        assert_eq!(copy.ask().ids, ids);
    }
}

/// Ours, the reference's `generate` of 5.23, which reads generation_config.json alone, would go on
/// after `<|done|>`.
#[test]
fn a_renamed_end_token_is_an_end() {
    let copy = Copy::new("renamed", SAVED);
    let id = |token| copy.load().unwrap().tokenizer().id(token);
    assert_eq!(copy.load().unwrap().end_ids(), [2, id("<|done|>").unwrap()]);
    assert_eq!(id("<end_of_utterance>"), Some(440));
    copy.set("tokenizer_config.json", "eos_token", json!("<|im_end|>"));
    assert_eq!(copy.load().unwrap().end_ids(), [2]);
}

#[test]
fn a_checkpoint_without_any_end_is_refused() {
    let copy = Copy::new("endless", SAVED);
    copy.set("tokenizer_config.json", "eos_token", Value::Null);
    copy.set("generation_config.json", "eos_token_id", json!(128_001));
    copy.edit("config.json", |all| all["text_config"]["eos_token_id"] = Value::Null);
    let error = copy.load().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidModel);
    assert!(error.message().contains("which token ends an answer; set eos_token_id"), "{error}");
    copy.set("generation_config.json", "eos_token_id", json!("two"));
    let message = copy.refused();
    assert!(message.ends_with("generation_config.json: eos_token_id: \"two\" is not an integer"), "{message}");
}
