//! The web server under test, started as its users start it, and a client that speaks HTTP as badly
//! as a test wants.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Nothing here takes that long; a test that waits for ever says nothing.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub process: Child,
    pub address: SocketAddr,
    /// Its end would be a closed pipe for the server.
    _stdout: BufReader<ChildStdout>,
}

pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/web_api");
    assert!(path.exists(), "{}: build it with `cargo build --example web_api`", path.display());
    path
}

/// A question about [`picture`], and its answer.
pub const LIST: &str = "What objects are in this image?";
pub const THREE: &str = "A red star, a blue arrow and an orange circle.";

pub fn picture() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/test_image.jpg")).unwrap()
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        let mut process = Command::new(binary())
            .args(["--port", "0"])
            .args(options)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("SMOLVLM_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("no address: {line:?}"));
        Self { address: address.parse().unwrap(), process, _stdout: stdout }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends `bytes` and reads the response.
    pub fn raw(&self, bytes: &[u8]) -> Response {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        Response::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Response {
        self.raw(&request("GET", path, "", b""))
    }

    pub fn chat(&self, body: &Value) -> Response {
        self.raw(&chat(body))
    }

    pub fn analyze(&self, fields: &[(&str, &[u8])]) -> Response {
        self.raw(&analyze(fields))
    }

    /// The value of a line of /metrics; 0 where it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Waits until a metric has a value.
    pub fn until(&self, name: &str, value: f64) {
        let start = std::time::Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < PATIENCE, "{name} is not {value}: {}", self.get("/metrics").body);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The most memory that the process ever held, in MiB.
    pub fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }

    pub fn terminate(&self) {
        // SAFETY: the child was not waited for, so its id is its own.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, libc::SIGTERM) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let body = if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
        Self { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned(), body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// Asserts that this is an error in OpenAI's form, of one line; its message.
    pub fn error(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.contains('\n') && !message.is_empty(), "{message:?}");
        message.to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    out
}

pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

pub fn chat(body: &Value) -> Vec<u8> {
    request("POST", "/v1/chat/completions", "content-type: application/json\r\n", body.to_string().as_bytes())
}

pub const FORM: &str = "content-type: multipart/form-data; boundary=limit\r\n";

pub fn analyze(fields: &[(&str, &[u8])]) -> Vec<u8> {
    request("POST", "/analyze", FORM, &form(fields))
}

pub fn form(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in fields {
        let file = if *name == "image" { "; filename=\"a\"" } else { "" };
        body.extend(format!("--limit\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend(*value);
        body.extend(b"\r\n");
    }
    body.extend(b"--limit--\r\n");
    body
}

/// Fields of a question to [`endless_model`]: varied, and of likely tokens only.
pub const ENDLESS: [(&str, &[u8]); 5] =
    [("prompt", b"Hi"), ("temperature", b"100"), ("top_k", b"50"), ("seed", b"2"), ("max_new_tokens", b"4096")];

/// The demo model with another end of its answers, which is never among the likely tokens: they go
/// on until somebody stops them or the context ends, after some 1900 tokens, on every processor.
/// `test` names the copy.
pub fn endless_model(test: &str) -> PathBuf {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let model = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("endless-{test}"));
    std::fs::create_dir_all(&model).unwrap();
    let edit = |name: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(demo.join(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        std::fs::write(model.join(name), text.replace(from, to)).unwrap();
    };
    for name in ["config.json", "generation_config.json"] {
        edit(name, "\"eos_token_id\": 639", "\"eos_token_id\": 2");
    }
    edit("tokenizer.json", "<end_of_utterance>", "<end_of_nothing>");
    for name in [
        "chat_template.jinja",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(demo.join(name), model.join(name)).unwrap();
    }
    model
}

/// A picture as a part of a message.
pub fn part(file: &[u8]) -> Value {
    let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(file));
    json!({ "type": "image_url", "image_url": { "url": url } })
}

pub fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

pub fn message(role: &str, content: impl Into<Value>) -> Value {
    json!({ "role": role, "content": content.into() })
}

pub fn question() -> Value {
    message("user", vec![text(LIST), part(&picture())])
}

pub fn completion(server: &Server, body: &Value) -> Value {
    let response = server.chat(body);
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}
