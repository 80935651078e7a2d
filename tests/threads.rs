//! The library takes as many threads as the caller says. One test, in a process of its own: threads are counted.
#![cfg(feature = "candle")]
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::Duration;

use smolvlm::{Engine, EngineOptions, ImageView, Request};

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok()).collect()
}

#[test]
fn no_more_threads_than_asked_for() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let file = std::fs::read(dir.join("test_image.jpg")).unwrap();
    let images = [ImageView::encoded(&file)];
    let before = threads().len();
    for num_threads in [1, 2] {
        let engine = Engine::load(&dir, &EngineOptions { num_threads, ..Default::default() }).unwrap();
        engine.ask(&Request { max_new_tokens: 3, ..Request::new("What is this?", &images) }).unwrap();
        assert_eq!(threads().len() - before, num_threads, "{:?}", threads());
        drop(engine);
        // A pool's threads end soon after it, not with it.
        for _ in 0..500 {
            if threads().len() == before {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(threads().len(), before, "{:?}", threads());
    }
}
