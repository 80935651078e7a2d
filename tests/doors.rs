//! The same file is the same picture through the library, the command line and the web server.
//! tests/c/doors.c and bindings/python/tests/test_pictures.py ask about the same files.
#![cfg(all(feature = "candle", feature = "onnx"))]

#[path = "support/web.rs"]
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, PixelFormat, Request, Sampling};
use web::Server;

const QUESTION: &str = "What objects are in this image?";
/// Nearly all tokens are likely: an answer that any change of the picture changes.
const TEMPERATURE: f32 = 8.0;
const SEED: u64 = 3;
const TOKENS: usize = 24;

/// Files of one picture each, and the plain PNG that they all have to be.
const PICTURES: [&str; 16] = [
    "depth.png",
    "depth.tif",
    "depth.pgm",
    "depth-big-endian.tif",
    "p2-16.pgm",
    "turned.jpg",
    "turned.png",
    "turned-late.png",
    "turned.webp",
    "turned-6.tif",
    "animated.gif",
    "transparent.gif",
    "pages.tif",
    "cmyk.tif",
    "p6.ppm",
    "p4.pbm",
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/files").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(path(name)).unwrap()
}

struct Library(Engine);

impl Library {
    fn new() -> Self {
        let options = EngineOptions { dtype: DTypeKind::F32, ..EngineOptions::default() };
        Self(Engine::load(Path::new("models/demo"), &options).unwrap())
    }

    fn ask(&self, view: ImageView<'_>) -> String {
        let images = [view];
        let mut request = Request::new(QUESTION, &images);
        request.max_new_tokens = TOKENS;
        request.sampling = Sampling { temperature: TEMPERATURE, seed: SEED, ..Sampling::default() };
        self.0.process(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text
    }
}

fn command(name: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/smolvlm_demo");
    let output = Command::new(program)
        .args(["--dtype", "f32", "--json", "--temperature", "8", "--seed", "3", "--max-new-tokens", "24"])
        .args(["--prompt", QUESTION, "--image"])
        .arg(path(name))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answer: Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}: {text} {:?}", output.stderr));
    answer["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_file_is_one_picture_at_every_door() {
    let library = Library::new();
    let server = Server::start(&["--dtype", "f32", "--workers", "1"]);
    let mut answers = BTreeMap::new();
    for name in PICTURES {
        let file = read(name);
        let plain = image::open(path(&format!("{name}.seen.png"))).unwrap().into_rgb8();
        let raw = ImageView::raw(&plain, 0, plain.width(), plain.height(), PixelFormat::Rgb8).unwrap();
        let wanted = library.ask(raw);
        assert_eq!(library.ask(ImageView::encoded(&file)), wanted, "{name}: library");
        assert_eq!(command(name), wanted, "{name}: command line");
        let fields: [(&str, &[u8]); 5] = [
            ("image", &file),
            ("prompt", QUESTION.as_bytes()),
            ("temperature", b"8"),
            ("seed", b"3"),
            ("max_new_tokens", b"24"),
        ];
        let form = server.analyze(&fields);
        assert_eq!(form.status, 200, "{name}: {}", form.body);
        assert_eq!(form.json()["text"], wanted, "{name}: form");
        let url = format!("data:application/octet-stream;base64,{}", STANDARD.encode(&file));
        let content =
            json!([{ "type": "image_url", "image_url": { "url": url } }, { "type": "text", "text": QUESTION }]);
        let messages = json!([{ "role": "user", "content": content }]);
        let chat = json!({ "messages": messages, "temperature": 8, "seed": SEED, "max_tokens": TOKENS });
        assert_eq!(server.chat(&chat).json()["choices"][0]["message"]["content"], wanted, "{name}: chat");
        answers.insert(plain.into_raw(), wanted);
    }
    let different: BTreeSet<&String> = answers.values().collect();
    assert!(answers.len() >= 7 && different.len() == answers.len(), "other pictures have other answers: {answers:?}");
}

/// Values of 16 bits in the memory of the program, or in an image of the `image` crate.
#[test]
fn depths_are_one_picture_as_pixels_and_as_a_file() {
    let library = Library::new();
    let wanted = library.ask(ImageView::encoded(&read("depth.png")));
    let decoded = image::open(path("depth.png")).unwrap();
    assert_eq!(decoded.color(), image::ColorType::L16);
    assert_eq!(library.ask(ImageView::decoded(&decoded)), wanted);
    let depths = decoded.into_luma16();
    let bytes: Vec<u8> = depths.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let view = ImageView::raw(&bytes, 0, depths.width(), depths.height(), PixelFormat::Gray16).unwrap();
    assert_eq!(library.ask(view), wanted);
    let high: Vec<u8> = depths.iter().map(|value| (value >> 8) as u8).collect();
    let dark = ImageView::raw(&high, 0, depths.width(), depths.height(), PixelFormat::Gray8).unwrap();
    assert_ne!(library.ask(dark), wanted, "nearly black");
}
