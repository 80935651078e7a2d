//! What clients send to the web server in the wild: fields, roles and orders that OpenAI's and the
//! local servers accept.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::io::Cursor;

use serde_json::{Value, json};
use web::{LIST, Server, THREE, completion, message, part, picture, question, request, text};

const ARROW: &str = "Which way does the arrow point?";

fn said(server: &Server, messages: Vec<Value>) -> (String, u64) {
    let answer = completion(server, &json!({ "messages": messages }));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    (text, answer["usage"]["prompt_tokens"].as_u64().unwrap())
}

#[test]
fn fields_are_taken_as_clients_write_them() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32", "--max-new-tokens", "300"]);
    let tools = json!([{ "type": "function", "function": { "name": "look", "parameters": {} } }]);
    for fields in [
        json!({ "max_tokens": 1_000_000 }),
        json!({ "max_tokens": -1 }),
        json!({ "max_completion_tokens": null, "max_tokens": null }),
        json!({ "max_tokens": 100.0, "seed": 7.0, "top_k": 1.0 }),
        json!({ "top_k": -1 }),
        json!({ "top_k": 0, "top_p": 1, "min_p": null, "temperature": null, "seed": -5 }),
        json!({ "stop": "" }),
        json!({ "stop": [] }),
        json!({ "stop": null }),
        json!({ "stop": [""] }),
        json!({ "n": 1, "logprobs": false, "top_logprobs": null, "logit_bias": {}, "response_format": { "type": "text" } }),
        json!({ "n": 1.0, "frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "store": false, "metadata": {} }),
        json!({ "tools": tools, "tool_choice": "none" }),
        json!({ "tools": tools, "tool_choice": "auto", "parallel_tool_calls": true }),
        json!({ "tools": tools, "tool_choice": { "type": "auto" } }),
        json!({ "tools": tools, "functions": [{ "name": "f" }], "function_call": "auto" }),
        json!({ "stream": null, "stream_options": null, "modalities": ["text"] }),
    ] {
        let mut body = fields.clone();
        body["messages"] = json!([question()]);
        assert_eq!(completion(&server, &body)["choices"][0]["message"]["content"], THREE, "{fields}");
    }
    let drawn = |more: Value| {
        let mut body = json!({ "messages": [question()], "temperature": 5, "seed": 3, "max_tokens": 60 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        completion(&server, &body)["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(drawn(json!({})), drawn(json!({ "frequency_penalty": 0 })));
    assert_eq!(drawn(json!({})), drawn(json!({ "top_k": -1 })));
    assert_ne!(drawn(json!({})), drawn(json!({ "top_k": 1 })));
    assert_ne!(drawn(json!({})), drawn(json!({ "top_k": 2.0 })));

    let file = picture();
    let form = |more: &[(&str, &[u8])]| {
        let response = server.analyze(&[&[("image", &file[..]), ("prompt", LIST.as_bytes())], more].concat());
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()["text"].clone()
    };
    for (name, value) in [
        ("max_new_tokens", "301"),
        ("max_new_tokens", "-1"),
        ("max_tokens", "100.0"),
        ("top_k", "-1"),
        ("stop", ""),
        ("frequency_penalty", "0"),
        ("presence_penalty", "0.0"),
    ] {
        assert_eq!(form(&[(name, value.as_bytes())]), THREE, "{name}={value}");
    }
}

#[test]
fn roles_come_in_any_order() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let file = picture();
    let plain = said(&server, vec![question()]);
    assert_eq!(plain.0, THREE);
    let call = json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function" }] });
    let tool = json!({ "role": "tool", "tool_call_id": "1", "content": "42" });
    for same in [
        // The family sees the picture first; so does a turn in two messages.
        vec![message("user", vec![part(&file), text(LIST)])],
        vec![message("user", vec![part(&file)]), message("user", LIST)],
        vec![message("user", LIST), message("user", vec![part(&file)])],
        vec![question(), json!({ "role": "assistant", "content": null, "refusal": null })],
        vec![question(), call.clone(), tool.clone()],
        vec![json!({ "role": "user", "name": "Ann", "content": [part(&file), text(LIST)] })],
    ] {
        assert_eq!(said(&server, same.clone()), plain, "{}", same.len());
    }
    let joined = said(&server, vec![message("system", "Look.\nBe brief."), question()]);
    assert_eq!(said(&server, vec![message("system", "Look."), message("developer", "Be brief."), question()]), joined);
    assert!(joined.1 > plain.1);

    // A late one is in its place: the prompt has its turn.
    let history =
        |late: Vec<Value>| [vec![question(), message("assistant", THREE)], late, vec![message("user", ARROW)]].concat();
    let without = said(&server, history(vec![]));
    assert!(said(&server, history(vec![message("system", "Be brief.")])).1 > without.1);
    assert_eq!(said(&server, history(vec![call, tool])), without);

    // A picture alone, on every door.
    assert!(!said(&server, vec![message("user", vec![part(&file)])]).0.is_empty());
    let alone = server.analyze(&[("image", &file)]);
    assert_eq!(alone.status, 200, "{}", alone.body);
}

#[test]
fn a_begun_answer_is_continued() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let begun = vec![question(), message("assistant", "A red star, a blue")];
    assert_eq!(said(&server, begun.clone()).0, THREE.strip_prefix("A red star, a blue").unwrap());
    let in_parts = message("assistant", vec![json!({ "type": "output_text", "text": "A red star, a blue" })]);
    let image = json!({ "type": "input_image", "image_url": part(&picture())["image_url"]["url"] });
    let input = json!([
        message("user", vec![json!({ "type": "input_text", "text": LIST }), image]),
        { "type": "reasoning", "summary": [] },
        { "type": "function_call", "name": "f", "arguments": "{}", "call_id": "1" },
        { "type": "function_call_output", "call_id": "1", "output": "42" },
        in_parts,
    ]);
    let body = json!({ "input": input, "tools": [{}], "tool_choice": "auto", "max_output_tokens": 1e6 }).to_string();
    let response = server.raw(&request("POST", "/v1/responses", "content-type: application/json\r\n", body.as_bytes()));
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.json()["output"][0]["content"][0]["text"], " arrow and an orange circle.");

    let stream = server.chat(&json!({ "messages": begun, "stream": true })).body;
    let pieces =
        stream.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
    let text: String =
        pieces.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
    assert_eq!(text, " arrow and an orange circle.");
}

#[test]
fn the_second_question_about_a_picture_encodes_nothing() {
    const HITS: &str = "smolvlm_image_cache_hits_total";
    const MISSES: &str = "smolvlm_image_cache_misses_total";
    let keeping = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let forgetful = Server::start(&["--workers", "1", "--dtype", "f32", "--image-cache-mb", "0"]);
    let left = picture();
    let mut right = Vec::new();
    image::load_from_memory(&left)
        .unwrap()
        .fliph()
        .write_to(&mut Cursor::new(&mut right), image::ImageFormat::Png)
        .unwrap();
    let ask = |file: &[u8]| message("user", vec![part(file), text(ARROW)]);
    let answered = |file: &[u8], answer: &str| vec![ask(file), message("assistant", answer)];
    let counts = || (keeping.metric(HITS), keeping.metric(MISSES), keeping.metric("smolvlm_image_cache_pictures"));

    for (messages, text, expected) in [
        (vec![ask(&left)], "Left.", (0.0, 1.0, 1.0)),
        (vec![question()], THREE, (1.0, 1.0, 1.0)),
        // The newest picture counts, whose tokens are the same.
        (vec![ask(&right)], "Right.", (1.0, 2.0, 2.0)),
        ([answered(&left, "Left."), vec![ask(&right)]].concat(), "", (3.0, 2.0, 2.0)),
        ([answered(&right, "Right."), vec![ask(&left)]].concat(), "", (5.0, 2.0, 2.0)),
    ] {
        let answer = said(&keeping, messages.clone());
        assert!(text.is_empty() || answer.0 == text, "{answer:?}");
        assert_eq!(answer, said(&forgetful, messages));
        assert_eq!(counts(), expected);
    }
    assert!(keeping.metric("smolvlm_image_cache_bytes") > 1000.0);
    // Other tiles of the same file are others.
    let coarse =
        |server: &Server| server.analyze(&[("image", &left), ("prompt", LIST.as_bytes()), ("split", b"false")]);
    assert_eq!(coarse(&keeping).json()["metrics"]["tiles"], 1);
    assert_eq!(coarse(&keeping).json()["text"], coarse(&forgetful).json()["text"]);
    assert_eq!(counts(), (6.0, 3.0, 3.0));
    assert_eq!((forgetful.metric(HITS), forgetful.metric(MISSES)), (0.0, 0.0));
}
