//! The web server's answers: what it says to whom asks well, and to whom does not.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::ops::ControlFlow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Request, Sampling, Session};
use web::{FORM, Server, picture, request};

const LIST: &str = "What objects are in this image?";
const THREE: &str = "A red star, a blue arrow and an orange circle.";

fn image_part() -> Value {
    json!({ "type": "image_url", "image_url": { "url": format!("data:image/jpeg;base64,{}", STANDARD.encode(picture())) } })
}

fn question(text: &str) -> Value {
    json!({ "role": "user", "content": [{ "type": "text", "text": text }, image_part()] })
}

#[test]
fn a_form_is_answered() {
    let server = Server::start(&[]);
    let picture = picture();
    let ask = |more: &[(&str, &[u8])]| {
        let response = server.analyze(&[&[("image", &picture[..]), ("prompt", LIST.as_bytes())], more].concat());
        assert_eq!(response.status, 200, "{}", response.body);
        response.json()
    };
    let answer = ask(&[]);
    assert_eq!((&answer["text"], &answer["finish_reason"]), (&THREE.into(), &"end_of_text".into()));
    let metrics = &answer["metrics"];
    assert_eq!((&metrics["tiles"], &metrics["image_tokens"]), (&5.into(), &80.into()));
    let timings = metrics["timings_ms"].as_object().unwrap();
    assert!(timings.len() == 7 && timings.values().all(|ms| ms.as_f64().unwrap() >= 0.0), "{metrics}");

    assert_eq!(ask(&[("split", b"false")])["metrics"]["tiles"], 1);
    assert_eq!(ask(&[("longest_edge", b"96")])["metrics"]["tiles"], 1);
    assert_eq!(ask(&[("max_new_tokens", b"2")])["finish_reason"], "max_tokens");
    assert_eq!(ask(&[("stop", b"nothing"), ("stop", b" arrow")])["text"], "A red star, a blue");
    assert_ne!(
        ask(&[("temperature", b"9"), ("seed", b"1")])["text"],
        ask(&[("temperature", b"9"), ("seed", b"2")])["text"]
    );
    assert_eq!(ask(&[("image", &picture)])["metrics"]["tiles"], 10);
    let plain = answer["metrics"]["prompt_tokens"].as_u64().unwrap();
    assert!(ask(&[("system", b"Be brief.")])["metrics"]["prompt_tokens"].as_u64().unwrap() > plain);
}

#[test]
fn a_completion_is_as_openai_s() {
    let server = Server::start(&[]);
    let whole = server
        .chat(&json!({ "model": "gpt-4o", "messages": [question(LIST)], "unknown": 1, "tools": [], "n": 1 }))
        .json();
    assert_eq!((&whole["object"], &whole["model"]), (&"chat.completion".into(), &"demo".into()));
    assert!(
        whole["id"].as_str().unwrap().starts_with("chatcmpl-") && whole["created"].as_u64().unwrap() > 1_700_000_000
    );
    assert_eq!(whole["choices"][0]["message"], json!({ "role": "assistant", "content": THREE, "refusal": null }));
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"], json!({ "prompt_tokens": 107, "completion_tokens": 13, "total_tokens": 120 }));

    let stream = server
        .chat(&json!({ "messages": [question(LIST)], "stream": true, "stream_options": { "include_usage": true } }));
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    let mut events: Vec<&str> =
        stream.body.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    let mut chunks: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"]));
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert!(chunks.iter().all(|c| c.get("usage") == Some(&Value::Null)));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let last = chunks.last().unwrap();
    assert_eq!(
        (&last["choices"][0]["finish_reason"], &last["smolvlm"]["finish_reason"]),
        (&"stop".into(), &"end_of_text".into())
    );
    let texts: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert!(texts.len() > 5 && texts.concat() == THREE, "{texts:?}");

    let plain = server.chat(&json!({ "messages": [question(LIST)], "stream": true })).body;
    assert!(plain.ends_with("data: [DONE]\n\n") && !plain.contains("usage"), "{plain}");
    let short = server
        .chat(&json!({ "messages": [question(LIST)], "max_completion_tokens": 1, "max_tokens": null, "stop": null }))
        .json();
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    let mut low = question(LIST);
    low["content"][1]["image_url"]["detail"] = "low".into();
    assert_eq!(server.chat(&json!({ "messages": [low] })).json()["smolvlm"]["metrics"]["tiles"], 1);
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "demo");
    assert_eq!(server.get("/v1/models/demo").json()["object"], "model");
    server.get("/v1/models/other").error(404, "model_not_found");
}

#[test]
fn a_response_is_as_openai_s() {
    let server = Server::start(&[]);
    let ask = |body: Value| {
        let body = body.to_string();
        server.raw(&request("POST", "/v1/responses", "content-type: application/json\r\n", body.as_bytes()))
    };
    let image = json!({ "type": "input_image", "image_url": image_part()["image_url"]["url"], "detail": "low" });
    let input = json!([{ "role": "user", "content": [{ "type": "input_text", "text": "Which way does the arrow point?" }, image] }]);
    let answer = ask(json!({ "input": input, "instructions": "Look." })).json();
    assert_eq!((&answer["object"], &answer["status"]), (&"response".into(), &"completed".into()), "{answer}");
    assert_eq!(answer["output"][0]["content"][0]["text"], "Left.");
    assert_eq!(answer["smolvlm"]["metrics"]["tiles"], 1);
    let short = ask(json!({ "input": "Hi", "max_output_tokens": 1 })).json();
    assert_eq!((&short["status"], &short["usage"]["output_tokens"]), (&"incomplete".into(), &1.into()));
    for (field, value) in
        [("stream", json!(true)), ("previous_response_id", json!("resp_1")), ("tool_choice", json!("required"))]
    {
        let message = ask(json!({ "input": "Hi", field: value })).error(400, "invalid_value");
        assert!(message.starts_with(field), "{message}");
    }
    let message = ask(json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }))
        .error(400, "invalid_value");
    assert_eq!(message, "input[0].content[0].image_url: missing");
}

/// The history that a client sends becomes what a session would have remembered: drawn at a high
/// temperature, an answer of more than twenty tokens is the same only if all logits are. In f32:
/// elsewhere they may differ a little by how many tokens come at once.
#[test]
fn a_conversation_goes_on_as_in_a_session() {
    let server = Server::start(&["--workers", "1", "--dtype", "f32"]);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let engine = Engine::load(&dir, &EngineOptions { dtype: DTypeKind::F32, ..Default::default() }).unwrap();
    let (file, second) = (picture(), "Which way does the arrow point?");
    let images = [ImageView::encoded(&file)];
    let mut go_on = |_: &str| ControlFlow::Continue(());
    let mut converse = |seed| {
        let mut session = Session::new(&engine).unwrap();
        let first = Request { system_prompt: Some("Look."), ..Request::new(LIST, &images) };
        let first = session.process(&first, &mut go_on).unwrap();
        let sampling = Sampling { temperature: 5.0, seed, ..Default::default() };
        let drawn = Request { sampling, max_new_tokens: 40, ..Request::new(second, &[]) };
        (seed, first, session.process(&drawn, &mut go_on).unwrap())
    };
    // Which draws go on for so long is the last bits' business, and so the processor's.
    let long = (11..40).map(&mut converse).find(|(_, _, drawn)| drawn.token_ids.len() > 20);
    let (seed, first, expected) = long.expect("an answer of more than twenty tokens");

    let ask = |answer: &str| {
        let history = [
            json!({ "role": "system", "content": "Look." }),
            question(LIST),
            json!({ "role": "assistant", "content": answer }),
            json!({ "role": "user", "content": second }),
        ];
        server.chat(&json!({ "messages": history, "temperature": 5, "seed": seed, "max_tokens": 40 })).json()
    };
    let answer = ask(&first.text);
    assert_eq!(answer["choices"][0]["message"]["content"], expected.text.as_str());
    assert_eq!(answer["usage"]["prompt_tokens"], expected.prompt_token_ids.len());
    // What was said elsewhere counts, whatever this model would have said; markers in it are text.
    for said in ["A green house.", "", "<end_of_utterance> caf\u{e9} \u{1f916} <image>"] {
        let other = ask(said);
        let text = other["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{other}"));
        assert_ne!(text, expected.text);
    }
    assert_eq!(ask(&first.text)["choices"][0]["message"]["content"], expected.text.as_str(), "nothing is left behind");
}

#[test]
fn bad_requests_are_named() {
    let server = Server::start(&["--workers", "1", "--max-new-tokens", "300", "--max-images", "1"]);
    let picture = picture();
    let image = ("image", &picture[..]);
    let prompt = ("prompt", &b"What is this?"[..]);
    let form = |fields: &[(&str, &[u8])]| server.analyze(fields).error(400, "invalid_value");
    assert_eq!(form(&[prompt]), "image: missing; send a JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file");
    assert_eq!(form(&[image, image, prompt]), "image[1]: at most 1 pictures accepted");
    assert!(form(&[("image", b"no image"), prompt]).starts_with("image[0]: 8 bytes starting [6e, 6f, 20, 69, "));
    assert!(
        form(&[("image", b"no image"), prompt]).ends_with("are not JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM")
    );
    assert!(form(&[("image", b"GIF89a.."), prompt]).starts_with("image[0]: "), "a GIF that is cut");
    for (brand, file) in [(b"heic", "a HEIC file"), (b"avif", "an AVIF file")] {
        let start = [&b"\0\0\0\x18ftyp"[..], brand, b"\0\0\0\0mif1"].concat();
        let message = form(&[("image", &start), prompt]);
        assert!(message.starts_with(&format!("image[0]: {file}, which is not read; give JPEG, PNG,")), "{message}");
    }
    assert_eq!(form(&[image, prompt, ("temperature", b"hot")]), "temperature: \"hot\": invalid float literal");
    assert_eq!(form(&[image, prompt, ("top_p", b"1.5")]), "top_p: 1.5 given, 0 to 1 accepted");
    assert_eq!(
        form(&[image, prompt, ("max_new_tokens", b"0")]),
        "max_new_tokens: 0 given, 1 or more accepted; -1: the default"
    );
    assert_eq!(form(&[image, prompt, ("top_k", b"-2")]), "top_k: -2 given, 0 or more accepted");
    assert_eq!(form(&[image, prompt, ("top_k", b"1.5")]), "top_k: \"1.5\": invalid digit found in string");
    assert_eq!(form(&[image, prompt, ("longest_edge", b"0")]), "longest_edge: 0 given, 1 to 65535 accepted");
    assert!(form(&[image, ("prompt", b"\xff")]).starts_with("prompt: invalid utf-8"));
    let long = "word ".repeat(3000);
    server.analyze(&[image, ("prompt", long.as_bytes())]).error(400, "context_length_exceeded");
    server.analyze(&[image, prompt, ("timeout_ms", b"0")]).error(503, "timeout");

    let malformed = |headers: &str, body: &[u8]| {
        server.raw(&request("POST", "/analyze", headers, body)).error(400, "malformed_request")
    };
    let whole = web::form(&[image, prompt]);
    assert!(malformed("", &whole).contains("multipart/form-data expected"));
    assert!(malformed("content-type: multipart/form-data\r\n", &whole).contains("boundary"));
    malformed("content-type: multipart/form-data; boundary=other\r\n", &whole);
    malformed(FORM, b"");
    malformed(FORM, b"--limit\r\nno header\r\n\r\nx\r\n--limit--\r\n");
    for end in [10, 60, whole.len() / 2, whole.len() - 8] {
        malformed(FORM, &whole[..end]);
    }
    assert_eq!(malformed(FORM, &web::form(&[("colour", b"red")])), "field \"colour\": not known; see /openapi.json");

    let chat = |body: Value| server.chat(&body).error(400, "invalid_value");
    let asked =
        |part: Value| json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hi" }, part] }] });
    let url = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
    assert!(chat(asked(url("https://example.org/a.jpg"))).contains("this server fetches nothing"));
    assert!(chat(asked(url("file:///etc/passwd"))).contains("start it with --allow-image-dir"));
    assert!(chat(asked(url("data:image/png,abc"))).contains("3 bytes starting [61, 62, 63] are not"));
    assert!(chat(asked(url("data:image/png;base64,a!"))).starts_with("messages[0].content[1].image_url.url: base64: "));
    assert!(
        chat(asked(json!({ "type": "input_audio" }))).contains("\"input_audio\" is neither a text nor an image_url")
    );
    assert_eq!(chat(asked(json!({ "type": "image_url" }))), "messages[0].content[1].image_url: missing");
    assert_eq!(chat(json!({ "messages": [] })), "messages: no message to answer");
    let hi = json!({ "role": "user", "content": "Hi" });
    assert_eq!(
        chat(json!({ "messages": [{ "role": "robot", "content": "x" }, hi] })),
        "messages[0].role: \"robot\" is none of system, developer, user, assistant and tool"
    );
    assert_eq!(
        chat(json!({ "messages": [hi, { "role": "user", "content": 5.5.to_string() }, { "content": "x" }] })),
        "messages[2].role: missing"
    );
    assert_eq!(
        chat(json!({ "messages": [{ "role": "system", "content": [image_part()] }, hi] })),
        "messages[0].content[0]: pictures come from the user"
    );
    assert_eq!(chat(json!({ "messages": [{ "role": "user", "content": "" }] })), "messages: the last one is empty");
    assert_eq!(chat(json!({ "messages": [{ "role": "user" }] })), "messages[0].content: missing");
    assert_eq!(chat(json!({ "messages": [hi], "n": 2 })), "n: only 1 accepted");
    for choice in [json!("required"), json!({ "type": "function", "function": { "name": "f" } })] {
        let message = chat(json!({ "messages": [hi], "tools": [{}], "tool_choice": choice }));
        assert!(message.starts_with("tool_choice: the model calls no tools"), "{message}");
    }
    // The name is the one that the client sent.
    for (field, value, expected) in [
        ("max_tokens", json!(0), "0 given, 1 or more accepted; -1: the default"),
        ("max_tokens", json!(-2), "-2 given, 0 or more accepted"),
        ("max_completion_tokens", json!(1.5), "1.5 given, integer expected"),
        ("temperature", json!("hot"), "\"hot\" given, number expected"),
        ("frequency_penalty", json!(2.5), "2.5 given, -2 to 2 accepted"),
        ("presence_penalty", json!(-3), "-3 given, -2 to 2 accepted"),
        ("stop", json!(5), "neither a text nor an array of texts"),
        ("stop", json!(["a", 5]), "neither a text nor an array of texts"),
        ("stream", json!("yes"), "true or false expected"),
        ("logprobs", json!(true), "not reported"),
        ("response_format", json!({ "type": "json_object" }), "only text accepted"),
    ] {
        assert_eq!(chat(json!({ "messages": [hi], field: value })), format!("{field}: {expected}"));
    }
    let ill_typed = |body: Value| server.chat(&body).error(400, "malformed_request");
    assert!(
        ill_typed(json!({ "messages": [{ "role": "user", "content": 5 }] })).contains("content: neither a text nor")
    );
    let bad_json = request("POST", "/v1/chat/completions", "", b"{\"messages\": [");
    assert!(server.raw(&bad_json).error(400, "malformed_request").starts_with("body: EOF while parsing"));
    server.get("/no/such/path").error(404, "not_found");
    let wrong = server.get("/analyze");
    wrong.error(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), Some("POST"));
    assert_eq!(server.metric("smolvlm_http_responses_total{path=\"other\",status=\"404\"}"), 1.0);
    let said = json!({ "role": "assistant", "content": "word ".repeat(3000) });
    server.chat(&json!({ "messages": [hi, said, hi] })).error(400, "context_length_exceeded");
    let answer = server.analyze(&[image, ("prompt", LIST.as_bytes())]).json();
    assert_eq!(answer["text"], THREE, "nothing of that is left behind");
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::start(&["--api-key", "open sesame"]);
    let get = |path: &str, key: &str| server.raw(&request("GET", path, key, b""));
    for path in ["/v1/models", "/v1/models/demo", "/metrics"] {
        for key in [
            "",
            "authorization: Bearer open\r\n",
            "authorization: open sesame\r\n",
            "authorization: Bearer open sesamE\r\n",
        ] {
            let response = get(path, key);
            response.error(401, "invalid_api_key");
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        }
        assert_eq!(get(path, "authorization: Bearer open sesame\r\n").status, 200);
        assert_eq!(get(path, "Authorization: bearer open sesame\r\n").status, 200);
    }
    server.analyze(&[("prompt", b"Hi")]).error(401, "invalid_api_key");
    // A client is heard out before it is refused, or it would see a reset connection.
    server.analyze(&[("image", &vec![0; 8 << 20])]).error(401, "invalid_api_key");
    server.chat(&json!({})).error(401, "invalid_api_key");
    for path in ["/", "/health", "/openapi.json"] {
        assert_eq!(get(path, "").status, 200, "{path}");
    }
}

#[test]
fn the_description_has_every_route() {
    let server = Server::start(&["--dtype", "int8", "--kv-cache", "bf16"]);
    let description = server.get("/openapi.json").json();
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let health = server.get("/health").json();
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&health["dtype"], &health["kv_cache"]), (&"int8".into(), &"bf16".into()));
    let described = description["paths"].as_object().unwrap().iter();
    let mut described: Vec<String> = described
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
        .collect();
    // `.route("/path", method(handler))`
    let routes = include_str!("../examples/web_api/app.rs").split(".route(\"").skip(1);
    let mut routes: Vec<String> = routes
        .map(|rest| {
            let (path, rest) = rest.split_once("\", ").unwrap();
            format!("{} {path}", rest.split_once('(').unwrap().0)
        })
        .collect();
    described.sort();
    routes.sort();
    assert_eq!(routes, described);
    assert!(routes.len() >= 8, "{routes:?}");

    // What the description refers to is there, and says of an answer what the answer is.
    let text = description.to_string();
    for name in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(description.pointer(name).is_some(), "{name}");
    }
    let answer = server.analyze(&[("image", &picture()), ("prompt", b"Hi")]).json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let schemas = &description["components"]["schemas"];
    assert_eq!(keys(&health), keys(&schemas["Health"]["properties"]));
    assert_eq!(keys(&answer), keys(&schemas["Answer"]["properties"]));
    assert_eq!(keys(&answer["metrics"]), keys(&schemas["Metrics"]["properties"]));
    let timings = &schemas["Metrics"]["properties"]["timings_ms"]["properties"];
    assert_eq!(keys(&answer["metrics"]["timings_ms"]), keys(timings));
}
