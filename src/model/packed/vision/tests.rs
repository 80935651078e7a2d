//! What is folded and turned at load, in f32, beside what it is made of.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::*;
use crate::files::ModelFiles;
use crate::model::store::Store;
use crate::model::weights::Weights;

/// A matrix [outputs, inputs] and its bias.
struct Dense {
    weights: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Dense {
    fn new(at: &Loader<'_>, name: &str, (inputs, outputs): (usize, usize), bias: bool, fold: &Fold<'_>) -> Self {
        let matrix = at.matrix(&[name], inputs, &[outputs]).unwrap();
        let bias = if bias { at.at(name).floats("bias", &[outputs]).unwrap() } else { Vec::new() };
        let bias = matrix.folded_bias(bias, fold, "", &Store::None, Cpu::detect()).unwrap();
        Self { weights: matrix.folded(fold, Cpu::detect()), bias, inputs }
    }

    /// Rows of it.
    fn apply(&self, rows: &[f32]) -> Vec<f32> {
        let product = |row: &[f32], weights: &[f32]| row.iter().zip(weights).map(|(x, w)| x * w).sum::<f32>();
        let mut out = Vec::new();
        for row in rows.chunks_exact(self.inputs) {
            for (output, weights) in self.weights.chunks_exact(self.inputs).enumerate() {
                out.push(product(row, weights) + self.bias.get(output).unwrap_or(&0.0));
            }
        }
        out
    }
}

/// A layer's matrices, and what is left of its norms.
struct DenseLayer {
    qkv: [Dense; 3],
    out: Dense,
    fc1: Dense,
    fc2: Dense,
    norms: [Norm; 2],
    spread: usize,
    heads: (usize, usize),
}

impl DenseLayer {
    fn new(at: &Loader<'_>, config: &VisionConfig, turns: Option<&Turns>) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let norms = ["layer_norm1", "layer_norm2"].map(|name| Norm::load(&at.at(name), config).unwrap());
        let (attention, mlp) = (at.at("self_attn"), at.at("mlp"));
        let Folds { qkv, out, fc1, fc2 } = Folds::new([&norms[0], &norms[1]], turns);
        let dense = |name| Dense::new(&attention, name, (hidden, hidden), true, &qkv);
        let stream = turns.map(|turns| &turns.stream);
        Self {
            qkv: ["q_proj", "k_proj", "v_proj"].map(dense),
            out: Dense::new(&attention, "out_proj", (hidden, hidden), true, &out),
            fc1: Dense::new(&mlp, "fc1", (hidden, inner), true, &fc1),
            fc2: Dense::new(&mlp, "fc2", (inner, hidden), true, &fc2),
            spread: fc2.spread,
            norms: [norms[0].rest(stream), norms[1].rest(stream)],
            heads: (config.num_attention_heads, config.head_dim()),
        }
    }

    fn forward(&self, x: &mut [f32]) {
        let [queries, keys, values] = self.qkv.each_ref().map(|dense| dense.apply(&normed(&self.norms[0], x)));
        let mixed = attend([&queries, &keys, &values], self.heads);
        add(x, &self.out.apply(&mixed));
        let mut inside = self.fc1.apply(&normed(&self.norms[1], x));
        for x in &mut inside {
            *x = 0.5 * *x * (1.0 + (0.797_884_6 * (*x + 0.044_715 * x.powi(3))).tanh());
        }
        kernels::spread(&mut inside, self.spread, Cpu::detect());
        add(x, &self.fc2.apply(&inside));
    }
}

fn normed(norm: &Norm, x: &[f32]) -> Vec<f32> {
    let (width, mut out) = (norm.weight.len(), vec![0.0; x.len()]);
    x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(|(x, out)| norm.row(x, out));
    out
}

fn attend([queries, keys, values]: [&[f32]; 3], (heads, head_dim): (usize, usize)) -> Vec<f32> {
    let width = heads * head_dim;
    let of = |all: &[f32], head: usize| -> Vec<Vec<f32>> {
        all.chunks_exact(width).map(|row| row[head * head_dim..][..head_dim].to_vec()).collect()
    };
    let mut out = vec![0.0; queries.len()];
    for head in 0..heads {
        let [queries, keys, values] = [queries, keys, values].map(|all| of(all, head));
        for (query, out) in queries.iter().zip(out.chunks_exact_mut(width)) {
            let score = |key: &Vec<f32>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
            let weights: Vec<f32> = keys.iter().map(|key| (score(key) * (head_dim as f32).powf(-0.5)).exp()).collect();
            let sum: f32 = weights.iter().sum();
            for (weight, value) in weights.iter().zip(&values) {
                let out = &mut out[head * head_dim..][..head_dim];
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / sum * value);
            }
        }
    }
    out
}

fn add(x: &mut [f32], more: &[f32]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

#[test]
fn what_is_folded_and_turned_is_the_same_function() {
    // Widths of 144 = 16 x 9 with heads of 72, 64 with heads of 16, 48 = 16 x 3, and 32.
    for name in ["v1-27x27-bf16", "tied-12x12-f32", "smolvlm2-32x32-f32", "biases-12x12-bf16"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let files = ModelFiles::open(&folder).unwrap();
        let config = ModelConfig::load(&files).unwrap();
        let weights = Arc::new(Weights::open(&files).unwrap());
        let root = Loader::new(&weights, DType::F32, &Device::Cpu);
        let (at, vision) = (root.at("model"), &config.vision);
        let (hidden, parts) = (vision.hidden_size, config.scale_factor.pow(2));
        let run = |turns: Option<&Turns>| {
            let stream = turns.map(|turns| &turns.stream);
            // Patches with a mean, and with one channel much larger than the others.
            let number =
                |at: usize| ((at * 7919 % 1009) as f32 / 504.0 - 0.7) * if at % hidden == 3 { 30.0 } else { 1.0 };
            let mut x: Vec<f32> = (0..2 * parts * hidden).map(number).collect();
            if let Some(rotation) = stream {
                x.chunks_exact_mut(hidden).for_each(|row| rotation.turn(row, Cpu::detect()));
            }
            for i in 0..vision.num_hidden_layers {
                let at = at.at("vision_model.encoder.layers").at(i);
                DenseLayer::new(&at, vision, turns).forward(&mut x);
            }
            let norm = Norm::load(&at.at("vision_model.post_layernorm"), vision).unwrap();
            let beside = norm.repeat(parts);
            let connector = at.at("connector.modality_projection");
            let shape = (hidden * parts, config.text.hidden_size);
            let rows = Dense::new(&connector, "proj", shape, false, &beside.fold(stream));
            rows.apply(&normed(&norm.rest(stream), &x))
        };
        let (plain, turned) = (run(None), run(Some(&Turns::new(vision))));
        let size = (plain.iter().map(|x| x * x).sum::<f32>() / plain.len() as f32).sqrt();
        let largest = plain.iter().zip(&turned).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: {largest} of {size}");
        assert!(largest < 1e-4 * size, "{name}: {largest} of {size}");
    }
}
