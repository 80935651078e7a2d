//! What the web server makes of special tokens in an answer, and of a picture without words.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use web::Server;

/// A random checkpoint, whose greedy answers hold special tokens.
const MODEL: &str = "tests/golden/smolvlm2-defaults-bf16";

fn read(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)).unwrap()
}

fn server() -> Server {
    Server::start(&["--model", MODEL, "--dtype", "f32", "--workers", "1"])
}

#[test]
fn special_tokens_are_kept_in_answers_and_streams() {
    let texts: Value = serde_json::from_slice(&read("special_tokens.json")).unwrap();
    let golden: Value = serde_json::from_slice(&read("smolvlm2-defaults-bf16/golden.json")).unwrap();
    let (texts, case) = (&texts[0]["cases"][1], &golden["cases"][1]);
    let kept = texts["kept"].as_str().unwrap().trim_start();
    let skipped = texts["skipped"].as_str().unwrap().trim_start();
    assert!(kept.contains("<row_1_col_3><row_5_col_5>"));
    let question = case["question"].as_str().unwrap();
    let picture = read("smolvlm2-defaults-bf16/single.png");
    let server = server();

    let form = |more: &[(&str, &[u8])]| {
        let fields = [("image", &picture[..]), ("prompt", question.as_bytes()), ("longest_edge", b"128")];
        let response = server.analyze(&[&fields[..], &[("max_new_tokens", b"24")], more].concat());
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(form(&[]), skipped);
    assert_eq!(form(&[("skip_special_tokens", b"true")]), skipped);
    assert_eq!(form(&[("skip_special_tokens", b"false")]), kept);
    let cut = form(&[("skip_special_tokens", b"false"), ("stop", b"<row_5_col_5>")]);
    assert_eq!(cut, kept[..kept.find("<row_5_col_5>").unwrap()]);

    let url = format!("data:image/png;base64,{}", STANDARD.encode(&picture));
    let content = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]);
    let body = json!({
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 24, "longest_edge": 128, "skip_special_tokens": false, "stream": true,
    });
    let stream = server.chat(&body).body;
    let pieces = stream.split("\n\n").filter_map(|event| {
        let chunk: Value = serde_json::from_str(event.strip_prefix("data: ")?).ok()?;
        Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())
    });
    assert_eq!(pieces.collect::<String>(), kept);
}

#[test]
fn a_picture_without_words_is_answered() {
    let picture = read("smolvlm2-defaults-bf16/single.png");
    let server = server();
    let alone = server.analyze(&[("image", &picture), ("max_new_tokens", b"3")]);
    assert_eq!(alone.status, 200, "{}", alone.body);
    let empty = server.analyze(&[("image", &picture), ("prompt", b""), ("max_new_tokens", b"3")]).json();
    assert_eq!(alone.json()["text"], empty["text"]);
    assert_eq!(alone.json()["metrics"]["prompt_tokens"], empty["metrics"]["prompt_tokens"]);

    let url = format!("data:image/png;base64,{}", STANDARD.encode(&picture));
    let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let chat = server.chat(&json!({"messages": [{"role": "user", "content": content}], "max_tokens": 3}));
    assert_eq!(chat.status, 200, "{}", chat.body);
    assert_eq!(chat.json()["usage"]["prompt_tokens"], empty["metrics"]["prompt_tokens"]);
    let nothing = server.chat(&json!({"messages": [{"role": "user", "content": ""}]}));
    assert_eq!(nothing.status, 400, "{}", nothing.body);
}
