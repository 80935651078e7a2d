//! The engine against candle-transformers: its Llama, its SigLIP and its sampling were written by
//! others.
//!
//! The golden arrays hold a few chosen questions; here any numbers will do.
#![cfg(feature = "candle")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::generation::{LogitsProcessor, Sampling as TheirSampling};
use candle_transformers::models::{llama, siglip};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::preprocess::{self, TileOptions};
use smolvlm::sampler::{Sampler, Sampling};
use smolvlm::{DTypeKind, EngineOptions, ImageView, PixelFormat};

/// Largest difference accepted, as a share of the root mean square.
const TOLERANCE: f32 = 1e-4;

struct Checkpoint {
    name: String,
    model: ModelConfig,
    images: ImageConfig,
    ours: CandleBackend,
    tensors: HashMap<String, Tensor>,
}

fn checkpoints() -> Vec<Checkpoint> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dirs = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("config.json").exists());
    let all: Vec<_> = dirs.map(|dir| open(&dir)).collect();
    assert!(all.len() >= 5);
    all
}

fn open(dir: &Path) -> Checkpoint {
    let files = ModelFiles::open(dir).unwrap();
    let model = ModelConfig::load(&files).unwrap();
    let images = ImageConfig::load(&files, &model).unwrap();
    let shards = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let tensors = shards
        .filter(is_shard)
        .flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap())
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap()))
        .collect();
    Checkpoint {
        name: dir.file_name().unwrap().display().to_string(),
        ours: CandleBackend::load(
            &files,
            &model,
            &images,
            &EngineOptions { dtype: DTypeKind::F32, ..Default::default() },
        )
        .unwrap(),
        model,
        images,
        tensors,
    }
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let square = theirs.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / theirs.len() as f64;
    let largest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let difference = largest / square.sqrt() as f32;
    println!("{what}: {difference:.1e}");
    assert!(difference <= TOLERANCE, "{what}: differs by {difference:.1e} of the root mean square");
}

#[test]
fn the_decoder_is_candle_transformers_llama() {
    let mut compared = 0;
    for checkpoint in checkpoints() {
        let Checkpoint { name, model, ours, tensors, .. } = checkpoint;
        let text = &model.text;
        // Theirs knows no other width of a head, and no biases.
        if text.head_dim * text.num_attention_heads != text.hidden_size || text.attention_bias {
            continue;
        }
        compared += 1;
        let config = llama::Config {
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            vocab_size: text.vocab_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            num_key_value_heads: text.num_key_value_heads,
            use_flash_attn: false,
            rms_norm_eps: text.rms_norm_eps,
            rope_theta: text.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 256,
            tie_word_embeddings: model.tie_word_embeddings,
        };
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu).rename_f(|name: &str| {
            name.strip_prefix("model.").map_or(name.into(), |n| format!("model.text_model.{n}"))
        });
        let theirs = llama::Llama::load(weights, &config).unwrap();
        let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();

        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let below = model.image_token_id.min(text.vocab_size as u32);
        let ids: Vec<u32> = (0..48).map(|_| rng.next_u32() % below).collect();
        let (prompt, steps) = ids.split_at(40);
        let mut decoder = ours.decoder().unwrap();
        let mut check = |at: usize, now: &[u32], logits: &[f32]| {
            let input = Tensor::new(now, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let theirs = theirs.forward(&input, at, &mut cache).unwrap().flatten_all().unwrap();
            assert_close(&format!("{name} logits at {at}"), logits, &theirs.to_vec1().unwrap());
        };
        check(0, prompt, decoder.prefill(prompt, &[], &Stop::default()).unwrap());
        for (i, id) in steps.iter().enumerate() {
            check(prompt.len() + i, &[*id], decoder.step(*id, &Stop::default()).unwrap());
        }
        // An image token that the model says itself is a token like any other.
        if (model.image_token_id as usize) < text.vocab_size {
            check(ids.len(), &[model.image_token_id], decoder.step(model.image_token_id, &Stop::default()).unwrap());
        }
    }
    assert!(compared >= 3);
}

#[test]
fn the_vision_encoder_is_candle_transformers_siglip() {
    for checkpoint in checkpoints() {
        let Checkpoint { name, model, images, ours, tensors } = checkpoint;
        let vision = &model.vision;
        let config = siglip::VisionConfig {
            hidden_size: vision.hidden_size,
            intermediate_size: vision.intermediate_size,
            num_hidden_layers: vision.num_hidden_layers,
            num_attention_heads: vision.num_attention_heads,
            num_channels: vision.num_channels,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            hidden_act: candle_nn::Activation::GeluPytorchTanh,
            layer_norm_eps: vision.layer_norm_eps,
        };
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu).pp("model.vision_model");
        let theirs = siglip::VisionModel::new(&config, false, weights).unwrap();

        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut noise = vec![0; 3 * 50 * 40];
        rng.fill_bytes(&mut noise);
        let picture = ImageView::raw(&noise, 0, 50, 40, PixelFormat::Rgb8).unwrap().to_rgb().unwrap();
        let size = images.tile_size;
        let options = TileOptions { tile_size: size, longest_edge: size, split: false, threads: 1 };
        let tiles = preprocess::tiles(&picture, &options, &mut || false).unwrap().unwrap();
        let pixels = Tensor::from_slice(&tiles.pixels, (size, size, 3), &Device::Cpu).unwrap();
        let pixels = (pixels.permute((2, 0, 1)).unwrap().to_dtype(DType::F32).unwrap() / 127.5).unwrap() - 1.0;
        let theirs = theirs.forward(&pixels.unwrap().unsqueeze(0).unwrap().contiguous().unwrap()).unwrap();
        let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        assert_close(&format!("{name} vision"), &ours.vision_hidden_states(&tiles).unwrap(), &theirs);
    }
}

/// How often each id is drawn.
fn counts(ids: usize, draws: usize, mut draw: impl FnMut() -> u32) -> Vec<f64> {
    let mut counts = vec![0.0; ids];
    (0..draws).for_each(|_| counts[draw() as usize] += 1.0);
    counts
}

#[test]
fn sampling_draws_as_candle_transformers_draws() {
    const DRAWS: usize = 20_000;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let logits: Vec<f32> = (0..40).map(|_| (rng.next_u32() % 1000) as f32 / 200.0).collect();
    let tensor = Tensor::new(logits.as_slice(), &Device::Cpu).unwrap();
    let base = Sampling { temperature: 0.8, seed: 5, ..Default::default() };
    let cases = [
        (base, TheirSampling::All { temperature: 0.8 }),
        (Sampling { top_k: 7, ..base }, TheirSampling::TopK { k: 7, temperature: 0.8 }),
        (Sampling { top_p: 0.6, ..base }, TheirSampling::TopP { p: 0.6, temperature: 0.8 }),
    ];
    for (ours, theirs) in cases {
        let name = format!("{ours:?}");
        let mut sampler = Sampler::new(ours).unwrap();
        let ours = counts(logits.len(), DRAWS, || sampler.sample(&logits, &[]).unwrap());
        let mut processor = LogitsProcessor::from_sampling(9, theirs);
        let theirs = counts(logits.len(), DRAWS, || processor.sample(&tensor).unwrap());
        for (id, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            // Five standard deviations of the difference of two counts.
            assert!((a - b).abs() <= 5.0 * (a + b).sqrt(), "{name}: id {id} drawn {a} and {b} times");
            // At the edge of top-p, one rounds its sum before the border and the other after it:
            // not here.
            assert_eq!(*a > 20.0, *b > 20.0, "{name}: id {id} drawn {a} and {b} times");
        }
    }
    let mut greedy = Sampler::new(Sampling::default()).unwrap();
    let mut processor = LogitsProcessor::from_sampling(0, TheirSampling::ArgMax);
    assert_eq!(greedy.sample(&logits, &[]).unwrap(), processor.sample(&tensor).unwrap());
}
