//! The library takes as many threads as the caller says. One test, in a process of its own: threads
//! are counted.
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

fn request<'a>(images: &'a [ImageView<'a>]) -> Request<'a> {
    Request { max_new_tokens: 8, ..Request::new("What objects are in this image?", images) }
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

        // Calls that run at once share them: pools of the engine's size and of smaller shares, none
        // beside those.
        let alone = engine.ask(&request(&images)).unwrap();
        let most = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let answers = (0..5).map(|_| engine.ask(&request(&images)).unwrap().token_ids);
                        let equal = answers.filter(|ids| *ids == alone.token_ids).count();
                        (equal, threads().iter().filter(|name| name.starts_with("smolvlm-")).count())
                    })
                })
                .collect();
            let (equal, most): (Vec<_>, Vec<_>) = callers.into_iter().map(|caller| caller.join().unwrap()).unzip();
            assert_eq!(equal, [5; 8]);
            most.into_iter().max()
        });
        // Threads of a pool that was too much end soon after it.
        assert!(most.unwrap() <= 3 * num_threads, "{most:?} of {num_threads}");
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
