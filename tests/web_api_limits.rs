//! The web server's clocks and counts: who leaves, waits, or does nothing takes no more than their
//! share.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use web::{ENDLESS, Response, Server, analyze, chat, endless_model, picture, request};

const RUNNING: &str = "smolvlm_questions_running";
const WAITING: &str = "smolvlm_questions_waiting";
const CANCELLED: &str = "smolvlm_answers_total{finish_reason=\"cancelled\"}";
const TOKENS: &str = "smolvlm_generated_tokens_total";
const ABANDONED: &str = "smolvlm_answers_total{finish_reason=\"abandoned\"}";

/// Sends a question that goes on for thousands of tokens; the answer is not read.
fn ask_endlessly(server: &Server) -> TcpStream {
    let picture = picture();
    let mut stream = server.connect();
    stream.write_all(&analyze(&[&[("image", &picture[..])], &ENDLESS[..]].concat())).unwrap();
    stream
}

fn stream_endlessly(server: &Server) -> TcpStream {
    let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(picture()));
    let content = json!([{ "type": "text", "text": "Hi" }, { "type": "image_url", "image_url": { "url": url } }]);
    let messages = [json!({ "role": "user", "content": content })];
    let body =
        json!({ "messages": messages, "stream": true, "temperature": 100, "top_k": 50, "seed": 2, "max_tokens": 4096 });
    let mut stream = server.connect();
    stream.write_all(&chat(&body)).unwrap();
    // The first tokens are there.
    let mut read = String::new();
    while read.matches("\"content\"").count() < 3 {
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes).unwrap();
        assert!(n > 0, "{read}");
        read += std::str::from_utf8(&bytes[..n]).unwrap();
    }
    assert!(read.starts_with("HTTP/1.1 200"), "{read}");
    stream
}

/// One worker whose answers do not end, in f32, which takes its time. `test` names its model.
fn patient(test: &str, more: &[&str]) -> Server {
    let model = endless_model(test);
    let model = ["--model", model.to_str().unwrap()];
    Server::start(&[&model[..], &["--max-new-tokens", "4096", "--workers", "1", "--dtype", "f32"], more].concat())
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = patient("queue", &["--queue", "1"]);
    let running = stream_endlessly(&server);
    let waiting = ask_endlessly(&server);
    server.until(WAITING, 1.0);
    let refused = server.analyze(&[("image", &vec![0; 4 << 20]), ("prompt", b"Hi")]);
    refused.error(429, "queue_full");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    server.chat(&json!({ "messages": [] })).error(429, "queue_full");
    assert_eq!(server.get("/health").status, 200, "what needs no worker is served");
    assert_eq!((server.metric(RUNNING), server.metric(WAITING)), (1.0, 1.0));
    drop((running, waiting));
    server.until(ABANDONED, 1.0);
    assert_eq!(server.analyze(&[("image", &picture()), ("prompt", b"Hi")]).status, 200);
}

#[test]
fn a_client_that_leaves_stops_the_generation() {
    let server = patient("left", &[]);
    let stream = stream_endlessly(&server);
    server.until(RUNNING, 1.0);
    drop(stream);
    server.until(CANCELLED, 1.0);
    server.until(RUNNING, 0.0);
    let in_stream = server.metric(TOKENS);
    assert!((1.0..1900.0).contains(&in_stream), "{in_stream}: to the end, it would be some 1900");

    // Before there is anything to stream, and from the queue.
    let running = ask_endlessly(&server);
    server.until(RUNNING, 1.0);
    let waiting = ask_endlessly(&server);
    server.until(WAITING, 1.0);
    drop(waiting);
    drop(running);
    server.until(CANCELLED, 2.0);
    server.until(ABANDONED, 1.0);
    server.until(RUNNING, 0.0);
    assert!(server.metric(TOKENS) - in_stream < 1900.0);
    assert_eq!(server.analyze(&[("image", &picture()), ("prompt", b"Hi")]).status, 200);
}

#[test]
fn a_deadline_holds_in_the_queue_and_in_the_answer() {
    let server = patient("deadline", &[]);
    let picture = picture();
    let ask =
        |ms: &'static [u8]| server.analyze(&[&[("image", &picture[..]), ("timeout_ms", ms)], &ENDLESS[..]].concat());
    let cut = ask(b"700").json();
    assert_eq!(cut["finish_reason"], "timeout", "{cut}");
    assert!(!cut["text"].as_str().unwrap().is_empty());
    let running = stream_endlessly(&server);
    ask(b"200").error(503, "timeout");
    assert_eq!(server.metric(RUNNING), 1.0, "it never ran");
    drop(running);
}

#[test]
fn slow_clients_are_hung_up_on() {
    let server = Server::start(&["--client-timeout-s", "1"]);
    // A header that never ends, a body that comes by the byte, and one that does not come.
    let mut header = server.connect();
    header.write_all(b"POST /analyze HTTP/1.1\r\nhost: ").unwrap();
    let whole = analyze(&[("image", &picture()), ("prompt", b"Hi")]);
    let mut dribble = server.connect();
    dribble.write_all(&whole[..300]).unwrap();
    let mut silent = server.connect();
    silent.write_all(&request("POST", "/v1/chat/completions", "", &[b'['; 5000])[..1000]).unwrap();
    // Nobody else has to wait for them.
    assert_eq!(server.raw(&whole).status, 200);

    for byte in &whole[300..] {
        sleep(Duration::from_millis(50));
        if dribble.write_all(&[*byte]).is_err() {
            break;
        }
        dribble.set_nonblocking(true).unwrap();
        let answered = dribble.peek(&mut [0]).is_ok();
        dribble.set_nonblocking(false).unwrap();
        if answered {
            break;
        }
    }
    Response::read(&mut dribble).error(408, "request_timeout");
    Response::read(&mut silent).error(408, "request_timeout");
    let mut rest = Vec::new();
    header.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));

    // One that asks for megabytes of page, and reads none of it.
    let mut deaf = server.connect();
    deaf.write_all("GET / HTTP/1.1\r\nhost: t\r\n\r\n".repeat(2000).as_bytes()).unwrap();
    server.until("smolvlm_connections", 2.0);
    // The connection that asks is one.
    server.until("smolvlm_connections", 1.0);
}

#[test]
fn connections_are_counted() {
    let server = Server::start(&["--max-connections", "2", "--client-timeout-s", "3"]);
    let idle = [server.connect(), server.connect()];
    let mut third = server.connect();
    third.write_all(&request("GET", "/health", "", b"")).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(third.peek(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    third.set_read_timeout(None).unwrap();
    assert_eq!(Response::read(&mut third).status, 200, "the idle ones were hung up on");
    drop(idle);
}

#[test]
fn a_shutdown_lets_what_runs_finish() {
    let mut server = patient("grace", &["--grace-s", "50"]);
    let mut running = stream_endlessly(&server);
    // Open before the signal, and its request after it.
    let mut late = server.connect();
    late.write_all(&analyze(&[("image", &picture()), ("prompt", b"Hi")])[..200]).unwrap();
    server.until(RUNNING, 1.0);
    server.terminate();
    while TcpStream::connect(server.address).is_ok() {
        sleep(Duration::from_millis(5));
    }
    let rest = Tail::read(&mut running);
    assert_eq!(rest.last["smolvlm"]["finish_reason"], "max_tokens", "{}", rest.last);
    drop(late);
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn a_shutdown_ends_what_does_not_finish() {
    let mut server = patient("no-grace", &["--grace-s", "0.1"]);
    let mut running = stream_endlessly(&server);
    let mut waiting = ask_endlessly(&server);
    server.until(WAITING, 1.0);
    server.terminate();
    let rest = Tail::read(&mut running);
    assert_eq!(rest.last["smolvlm"]["finish_reason"], "cancelled", "{}", rest.last);
    Response::read(&mut waiting).error(503, "shutting_down");
    assert!(server.process.wait().unwrap().success());

    let mut idle = Server::start(&[]);
    idle.terminate();
    assert!(idle.process.wait().unwrap().success());
    let mut impatient = patient("second-signal", &["--grace-s", "50"]);
    let _running = stream_endlessly(&impatient);
    impatient.terminate();
    while TcpStream::connect(impatient.address).is_ok() {
        sleep(Duration::from_millis(5));
    }
    impatient.terminate();
    assert_eq!(impatient.process.wait().unwrap().code(), Some(1), "the second signal ends it at once");
}

/// The end of a stream of events.
struct Tail {
    /// The last event before `[DONE]`.
    last: Value,
}

impl Tail {
    fn read(stream: &mut TcpStream) -> Self {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let mut events = text.lines().filter_map(|line| line.strip_prefix("data: ")).rev();
        assert_eq!(events.next(), Some("[DONE]"), "{text}");
        Self { last: serde_json::from_str(events.next().unwrap()).unwrap() }
    }
}

#[test]
fn help_names_the_limits() {
    let output = std::process::Command::new(web::binary()).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for word in
        ["--host", "--queue", "--max-body-mib", "--max-pixels", "SMOLVLM_API_KEY", "Examples:", "[default: 127.0.0.1]"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    let refused = |arguments: &[&str]| {
        let output = std::process::Command::new(web::binary()).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--workers", "0"]).contains("1 to 1048576 accepted"));
    assert!(refused(&["--api-key", ""]).contains("--api-key"));
    assert!(refused(&["--timeout-s", "nan"]).contains("more than 0"));
    assert!(refused(&["--model", "no-such-model"]).contains("no-such-model"));
}
