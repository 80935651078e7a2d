//! What clients send to the web server in the wild: fields, roles and orders that OpenAI's and the
//! local servers accept.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use smolvlm::prompt::{Message, Part, Role};
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Picture, Request, Sampling, Session};
use web::{ENDLESS, Server, endless_model, picture, request};

const LIST: &str = "What objects are in this image?";
const ARROW: &str = "Which way does the arrow point?";
const THREE: &str = "A red star, a blue arrow and an orange circle.";

fn part(file: &[u8]) -> Value {
    let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(file));
    json!({ "type": "image_url", "image_url": { "url": url } })
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn message(role: &str, content: impl Into<Value>) -> Value {
    json!({ "role": role, "content": content.into() })
}

fn question() -> Value {
    message("user", vec![text(LIST), part(&picture())])
}

/// The one that `--dtype f32` serves.
fn engine(model: &str) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
    Engine::load(&dir, &EngineOptions { dtype: DTypeKind::F32, ..Default::default() }).unwrap()
}

fn completion(server: &Server, body: &Value) -> Value {
    let response = server.chat(body);
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

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

/// As the library has them in the same places: drawn at a high temperature, two answers are the
/// same where all logits are.
#[test]
fn pictures_keep_their_places_between_texts() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let engine = engine("models/demo");
    let file = picture();
    let words = |text: &str| Part::Text { text: text.into() };
    let told = |content: &[Part], seed| {
        let view = ImageView::encoded(&file);
        let places = content.iter().filter(|part| **part == Part::Image).count();
        let messages = [Message { role: Role::User, content: content.to_vec() }];
        let sampling = Sampling { temperature: 5.0, seed, ..Default::default() };
        let request = Request { sampling, max_new_tokens: 40, ..Request::new("", &[]) };
        let mut session = Session::new(&engine).unwrap();
        let pictures = vec![Picture { view, split: true }; places];
        session.converse(&messages, &pictures, &request, &mut |_| ControlFlow::Continue(())).unwrap().text
    };
    let asked = |content: &[Value], seed| {
        let messages = [message("user", content.to_vec())];
        let body = json!({ "messages": messages, "temperature": 5, "seed": seed, "max_tokens": 40 });
        completion(&server, &body)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let (one, two, image) = (words("One."), words(LIST), Part::Image);
    let between = [one.clone(), image.clone(), two.clone()];
    let both = [image.clone(), one.clone(), image.clone(), two.clone()];
    let first = [image.clone(), one.clone(), two.clone()];
    let lines = [image.clone(), words(&format!("One.\n{LIST}"))];
    for seed in 1..4 {
        let sent = [text("One."), part(&file), text(LIST)];
        assert_eq!(asked(&sent, seed), told(&between, seed));
        assert!(told(&between, seed) != told(&first, seed) && told(&between, seed) != told(&lines, seed));
        let sent = [part(&file), text("One."), part(&file), text(LIST)];
        assert_eq!(asked(&sent, seed), told(&both, seed));
        // Behind all texts they have no place of their own.
        let sent = [text("One."), text(LIST), part(&file)];
        assert_eq!(asked(&sent, seed), told(&lines, seed));
    }
}

#[test]
fn penalties_are_the_library_s() {
    // A random model: its choices are close.
    const MODEL: &str = "tests/golden/smolvlm2-defaults-bf16";
    let server = Server::start(&["--model", MODEL, "--workers", "1", "--dtype", "f32"]);
    let engine = engine(MODEL);
    let file = picture();
    let views = [ImageView::encoded(&file)];
    let expected = |frequency_penalty, presence_penalty| {
        let sampling = Sampling { frequency_penalty, presence_penalty, ..Default::default() };
        engine.ask(&Request { sampling, max_new_tokens: 40, ..Request::new(LIST, &views) }).unwrap().text
    };
    let given = [(0.0, 0.0), (2.0, 0.0), (0.0, -2.0), (0.75, -1.25)].map(|(f, p)| (f, p, expected(f, p)));
    assert!(given[1..].iter().all(|(_, _, text)| *text != given[0].2), "{given:?}");
    for (frequency, presence, text) in &given {
        let body = json!({
            "messages": [question()], "max_tokens": 40, "frequency_penalty": frequency, "presence_penalty": presence,
        });
        assert_eq!(completion(&server, &body)["choices"][0]["message"]["content"], *text, "{frequency} {presence}");
        let (frequency, presence) = (frequency.to_string(), presence.to_string());
        let form = server.analyze(&[
            ("image", &file),
            ("prompt", LIST.as_bytes()),
            ("max_new_tokens", b"40"),
            ("frequency_penalty", frequency.as_bytes()),
            ("presence_penalty", presence.as_bytes()),
        ]);
        assert_eq!(form.json()["text"], *text, "{}", form.body);
    }
}

/// Of a model that goes on for as long as it may.
#[test]
fn the_longest_answer_is_what_was_asked_for_up_to_the_cap() {
    let model = endless_model("lengths");
    let server = Server::start(&["--model", model.to_str().unwrap(), "--workers", "1", "--max-new-tokens", "300"]);
    let length = |more: Value| {
        let mut body = json!({ "messages": [message("user", "Hi")], "temperature": 100, "top_k": 50, "seed": 2 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = completion(&server, &body);
        assert_eq!(answer["choices"][0]["finish_reason"], "length", "{more}");
        answer["usage"]["completion_tokens"].as_u64().unwrap()
    };
    for name in ["max_tokens", "max_completion_tokens", "max_new_tokens"] {
        for (value, expected) in [
            (json!(1_000_000), 300),
            (json!(301), 300),
            (json!(-1), 256),
            (Value::Null, 256),
            (json!(7.0), 7),
            (json!(8), 8),
        ] {
            assert_eq!(length(json!({ name: value })), expected, "{name} {value}");
        }
    }
    assert_eq!(length(json!({})), 256);
    assert_eq!(length(json!({ "max_tokens": 9, "max_completion_tokens": 5 })), 5);
    let file = picture();
    for (value, expected) in [("1000000", 300), ("-1", 256), ("7.0", 7)] {
        let mut fields: Vec<(&str, &[u8])> = ENDLESS.to_vec();
        fields.pop();
        fields.extend([("image", &file[..]), ("max_new_tokens", value.as_bytes())]);
        assert_eq!(server.analyze(&fields).json()["metrics"]["generated_tokens"], expected, "{value}");
    }
    for (value, expected) in [(json!(1e6), 300), (json!(-1), 256), (json!(7.0), 7)] {
        let body = json!({ "input": "Hi", "temperature": 100, "top_k": 50, "seed": 2, "max_output_tokens": value });
        let body = body.to_string();
        let sent = request("POST", "/v1/responses", "content-type: application/json\r\n", body.as_bytes());
        assert_eq!(server.raw(&sent).json()["usage"]["output_tokens"], expected, "{value}");
    }
}

/// vLLM's and llama.cpp's fields that say whether a last answer is continued.
#[test]
fn whose_turn_it_is_can_be_said() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let begun = vec![question(), message("assistant", "A red star, a blue")];
    let ask = |messages: &[Value], fields: &Value| {
        let mut body = fields.clone();
        body["messages"] = json!(messages);
        server.chat(&body)
    };
    for fields in [
        json!({ "continue_final_message": true }),
        json!({ "continue_final_message": true, "add_generation_prompt": false }),
        json!({ "add_generation_prompt": false }),
        json!({ "continue_final_message": null, "add_generation_prompt": null }),
    ] {
        let answer = ask(&begun, &fields);
        assert_eq!(answer.json()["choices"][0]["message"]["content"], " arrow and an orange circle.", "{fields}");
    }
    for fields in [
        json!({ "continue_final_message": false }),
        json!({ "add_generation_prompt": true }),
        json!({ "continue_final_message": false, "add_generation_prompt": true }),
    ] {
        assert_eq!(ask(&[question()], &fields).json()["choices"][0]["message"]["content"], THREE, "{fields}");
    }
    for (messages, fields, expected) in [
        (
            &begun,
            json!({ "continue_final_message": false }),
            "continue_final_message: the last message is the assistant's, which is continued; leave it out, or end with the user's",
        ),
        (
            &begun,
            json!({ "add_generation_prompt": true }),
            "add_generation_prompt: the last message is the assistant's, which is continued; leave it out, or end with the user's",
        ),
        (
            &vec![question()],
            json!({ "continue_final_message": true }),
            "continue_final_message: the last message is not the assistant's; only an answer is continued",
        ),
        (
            &vec![question()],
            json!({ "add_generation_prompt": false }),
            "add_generation_prompt: the last message is not the assistant's; its answer has to begin",
        ),
        (&begun, json!({ "continue_final_message": 1 }), "continue_final_message: true or false expected"),
    ] {
        assert_eq!(ask(messages, &fields).error(400, "invalid_value"), expected, "{fields}");
    }
    let body = json!({ "input": "Hi", "continue_final_message": true }).to_string();
    let sent = request("POST", "/v1/responses", "content-type: application/json\r\n", body.as_bytes());
    assert!(server.raw(&sent).error(400, "invalid_value").starts_with("continue_final_message: the last message"));
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
