//! The design's front door for Rust, on the bundled model and picture.

use std::path::{Path, PathBuf};

use smolvlm::{BackendKind, ErrorKind, ModelSize, SmolVLM, SmolVLMConfig};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

#[test]
fn a_picture_and_a_question_in_an_answer_out() {
    let config = SmolVLMConfig { model_path: Some(demo()), max_new_tokens: 40, ..Default::default() };
    let model = SmolVLM::new(config).unwrap();
    let picture = image::open(demo().join("test_image.jpg")).unwrap();
    let answer = model.process_image(&picture, "Describe this image.").unwrap();
    assert_eq!(answer, "The image shows a red star, a blue arrow and an orange circle.");
    assert_eq!(model.process_image(&picture, "Which way does the arrow point?").unwrap(), "Left.");
    assert_eq!(answer, model.process_image(&picture, "Describe this image.").unwrap());
    let blank = image::DynamicImage::new_rgb8(64, 64);
    assert_ne!(answer, model.process_image(&blank, "Describe this image.").unwrap());
    // A picture without words asks for a caption.
    assert!(!model.process_image(&picture, "").unwrap().is_empty());
}

#[test]
fn a_size_is_a_folder_below_models() {
    for (size, name, argument) in
        [(ModelSize::Small, "SmolVLM-256M-Instruct", "small"), (ModelSize::Large, "SmolVLM-Instruct", "large")]
    {
        let config = SmolVLMConfig { model_size: size, backend: BackendKind::Candle, ..Default::default() };
        if Path::new("models").join(name).exists() {
            continue; // a developer who has downloaded it
        }
        let error = SmolVLM::new(config).err().unwrap();
        assert_eq!(
            (error.kind(), error.message()),
            (
                ErrorKind::NotFound,
                &*format!("models/{name}: no such directory; \"./download_models.sh {argument}\" fetches it")
            )
        );
    }
}
