//! A copy of a golden checkpoint to say otherwise, and what is asked of it.

use std::path::{Path, PathBuf};

use serde_json::Value;
use smolvlm::{DTypeKind, Engine, EngineOptions, Error, ImageView, Request};

/// Flat files, a template in `tokenizer_config.json`, a tied head: as transformers 4 wrote.
pub const FLAT: &str = "tied-12x12-f32";
/// As transformers 5 saves it; its end token is `<|done|>`.
pub const SAVED: &str = "saved-idefics3-f32";

pub struct Copy(PathBuf);

/// Of a question that leaves everything to the checkpoint's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub prompt: Vec<u32>,
    pub ids: Vec<u32>,
}

impl Copy {
    /// `test`: names its folder.
    pub fn new(test: &str, golden: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layouts").join(test);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("onnx")).unwrap();
        for (from, to) in [(from.clone(), dir.clone()), (from.join("onnx"), dir.join("onnx"))] {
            for entry in std::fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
                }
            }
        }
        // The graphs have their weights in it.
        std::fs::copy(dir.join("model.safetensors"), dir.join("onnx/model.safetensors")).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.0.join(file)).unwrap()).unwrap()
    }

    pub fn write(&self, file: &str, text: impl ToString) {
        let path = self.0.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.to_string()).unwrap();
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.0.join(file)).unwrap();
    }

    /// Changes a JSON file, which need not be there.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = if self.0.join(file).exists() { self.json(file) } else { serde_json::json!({}) };
        change(&mut value);
        self.write(file, value);
    }

    /// Sets one value of a JSON file.
    pub fn set(&self, file: &str, key: &str, value: Value) {
        self.edit(file, |all| all[key] = value);
    }

    pub fn load(&self) -> Result<Engine, Error> {
        self.load_as(DTypeKind::F32)
    }

    pub fn load_as(&self, dtype: DTypeKind) -> Result<Engine, Error> {
        Engine::load(&self.0, &EngineOptions { dtype, num_threads: 1, ..Default::default() })
    }

    pub fn ask(&self) -> Said {
        ask(&self.load().unwrap())
    }

    /// The message of the error that loading is.
    pub fn refused(&self) -> String {
        self.load().err().expect("loads, and should not").message().to_owned()
    }
}

pub fn ask(engine: &Engine) -> Said {
    let pixels: Vec<u8> = (0..80 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let images = [ImageView::raw(&pixels, 0, 80, 64, smolvlm::PixelFormat::Rgb8).unwrap()];
    let request = Request { max_new_tokens: 24, ..Request::new("What colour is the sign?", &images) };
    let answer = engine.ask(&request).unwrap();
    Said { prompt: answer.prompt_token_ids, ids: answer.token_ids }
}
