//! What a request says to the web server, held against the library: places, penalties, lengths,
//! turns.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use smolvlm::prompt::{Message, Part, Role};
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Picture, Request, Sampling, Session};
use web::{ENDLESS, LIST, Server, THREE, completion, endless_model, message, part, picture, question, request, text};

/// The one that `--dtype f32` serves.
fn engine(model: &str) -> Engine {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
    Engine::load(&dir, &EngineOptions { dtype: DTypeKind::F32, ..Default::default() }).unwrap()
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
