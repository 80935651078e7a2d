//! Tokens that the embedding has no row for: harmless until a prompt needs one.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use serde_json::json;
use smolvlm::{Engine, EngineOptions, ErrorKind, Request, Session};

use crate::copy::{Copy, FLAT, Said, ask};

fn engines() -> Vec<EngineOptions> {
    let candle = |dtype| EngineOptions { dtype, num_threads: 1, ..Default::default() };
    let mut all = vec![candle(smolvlm::DTypeKind::F32), candle(smolvlm::DTypeKind::Int8)];
    #[cfg(feature = "onnx")]
    all.push(EngineOptions { num_threads: 1, ..crate::onnxruntime::options(smolvlm::DTypeKind::F32) });
    all
}

fn add_token(copy: &Copy, id: u32, content: &str, special: bool) {
    copy.edit("tokenizer.json", |all| {
        all["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "special": special, "lstrip": false, "normalized": false, "rstrip": false,
            "single_word": false,
        }));
    });
}

#[test]
fn a_token_without_a_row_is_an_error_where_a_prompt_needs_it() {
    let copy = Copy::new("rows", FLAT);
    let before: Vec<Said> = engines().iter().map(|options| ask(&Engine::load(copy.path(), options).unwrap())).collect();
    add_token(&copy, 448, "<|pad|>", true);
    add_token(&copy, 449, "zebra", false);

    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    assert!(smolvlm::log::set(Some(Box::new(move |level, line| hears
        .lock()
        .unwrap()
        .push(format!("{level:?} {line}"))))));
    for (options, expected) in engines().iter().zip(&before) {
        let engine = Engine::load(copy.path(), options).unwrap();
        assert_eq!(ask(&engine), *expected);
        let mut session = Session::new(&engine).unwrap();
        let mut ask = |prompt: &str| {
            let request = Request { max_new_tokens: 4, ..Request::new(prompt, &[]) };
            session.process(&request, &mut |_| ControlFlow::Continue(()))
        };
        let first = ask("What is it?").unwrap();
        let error = ask("Is it a zebra?").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidModel);
        let message = "prompt: needs the token \"zebra\", id 449, and the embedding has 448 rows";
        assert!(error.message().starts_with(message), "{error}");
        // The conversation goes on as if it had not been asked; the special token's words are no
        // token.
        let second = ask("Is it a <|pad|>?").unwrap();
        assert!(second.prompt_token_ids.starts_with(&first.prompt_token_ids));
    }
    smolvlm::log::set(None);
    let heard = heard.lock().unwrap().clone();
    let warned = |line: &&String| {
        line.starts_with("Warn")
            && line.ends_with("the embedding 448 rows: a prompt that needs one of the others will be an error")
    };
    assert!(heard.iter().filter(warned).count() >= 3, "{heard:?}");

    // A template that pads.
    copy.edit("tokenizer_config.json", |all| {
        let template = format!("<|pad|>{}", all["chat_template"].as_str().unwrap());
        all["chat_template"] = json!(template);
    });
    for options in engines() {
        let error = Engine::load(copy.path(), &options).unwrap().ask(&Request::new("What is it?", &[])).unwrap_err();
        assert!(error.message().contains("needs the token \"<|pad|>\", id 448"), "{error}");
    }
}
