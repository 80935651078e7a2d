//! The demo's answers with every set of CPU kernels, each in a process of its own: a process
//! chooses once.
#![cfg(feature = "candle")]

use std::path::Path;
use std::process::Command;

use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Request, log};

const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");
const ANSWERS: [(&str, &str); 3] = [
    ("What objects are in this image?", "A red star, a blue arrow and an orange circle."),
    ("Which way does the arrow point?", "Left."),
    ("How many objects are there?", "Three."),
];

/// With the set that this process's environment names; the other test runs this one.
#[test]
fn the_answers_are_right() {
    log::set(Some(Box::new(|level, message| println!("{level:?}: {message}"))));
    let model = Path::new(DIRECTORY).join("models/demo");
    let picture = image::open(model.join("test_image.jpg")).unwrap();
    for dtype in [DTypeKind::Int8, DTypeKind::Bf16] {
        let engine = Engine::load(&model, &EngineOptions { dtype, ..Default::default() }).unwrap();
        for (question, answer) in ANSWERS {
            let images = [ImageView::decoded(&picture)];
            let request = Request { max_new_tokens: 40, ..Request::new(question, &images) };
            assert_eq!(engine.ask(&request).unwrap().text, answer, "{dtype:?}: {question}");
        }
    }
}

/// What a process says that has answered with the set `name`.
fn said(name: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_answers_are_right", "--nocapture"]).env("SMOLVLM_CPU", name);
    let output = child.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("1 passed"), "{name}: {said}");
    said
}

#[test]
fn the_answers_are_right_with_every_set_of_kernels() {
    assert!(said("portable").contains("Info: kernels: portable\n"));
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        assert!(said("avx2").contains("Info: kernels: avx2\n"));
    }
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        let avx512f = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        let avx512 = avx512f && has!("avx512vnni");
        // Linux shows AMX to those only whom it would let use it.
        let amx = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_int8"));
        let sets = [
            ("avx512f", avx512f),
            ("avxvnni", has!("avxvnni")),
            ("avx512", avx512),
            ("avx512bf16", avx512 && has!("avx512bf16")),
            ("amx", avx512 && amx),
        ];
        for (name, _) in sets.into_iter().filter(|&(_, is_here)| is_here) {
            assert!(said(name).contains(&format!("Info: kernels: {name}\n")), "{name}");
        }
    }
    let ignored = said("avx3");
    let warning = "Warn: SMOLVLM_CPU: \"avx3\" is none of portable, avx2, avx512f, avxvnni, avx512, avx512bf16, amx; it is ignored\n";
    assert!(ignored.contains(warning), "{ignored}");
}
