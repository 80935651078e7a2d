//! ONNX Runtime's threads are as many as the caller says, and rest between two calls. One test, in
//! a process of its own.
#![cfg(all(feature = "onnx", target_os = "linux"))]

#[path = "support/onnxruntime.rs"]
mod onnxruntime;

use std::path::Path;
use std::time::Duration;

use onnxruntime::options;
use smolvlm::{DTypeKind, Engine, EngineOptions, ImageView, Request};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The count once it rests: a thread ends soon after its pool, not with it.
fn settled() -> usize {
    let mut last = threads();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(10));
        let now = threads();
        if now == last {
            break;
        }
        last = now;
    }
    last
}

/// Seconds that this process has computed for.
fn processor_seconds() -> f64 {
    // SAFETY: zero is a value of every field, and the struct is the caller's.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[test]
fn threads_are_counted_and_rest() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let file = std::fs::read(dir.join("test_image.jpg")).unwrap();
    let images = [ImageView::encoded(&file)];
    // Unless it is told not to, ONNX Runtime 1.29 and newer report home, on a thread that stays to
    // the process's end.
    let before = settled();
    drop(Engine::load(&dir, &EngineOptions { num_threads: 1, ..options(DTypeKind::Int8) }).unwrap());
    assert_eq!(settled(), before, "a thread that is nobody's");
    assert_eq!(std::env::var("ORT_DISABLE_TELEMETRY").as_deref(), Ok("1"));
    assert!(std::env::var_os("PATH").is_some(), "the rest of the environment is as it was");
    for num_threads in [1, 2, 3] {
        let before = settled();
        let engine = Engine::load(&dir, &EngineOptions { num_threads, ..options(DTypeKind::Int8) }).unwrap();
        let start = processor_seconds();
        for _ in 0..20 {
            engine.ask(&Request { max_new_tokens: 3, ..Request::new("What is this?", &images) }).unwrap();
        }
        let busy = processor_seconds() - start;
        // The caller is one of them; the vision encoder and the decoder, which never run at the
        // same time in a call, have theirs each.
        assert_eq!(settled() - before, 2 * (num_threads - 1), "{num_threads} threads");

        let start = processor_seconds();
        std::thread::sleep(Duration::from_millis(500));
        let idle = processor_seconds() - start;
        // A single thread that waits busily would need the whole half second.
        assert!(idle < busy.min(0.4), "{idle} s of computing in 0.5 s of rest, {busy} s in 20 calls");
    }
}
