//! Checkpoints that are the same function with a few numbers much larger than the others: 8 bits
//! must not notice.
#![cfg(feature = "candle")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::{DTypeKind, EngineOptions};

const WEIGHTS: &str = "model.safetensors";
const LAYERS: &str = "model.text_model.layers.";
/// A power of 2 changes no number's precision.
const TIMES: f32 = 64.0;

/// A tensor [rows, columns].
struct Matrix {
    shape: Vec<usize>,
    numbers: Vec<f32>,
}

impl Matrix {
    fn scale_row(&mut self, row: usize, by: f32) {
        let columns = self.shape.get(1).copied().unwrap_or(1);
        self.numbers[row * columns..][..columns].iter_mut().for_each(|w| *w *= by);
    }

    fn scale_column(&mut self, column: usize, by: f32) {
        let columns = self.shape[1];
        self.numbers.iter_mut().skip(column).step_by(columns).for_each(|w| *w *= by);
    }
}

/// A copy of a golden checkpoint with weights that a test may change; gone with the value.
struct Copy(PathBuf);

impl Copy {
    fn new(test: &str) -> Self {
        let copy = Self(std::env::temp_dir().join(format!("smolvlm-outliers-{test}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&copy.0);
        fs::create_dir_all(&copy.0).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smolvlm2-32x32-f32");
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }

    /// Changes the tensors of every layer of the decoder.
    fn layers(&self, change: impl Fn(&mut dyn FnMut(&str) -> Matrix) -> Vec<(&'static str, Matrix)>) {
        let bytes = fs::read(self.0.join(WEIGHTS)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, tensor) in file.iter() {
            assert_eq!(tensor.dtype(), Dtype::F32);
            tensors.insert(name.to_owned(), (tensor.shape().to_vec(), tensor.data().to_vec()));
        }
        let layers = (0..).take_while(|i| tensors.contains_key(&format!("{LAYERS}{i}.input_layernorm.weight"))).count();
        assert!(layers > 1);
        for i in 0..layers {
            let mut read = |name: &str| {
                let (shape, data) = &tensors[&format!("{LAYERS}{i}.{name}.weight")];
                let numbers = data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                Matrix { shape: shape.clone(), numbers }
            };
            for (name, Matrix { shape, numbers }) in change(&mut read) {
                let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                tensors.insert(format!("{LAYERS}{i}.{name}.weight"), (shape, data));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, (shape, data))| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &self.0.join(WEIGHTS)).unwrap();
    }

    /// Logits after each of some tokens.
    fn logits(&self, dtype: DTypeKind) -> Vec<f32> {
        let files = ModelFiles::open(&self.0).unwrap();
        let model = ModelConfig::load(&files).unwrap();
        let images = ImageConfig::load(&files, &model).unwrap();
        let options = EngineOptions { dtype, ..Default::default() };
        let backend = CandleBackend::load(&files, &model, &images, &options).unwrap();
        let mut decoder = backend.decoder().unwrap();
        let mut all = decoder.prefill(&[3, 14, 15, 92, 65], &[], &Stop::default()).unwrap().to_vec();
        for id in [35, 89, 79, 32, 38, 46, 26, 43] {
            all.extend_from_slice(decoder.step(id, &Stop::default()).unwrap());
        }
        all
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Mean difference, relative to the mean of what it is from.
fn error(ours: &[f32], exact: &[f32]) -> f32 {
    let sum = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(f32::abs).sum::<f32>();
    sum(&mut ours.iter().zip(exact).map(|(a, b)| a - b)) / sum(&mut exact.iter().copied())
}

/// A norm's gains in some channels, and the weights that read them.
#[test]
fn a_norm_s_large_gains_change_nothing() {
    let (plain, large) = (Copy::new("plain"), Copy::new("gains"));
    large.layers(|read| {
        let mut changed = Vec::new();
        for (norm, readers) in [
            ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].as_slice()),
            ("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"]),
        ] {
            let mut gains = read(norm);
            for channel in [1, 40] {
                gains.scale_row(channel, TIMES);
            }
            changed.push((norm, gains));
            for reader in readers {
                let mut weights = read(reader);
                for channel in [1, 40] {
                    weights.scale_column(channel, 1.0 / TIMES);
                }
                changed.push((*reader, weights));
            }
        }
        changed
    });
    assert!(error(&large.logits(DTypeKind::F32), &plain.logits(DTypeKind::F32)) < 1e-5);
    for dtype in [DTypeKind::Int8, DTypeKind::Int4] {
        assert!(large.logits(dtype) == plain.logits(dtype), "{}", dtype.name());
    }
}

/// Numbers that `down_proj` takes, and its weights.
#[test]
fn large_numbers_inside_the_feed_forward_network_change_little() {
    let (plain, large) = (Copy::new("inside-plain"), Copy::new("inside"));
    large.layers(|read| {
        let (mut up, mut down) = (read("mlp.up_proj"), read("mlp.down_proj"));
        for number in [5, 100] {
            up.scale_row(number, TIMES);
            down.scale_column(number, 1.0 / TIMES);
        }
        vec![("mlp.up_proj", up), ("mlp.down_proj", down)]
    });
    let exact = plain.logits(DTypeKind::F32);
    assert!(error(&large.logits(DTypeKind::F32), &exact) < 1e-5);
    let [of_plain, of_large] = [&plain, &large].map(|copy| error(&copy.logits(DTypeKind::Int8), &exact));
    println!("int8's error: {of_plain}, with large numbers {of_large}");
    // It is 1.8 times here, and 18 without the rotation.
    assert!(of_large < 2.5 * of_plain, "{of_large}, and {of_plain} without them");
}
