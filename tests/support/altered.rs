//! Copies of golden checkpoints with other weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions};
use smolvlm::{DTypeKind, EngineOptions, ImageView};

const WEIGHTS: &str = "model.safetensors";
const LAYERS: &str = "model.text_model.layers.";

/// A tensor [rows, columns].
pub struct Matrix {
    pub shape: Vec<usize>,
    pub numbers: Vec<f32>,
}

impl Matrix {
    pub fn scale_row(&mut self, row: usize, by: f32) {
        let columns = self.shape.get(1).copied().unwrap_or(1);
        self.numbers[row * columns..][..columns].iter_mut().for_each(|w| *w *= by);
    }

    pub fn scale_column(&mut self, column: usize, by: f32) {
        let columns = self.shape[1];
        self.numbers.iter_mut().skip(column).step_by(columns).for_each(|w| *w *= by);
    }
}

/// A copy of a golden checkpoint with weights that a test may change; gone with the value.
pub struct Copy(pub PathBuf);

impl Copy {
    pub fn new(test: &str) -> Self {
        Self::of("smolvlm2-32x32-f32", test)
    }

    pub fn of(golden: &str, test: &str) -> Self {
        let copy = Self(std::env::temp_dir().join(format!("smolvlm-outliers-{test}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&copy.0);
        fs::create_dir_all(&copy.0).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }

    /// Changes the matrices of every layer of the decoder.
    pub fn layers(&self, change: impl Fn(&mut dyn FnMut(&str) -> Matrix) -> Vec<(&'static str, Matrix)>) {
        self.tensors(|read| {
            let layers = (0..).take_while(|i| read(&format!("{LAYERS}{i}.input_layernorm.weight")).is_some()).count();
            assert!(layers > 1);
            let of_layer = |i: usize| {
                let changed = change(&mut |name| read(&format!("{LAYERS}{i}.{name}.weight")).unwrap());
                changed.into_iter().map(move |(name, matrix)| (format!("{LAYERS}{i}.{name}.weight"), matrix))
            };
            (0..layers).flat_map(of_layer).collect()
        });
    }

    /// Changes some tensors.
    pub fn tensors(&self, change: impl FnOnce(&dyn Fn(&str) -> Option<Matrix>) -> Vec<(String, Matrix)>) {
        let bytes = fs::read(self.0.join(WEIGHTS)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, tensor) in file.iter() {
            assert_eq!(tensor.dtype(), Dtype::F32);
            tensors.insert(name.to_owned(), (tensor.shape().to_vec(), tensor.data().to_vec()));
        }
        let changed = change(&|name| {
            let (shape, data) = tensors.get(name)?;
            let numbers = data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Some(Matrix { shape: shape.clone(), numbers })
        });
        for (name, Matrix { shape, numbers }) in changed {
            let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            tensors.insert(name, (shape, data));
        }
        let views = tensors
            .iter()
            .map(|(name, (shape, data))| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &self.0.join(WEIGHTS)).unwrap();
    }

    pub fn load(&self, dtype: DTypeKind) -> (CandleBackend, ImageConfig) {
        let files = ModelFiles::open(&self.0).unwrap();
        let model = ModelConfig::load(&files).unwrap();
        let images = ImageConfig::load(&files, &model).unwrap();
        let options = EngineOptions { dtype, ..Default::default() };
        (CandleBackend::load(&files, &model, &images, &options).unwrap(), images)
    }

    /// What the connector makes of a picture.
    pub fn image_rows(&self, dtype: DTypeKind) -> Vec<f32> {
        let (backend, images) = self.load(dtype);
        let file = fs::read(self.0.join("single.png")).unwrap();
        let rgb = ImageView::encoded(&file).to_rgb().unwrap();
        let tile_size = images.tile_size;
        let options = TileOptions { tile_size, longest_edge: tile_size, split: false, threads: 1 };
        let tiles = preprocess::tiles(&rgb, &options, &mut || false).unwrap().unwrap();
        backend.encode_images(&tiles, &Stop::default()).unwrap().values
    }

    /// Logits after each of some tokens.
    pub fn logits(&self, dtype: DTypeKind) -> Vec<f32> {
        let (backend, _) = self.load(dtype);
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
pub fn error(ours: &[f32], exact: &[f32]) -> f32 {
    let sum = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(f32::abs).sum::<f32>();
    sum(&mut ours.iter().zip(exact).map(|(a, b)| a - b)) / sum(&mut exact.iter().copied())
}
