//! The command line, run as its users run it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Request, Sampling};

/// Cargo builds the examples before the tests, into a folder beside theirs.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/smolvlm_demo");
    assert!(path.exists(), "{}: build it with `cargo build --example smolvlm_demo`", path.display());
    path
}

fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

const IMAGE: &str = "models/demo/test_image.jpg";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = run(&[&["--json", "--image", IMAGE], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn json_is_one_object_with_every_field() {
    let answer = json(&["--prompt", "How many objects are there?", "--dtype", "f32"]);
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    let expected = [
        "backend",
        "device",
        "dtype",
        "finish_reason",
        "generated_tokens",
        "image_tokens",
        "kv_cache",
        "prompt_token_ids",
        "prompt_tokens",
        "text",
        "timings_ms",
        "token_ids",
    ];
    assert_eq!(keys, expected);
    let timings = answer["timings_ms"].as_object().unwrap();
    let expected = ["decode", "load", "prefill", "preprocess", "time_to_first_token", "total", "vision"];
    assert_eq!(timings.keys().collect::<Vec<_>>(), expected);
    assert!(timings.values().all(|ms| ms.as_f64().unwrap() >= 0.0));
    let stages = ["preprocess", "vision", "prefill", "decode"].map(|s| timings[s].as_f64().unwrap());
    let total = timings["total"].as_f64().unwrap();
    assert!(stages.iter().sum::<f64>() <= total, "total is without load: {answer}");
    assert_eq!(
        answer["prompt_tokens"].as_u64().unwrap() as usize,
        answer["prompt_token_ids"].as_array().unwrap().len()
    );
    assert_eq!(answer["generated_tokens"].as_u64().unwrap() as usize, answer["token_ids"].as_array().unwrap().len());
    assert_eq!(
        (&answer["backend"], &answer["device"], &answer["dtype"]),
        (&"candle".into(), &"cpu".into(), &"f32".into())
    );
    assert_eq!(answer["finish_reason"], "end_of_text");
}

#[test]
fn the_streamed_text_is_the_json_s() {
    let question = ["--prompt", "Describe this image.", "--image", IMAGE];
    let output = run(&question);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout).trim_end(), json(&question[..2])["text"].as_str().unwrap());
    assert_eq!(text(&output.stderr), "");
    let stats = run(&[&question[..], &["--stats", "--dtype", "f32"]].concat());
    for word in ["candle on cpu in f32", "vision", "prefill", "decode", "tokens/s"] {
        assert!(text(&stats.stderr).contains(word), "{word}: {}", text(&stats.stderr));
    }
}

#[test]
fn options_reach_the_engine() {
    let tokens = |arguments: &[&str]| json(arguments)["image_tokens"].as_u64().unwrap();
    let (whole, one) = (tokens(&[]), tokens(&["--no-split"]));
    assert!(whole > one && one == tokens(&["--longest-edge", "96"]), "{whole} {one}");
    assert_eq!(json(&["--dtype", "bf16"])["dtype"], "bf16");
    let kept = json(&["--dtype", "int8", "--kv-cache", "bf16"]);
    assert_eq!((&kept["dtype"], &kept["kv_cache"]), (&"int8".into(), &"bf16".into()));
    assert_eq!(json(&["--backend", "candle", "--threads", "1"])["backend"], "candle");
    let short = json(&["--max-new-tokens", "2"]);
    assert_eq!((&short["generated_tokens"], &short["finish_reason"]), (&2.into(), &"max_tokens".into()));
    let stopped = json(&["--prompt", "Describe this image.", "--stop", "image"]);
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&"The ".into(), &"stop_string".into()));
    let drawn =
        |seed: &str| json(&["--temperature", "3", "--seed", seed, "--max-new-tokens", "20"])["token_ids"].clone();
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let likeliest = json(&["--temperature", "3", "--top-k", "1"]);
    assert_eq!(likeliest["token_ids"], json(&[])["token_ids"]);
    assert_eq!(json(&["--timeout-ms", "0"])["finish_reason"], "timeout");
}

#[test]
fn the_answer_s_penalties_are_the_library_s() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let options = EngineOptions { dtype: DTypeKind::F32, ..Default::default() };
    // A random model: its choices are close.
    let model = "tests/golden/smolvlm2-defaults-bf16";
    let engine = Engine::load(&directory.join(model), &options).unwrap();
    let file = std::fs::read(directory.join(IMAGE)).unwrap();
    let views = [ImageView::encoded(&file)];
    let expected = |frequency_penalty, presence_penalty| {
        let sampling = Sampling { frequency_penalty, presence_penalty, ..Default::default() };
        let request =
            Request { sampling, max_new_tokens: 40, ..Request::new("What objects are in this image?", &views) };
        engine.ask(&request).unwrap().token_ids
    };
    let flags = |more: &[&str]| {
        json(&[&["--model", model, "--dtype", "f32", "--max-new-tokens", "40"], more].concat())["token_ids"].clone()
    };
    let [plain, frequency, presence] = [expected(0.0, 0.0), expected(2.0, 0.0), expected(0.0, -2.0)];
    assert!(plain != frequency && plain != presence && frequency != presence);
    assert_eq!(flags(&["--frequency-penalty", "2"]), Value::from(frequency));
    assert_eq!(flags(&["--presence-penalty", "-2"]), Value::from(presence));
    // A negative number is no flag.
    let both = ["--frequency-penalty", "-0.5", "--presence-penalty", "1.5"];
    assert_eq!(flags(&both), Value::from(expected(-0.5, 1.5)));
}

#[test]
fn errors_name_the_value_and_have_their_exit_codes() {
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--frequency-penalty", "2.5"], 2, "frequency_penalty: 2.5 given, -2 to 2 accepted"),
        (&["--presence-penalty", "-2.5"], 2, "presence_penalty: -2.5 given, -2 to 2 accepted"),
        (&["--image", "no-such.jpg"], 2, "no-such.jpg"),
        (&["--model", "no-such-model"], 2, "no-such-model"),
        (&["--image", "Cargo.toml"], 2, "are not JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM"),
        (&["--temperature", "nan"], 2, "temperature: NaN"),
        (&["--backend", "tensorflow"], 2, "tensorflow"),
        (&["--model", "tests"], 2, "config.json"),
    ];
    for (arguments, code, message) in cases {
        let output = run(arguments);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
        assert_eq!(text(&output.stdout), "");
    }
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(IMAGE).exists());
}

#[test]
fn help_has_examples_and_exit_codes() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    for word in ["--longest-edge", "Examples:", "Exit codes:", "smolvlm_demo --image"] {
        assert!(text(&output.stdout).contains(word), "{word}");
    }
}

/// A cache as the hub's clients make it: blobs by name, a snapshot of links, a branch.
fn hub_cache(test: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{test}"));
    let _ = std::fs::remove_dir_all(&cache);
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = cache.join("models--robots--shapes");
    let snapshot = repository.join("snapshots").join(commit);
    for folder in [&snapshot, &repository.join("blobs"), &repository.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    for entry in Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").read_dir().unwrap() {
        let file = entry.unwrap();
        // The hub has no digests in the snapshot.
        if file.file_type().unwrap().is_file() && file.file_name() != "SHA256SUMS" {
            std::fs::copy(file.path(), repository.join("blobs").join(file.file_name())).unwrap();
            let target = Path::new("../../blobs").join(file.file_name());
            std::os::unix::fs::symlink(target, snapshot.join(file.file_name())).unwrap();
        }
    }
    cache
}

#[test]
fn a_hub_id_answers_from_the_hub_s_cache() {
    let cache = hub_cache("hub-id");
    let ask = |id: &str| {
        Command::new(binary())
            .args(["--image", IMAGE, "--prompt", "Which way does the arrow point?", "--model", id])
            .env("HF_HUB_CACHE", &cache)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap()
    };
    let answer = ask("robots/shapes");
    assert_eq!((text(&answer.stdout), text(&answer.stderr)), ("Left.\n", ""));

    let missing = ask("robots/letters");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("\"hf download robots/letters\" fetches it"), "{}", text(&missing.stderr));
}

#[test]
fn special_tokens_are_shown_where_they_are_asked_for_and_a_picture_alone_is_a_question() {
    let model = "tests/golden/smolvlm2-defaults-bf16";
    let ask = |more: &[&str]| {
        let picture = format!("{model}/single.png");
        let common = ["--model", model, "--dtype", "f32", "--image", &picture, "--longest-edge", "128"];
        let output = run(&[&common[..], &["--max-new-tokens", "24"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    };
    let question = ["--prompt", "What colour is the sign?"];
    assert!(!ask(&question).contains("<row_"));
    let kept = ask(&[&question[..], &["--keep-special-tokens"]].concat());
    assert!(kept.contains("<row_1_col_3><row_5_col_5>"), "{kept}");
    assert!(!ask(&["--prompt", ""]).is_empty());
    let output = run(&["--model", model, "--prompt", ""]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(2), "smolvlm_demo: prompt: empty\n"));
}
