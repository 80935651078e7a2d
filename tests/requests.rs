//! What a request may ask for beyond a question: special tokens in the answer, and no words at all.
#![cfg(any(feature = "candle", feature = "onnx"))]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use smolvlm::{Answer, DTypeKind, Engine, EngineOptions, ErrorKind, FinishReason, ImageView, Request, Session};

#[cfg(feature = "onnx")]
#[path = "support/onnxruntime.rs"]
mod onnxruntime;

/// What the reference's tokenizer makes of greedy answers (tools/golden/special.py).
#[derive(Deserialize)]
struct Golden {
    checkpoint: String,
    renamed: BTreeMap<String, String>,
    cases: Vec<Texts>,
}

#[derive(Deserialize)]
struct Texts {
    name: String,
    kept: String,
    skipped: String,
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    image: String,
    question: String,
    longest_edge: usize,
    split: bool,
    greedy_ids: Vec<u32>,
    greedy_stop: Option<usize>,
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn goldens() -> Vec<Golden> {
    read(&golden().join("special_tokens.json"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The checkpoint with its special tokens under other names, and another padding token if `padding`
/// says so.
fn renamed(name: &str, of: &Golden, padding: Option<&str>) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("requests").join(name);
    let _ = fs::remove_dir_all(&dir);
    copy(&golden().join(&of.checkpoint), &dir);
    let path = dir.join("tokenizer.json");
    let mut tokens = fs::read_to_string(&path).unwrap();
    for (old, new) in &of.renamed {
        tokens = tokens.replace(&format!("\"{old}\""), &format!("\"{new}\""));
    }
    fs::write(path, tokens).unwrap();
    if let Some(padding) = padding {
        let path = dir.join("tokenizer_config.json");
        let mut config: serde_json::Value = read(&path);
        config["pad_token"] = json!({"__type": "AddedToken", "content": padding});
        fs::write(path, config.to_string()).unwrap();
    }
    dir
}

fn f32() -> EngineOptions {
    EngineOptions { dtype: DTypeKind::F32, ..Default::default() }
}

impl Case {
    /// The answer and the pieces that it came in.
    fn ask(&self, dir: &Path, engine: &Engine, change: impl Fn(&mut Request<'_>)) -> (Answer, Vec<String>) {
        let file = fs::read(dir.join(&self.image)).unwrap();
        let images = [ImageView::encoded(&file)];
        let mut request = Request {
            longest_edge: Some(self.longest_edge),
            split: self.split,
            max_new_tokens: self.greedy_ids.len(),
            keep_special_tokens: true,
            ..Request::new(&self.question, &images)
        };
        change(&mut request);
        let mut pieces = Vec::new();
        let answer = engine
            .process(&request, &mut |text| {
                pieces.push(text.to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
        (answer, pieces)
    }
}

/// How many answers of the checkpoint hold special tokens, each of them compared.
fn check(dir: &Path, of: &Golden, options: &EngineOptions) -> usize {
    let engine = Engine::load(dir, options).unwrap();
    let cases: Cases = read(&dir.join("golden.json"));
    let mut special = 0;
    for (case, texts) in cases.cases.iter().zip(&of.cases) {
        assert_eq!(case.name, texts.name);
        let name = format!("{} {}", dir.display(), case.name);
        let (answer, pieces) = case.ask(dir, &engine, |_| {});
        assert_eq!(answer.token_ids, case.greedy_ids[..case.greedy_stop.unwrap_or(case.greedy_ids.len())], "{name}");
        // The family's answers start with a space.
        assert_eq!(answer.text, texts.kept.trim_start(), "{name}");
        assert_eq!(pieces.concat(), answer.text, "{name}");
        let (plain, _) = case.ask(dir, &engine, |r| r.keep_special_tokens = false);
        assert_eq!(plain.text, texts.skipped.trim_start(), "{name}");
        if texts.kept != texts.skipped {
            special += 1;
        }
    }
    special
}

#[test]
#[cfg(feature = "candle")]
fn special_tokens_are_kept_as_the_reference_keeps_them() {
    let special: usize =
        goldens().iter().enumerate().map(|(i, of)| check(&renamed(&format!("candle-{i}"), of, None), of, &f32())).sum();
    assert!(special >= 5, "{special}");
}

#[test]
#[cfg(feature = "onnx")]
fn onnx_keeps_them_too() {
    let of = &goldens()[1];
    let dir = renamed("onnx", of, None);
    // The graphs have their weights in the checkpoint's file.
    fs::copy(dir.join("model.safetensors"), dir.join("onnx/model.safetensors")).unwrap();
    assert_eq!(check(&dir, of, &onnxruntime::options(DTypeKind::F32)), 2);
}

#[test]
#[cfg(feature = "candle")]
fn stop_strings_reach_over_special_tokens_and_padding_stays_out() {
    let of = &goldens()[1];
    let dir = renamed("stop", of, Some("<otsl>"));
    let engine = Engine::load(&dir, &f32()).unwrap();
    let cases: Cases = read(&dir.join("golden.json"));
    let (case, kept) = (&cases.cases[0], of.cases[0].kept.trim_start());
    assert!(kept.contains("<otsl>") && kept.contains("<doctag>"));
    let (answer, _) = case.ask(&dir, &engine, |_| {});
    assert_eq!(answer.text, kept.replace("<otsl>", ""));

    let at = kept.find("<doctag>").unwrap();
    // From the last character of the text before into the token, and from within it into the text
    // after.
    let before = kept[..at].chars().next_back().unwrap();
    let after = kept[at + "<doctag>".len()..].chars().next().unwrap();
    for (stop, end) in [
        ("<doctag>".to_owned(), at),
        (format!("{before}<doc"), at - before.len_utf8()),
        (format!("tag>{after}"), at + "<doc".len()),
    ] {
        let (stopped, pieces) = case.ask(&dir, &engine, |r| r.stop = Vec::leak(vec![&*stop.clone().leak()]));
        assert_eq!((stopped.text.as_str(), stopped.finish_reason), (&kept[..end], FinishReason::StopString), "{stop}");
        assert_eq!(pieces.concat(), stopped.text);
    }
}

/// A special token that ends the answer is none of its text, in the stream neither.
#[test]
#[cfg(feature = "candle")]
fn the_end_stays_out_where_special_tokens_are_kept() {
    let of = &goldens()[1];
    let dir = renamed("end", of, None);
    let cases: Cases = read(&dir.join("golden.json"));
    let (case, kept) = (&cases.cases[0], of.cases[0].kept.trim_start());
    let at = kept.find("<doctag>").unwrap();
    let tokens: serde_json::Value = read(&dir.join("tokenizer.json"));
    let end = tokens["added_tokens"].as_array().unwrap().iter().find(|token| token["content"] == "<doctag>").unwrap();
    let path = dir.join("generation_config.json");
    let mut config: serde_json::Value = read(&path);
    config["eos_token_id"] = json!([end["id"]]);
    fs::write(path, config.to_string()).unwrap();
    let engine = Engine::load(&dir, &f32()).unwrap();
    let (answer, pieces) = case.ask(&dir, &engine, |_| {});
    assert_eq!((answer.text.as_str(), answer.finish_reason), (&kept[..at], FinishReason::EndOfText));
    assert_eq!(pieces.concat(), answer.text);
    assert!(!answer.token_ids.iter().any(|id| end["id"] == *id));
}

/// The next turn's prompt has the answer's tokens, not their letters; a picture's marker that the
/// model wrote is no picture.
#[test]
#[cfg(feature = "candle")]
fn a_kept_token_is_a_token_again_in_the_next_turn() {
    let of = &goldens()[1];
    let dir = renamed("turns", of, None);
    let engine = Engine::load(&dir, &f32()).unwrap();
    let cases: Cases = read(&dir.join("golden.json"));
    let case = &cases.cases[0];
    let file = fs::read(dir.join(&case.image)).unwrap();
    let images = [ImageView::encoded(&file)];
    let id =
        |ids: &[u32], text: &str| ids.iter().filter(|&&id| engine.tokenizer().special_text(id) == Some(text)).count();
    for keep in [true, false] {
        let mut session = Session::new(&engine).unwrap();
        let mut ask = |images: &[ImageView<'_>], prompt: &str| {
            let request = Request {
                longest_edge: Some(case.longest_edge),
                max_new_tokens: case.greedy_ids.len(),
                keep_special_tokens: keep,
                ..Request::new(prompt, images)
            };
            session.process(&request, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        let first = ask(&images, &case.question);
        assert!(id(&first.token_ids, "<doctag>") == 1 && id(&first.prompt_token_ids, "<doctag>") == 0);
        // What a user writes stays text.
        let second = ask(&[], "Is <doctag> a word?");
        assert_eq!(id(&second.prompt_token_ids, "<doctag>"), usize::from(keep));
    }
}

#[test]
#[cfg(feature = "candle")]
fn a_picture_without_words_is_a_question() {
    let dir = golden().join("smolvlm2-defaults-bf16");
    let engine = Engine::load(&dir, &f32()).unwrap();
    let file = fs::read(dir.join("single.png")).unwrap();
    let images = [ImageView::encoded(&file)];
    let ask = |images, prompt| engine.ask(&Request { max_new_tokens: 4, ..Request::new(prompt, images) });
    let answer = ask(&images, "").unwrap();
    assert_eq!(answer.token_ids.len(), 4);
    assert!(answer.prompt_token_ids.len() < ask(&images, "a").unwrap().prompt_token_ids.len());
    let error = ask(&[], "").unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, "prompt: empty"));
}
