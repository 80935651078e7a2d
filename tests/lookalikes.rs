//! Checkpoints that only look like the family's, and folders that are something else: refused by
//! name, never answered from.
#![cfg(feature = "candle")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};
use smolvlm::backend::candle::CandleBackend;
use smolvlm::backend::{Backend, Stop};
use smolvlm::config::{ImageConfig, ModelConfig};
use smolvlm::files::ModelFiles;
use smolvlm::{BackendKind, DTypeKind, Engine, EngineOptions, ErrorKind, Request};

const TIED: &str = "tied-12x12-f32";
const BIASES: &str = "biases-12x12-bf16";
const WEIGHTS: &str = "model.safetensors";

/// A tensor that has its bytes.
#[derive(Clone)]
struct Owned(Dtype, Vec<usize>, Vec<u8>);

impl View for Owned {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (&self.2).into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

/// A copy of a golden checkpoint, which a test may change; gone with the value.
struct Copy(PathBuf);

impl Copy {
    fn of(checkpoint: &str, test: &str) -> Self {
        let copy = Self::empty(test);
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(checkpoint);
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), copy.0.join(entry.file_name())).unwrap();
        }
        copy
    }

    fn empty(test: &str) -> Self {
        let copy = Self(std::env::temp_dir().join(format!("smolvlm-lookalike-{test}-{}", std::process::id())));
        let _ = fs::remove_dir_all(&copy.0);
        fs::create_dir_all(&copy.0).unwrap();
        copy
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.0.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn tensors(&self, change: impl FnOnce(&mut BTreeMap<String, Owned>)) {
        let bytes = fs::read(self.0.join(WEIGHTS)).unwrap();
        let own = |(name, view): (String, TensorView<'_>)| {
            (name, Owned(view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(own).collect();
        change(&mut tensors);
        fs::write(self.0.join(WEIGHTS), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    fn add(&self, name: &str) {
        self.tensors(|tensors| {
            tensors.insert(name.to_owned(), Owned(Dtype::F32, vec![8], vec![0; 32]));
        });
    }

    fn load(&self, options: &EngineOptions) -> smolvlm::Result<Engine> {
        Engine::load(&self.0, options)
    }

    /// Every precision refuses, with a message that has all of `expected`.
    #[track_caller]
    fn refused(&self, kind: ErrorKind, expected: &[&str]) {
        for dtype in [DTypeKind::F32, DTypeKind::Bf16, DTypeKind::Int8] {
            self.refused_with(&EngineOptions { dtype, ..Default::default() }, kind, expected);
        }
    }

    #[track_caller]
    fn refused_with(&self, options: &EngineOptions, kind: ErrorKind, expected: &[&str]) {
        let error = self.load(options).err().unwrap_or_else(|| panic!("{expected:?}: loaded"));
        assert_eq!(error.kind(), kind, "{error}");
        expected.iter().for_each(|part| assert!(error.message().contains(part), "{part}: {error}"));
    }

    fn answer(&self, dtype: DTypeKind) -> Vec<u32> {
        let engine = self.load(&EngineOptions { dtype, ..Default::default() }).unwrap();
        engine.ask(&Request { max_new_tokens: 8, ..Request::new("What is it?", &[]) }).unwrap().token_ids
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_setting_that_changes_arithmetic_is_refused_through_both_engines() {
    let copy = Copy::of(TIED, "settings");
    let whole = fs::read(copy.0.join("config.json")).unwrap();
    for (part, key, value) in [
        ("text_config", "model_type", json!("granite")),
        ("text_config", "model_type", json!("smollm3")),
        ("text_config", "logits_scaling", json!(8.0)),
        ("text_config", "embedding_multiplier", json!(12.0)),
        ("text_config", "no_rope_layers", json!([1, 0])),
        ("text_config", "sliding_window", json!(4096)),
        ("text_config", "quantization_config", json!({"quant_method": "gptq"})),
        ("vision_config", "model_type", json!("siglip2_vision_model")),
        ("vision_config", "quantization_config", json!({"quant_method": "awq"})),
        ("", "quantization_config", json!({"quant_method": "bitsandbytes", "load_in_4bit": true})),
        ("", "quantization", json!({"group_size": 64, "bits": 4})),
    ] {
        copy.write("config.json", &whole);
        copy.config(|config| {
            let place = if part.is_empty() { config } else { &mut config[part] };
            place[key] = value.clone();
        });
        let named = if part.is_empty() { key.to_owned() } else { format!("{part}.{key}") };
        let value = value.as_str().map_or_else(|| named.clone(), |text| format!("\"{text}\""));
        for backend in [BackendKind::Candle, BackendKind::Onnx] {
            if backend == BackendKind::Candle || cfg!(feature = "onnx") {
                let options = EngineOptions { backend, ..Default::default() };
                copy.refused_with(&options, ErrorKind::Unsupported, &["config.json", &named, &value]);
            }
        }
    }
}

#[test]
fn settings_and_tensors_that_change_nothing_are_accepted() {
    let copy = Copy::of(TIED, "harmless");
    let before = [DTypeKind::F32, DTypeKind::Int8].map(|dtype| copy.answer(dtype));
    copy.config(|config| {
        let text = &mut config["text_config"];
        for (key, value) in [
            ("logits_scaling", json!(1.0)),
            ("sliding_window", Value::Null),
            ("attention_bias", Value::Null),
            ("mlp_bias", json!(false)),
            ("rope_scaling", json!({})),
            ("layer_types", json!(["full_attention", "full_attention"])),
            ("qk_layer_norms", json!(false)),
            ("pretraining_tp", json!(1)),
            ("hidden_act", json!("swish")),
        ] {
            text[key] = value;
        }
        config["quantization_config"] = Value::Null;
    });
    copy.tensors(|tensors| {
        tensors.insert(
            "model.text_model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            Owned(Dtype::F32, vec![1], vec![0; 4]),
        );
        tensors.insert("model.vision_model.embeddings.position_ids".into(), Owned(Dtype::I64, vec![1, 1], vec![0; 8]));
        let head = tensors["model.text_model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), head);
        // Of another library's, beside the model.
        tensors.insert("value_head.weight".into(), Owned(Dtype::F32, vec![1], vec![0; 4]));
    });
    assert_eq!([DTypeKind::F32, DTypeKind::Int8].map(|dtype| copy.answer(dtype)), before);
}

#[test]
fn a_tensor_that_nothing_reads_is_refused() {
    for name in [
        "model.text_model.layers.0.self_attn.q_norm.weight",
        "model.text_model.layers.2.mlp.down_proj.weight",
        "model.text_model.layers.1.self_attn.q_proj.bias",
        "model.vision_model.encoder.layers.0.layer_scale.weight",
        "model.connector.modality_projection.proj.bias",
        "model.connector.perceiver_resampler.latents",
        "lm_head.bias",
    ] {
        let copy = Copy::of(TIED, "unread");
        copy.add(name);
        copy.refused(ErrorKind::Unsupported, &[WEIGHTS, name]);
    }
    // A model with biases, under settings without.
    let copy = Copy::of(BIASES, "unread");
    copy.config(|config| config["text_config"]["attention_bias"] = false.into());
    copy.refused(ErrorKind::Unsupported, &["model.text_model.layers.0.self_attn.k_proj.bias (and 7 more)"]);
    copy.config(|config| config["text_config"]["mlp_bias"] = false.into());
    copy.refused(ErrorKind::Unsupported, &["model.text_model.layers.0.mlp.down_proj.bias (and 13 more)"]);
    // Settings with biases, and a model without.
    let copy = Copy::of(TIED, "unread");
    copy.config(|config| config["text_config"]["attention_bias"] = true.into());
    copy.refused(ErrorKind::InvalidModel, &["has no tensor model.text_model.layers.0.self_attn.q_proj.bias"]);
}

/// What was kept for the checkpoint without the tensor is not taken for the one with it.
#[cfg(unix)]
#[test]
fn a_start_from_packed_weights_looks_at_all_names_too() {
    let (kept, copy) = (Copy::empty("packed"), Copy::of(TIED, "packed-model"));
    let options =
        EngineOptions { dtype: DTypeKind::Int8, packed_cache_dir: Some(kept.0.clone()), ..Default::default() };
    let files = |extension: &str| -> Vec<PathBuf> {
        let all = fs::read_dir(&kept.0).unwrap().map(|file| file.unwrap().path());
        all.filter(|file| file.extension().is_some_and(|e| e == extension)).collect()
    };
    copy.load(&options).unwrap();
    let name = files("packed")[0].file_name().unwrap().to_str().unwrap()[..64].to_owned();
    copy.add("model.text_model.layers.0.self_attn.q_norm.weight");
    // A file that has just been written is not known by its digest.
    sleep(Duration::from_millis(2100));
    let refuse = || copy.refused_with(&options, ErrorKind::Unsupported, &["self_attn.q_norm.weight"]);
    refuse();
    assert_eq!(files("packed").len(), 1, "nothing is kept of it");
    let [memory] = &files("blake3")[..] else { panic!("{:?}", files("blake3")) };
    fs::write(memory, name).unwrap();
    refuse();
}

#[test]
fn weights_of_other_libraries_are_called_by_their_name() {
    for (name, expected) in [
        ("base_model.model.model.text_model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload()"),
        ("model.text_model.layers.0.self_attn.q_proj.base_layer.weight", "unmerged PEFT"),
        ("model.text_model.layers.0.self_attn.q_proj.weight.absmax", "bitsandbytes 4-bit"),
        ("model.text_model.layers.0.self_attn.q_proj.SCB", "bitsandbytes 8-bit"),
        ("model.text_model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.text_model.layers.0.self_attn.q_proj.scales", "MLX"),
        ("language_model.layers.0.self_attn.q_proj.weight", "MLX"),
    ] {
        let copy = Copy::of(TIED, "foreign");
        copy.add(name);
        copy.refused(ErrorKind::Unsupported, &[WEIGHTS, name, expected]);
    }
}

#[test]
fn a_folder_that_is_no_checkpoint_says_what_it_is() {
    const SETTINGS: &str = r#"{"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolVLM-Instruct"}"#;
    // As peft writes it; and with a checkpoint's other files, as trainers do.
    for with_config in [false, true] {
        let copy = if with_config { Copy::of(TIED, "adapter") } else { Copy::empty("adapter") };
        copy.write("adapter_config.json", SETTINGS);
        copy.write("adapter_model.safetensors", "");
        let _ = fs::remove_file(copy.0.join(WEIGHTS));
        copy.refused(
            ErrorKind::Unsupported,
            &["LORA adapter of HuggingFaceTB/SmolVLM-Instruct", "merge_and_unload()", "save_pretrained()"],
        );
    }
    // The reference would put it on the weights beside it; a leftover of a merge says nothing.
    let copy = Copy::of(TIED, "adapter");
    copy.write("adapter_config.json", SETTINGS);
    copy.load(&EngineOptions::default()).unwrap();
    copy.write("adapter_model.bin", "");
    copy.refused(ErrorKind::Unsupported, &["LORA adapter"]);

    for (file, expected) in [
        ("pytorch_model.bin", "pytorch_model.bin: is a pickle of PyTorch, and there is no model.safetensors"),
        ("pytorch_model.bin.index.json", "save_pretrained()"),
        ("zero_to_fp32.py", "--safe_serialization"),
        ("pytorch_model_fsdp_0", "accelerate merge-weights"),
        ("SmolVLM-Q8_0.gguf", "SmolVLM-Q8_0.gguf: is of llama.cpp"),
        ("weights.npz", "weights.npz: is of MLX"),
        ("consolidated.00.pth", "consolidated.00.pth: is a pickle"),
    ] {
        let copy = Copy::of(TIED, "pickle");
        copy.write(file, "");
        // Beside safetensors it is not looked at.
        copy.load(&EngineOptions::default()).unwrap();
        fs::remove_file(copy.0.join(WEIGHTS)).unwrap();
        copy.refused(ErrorKind::Unsupported, &[expected]);
        // A folder with nothing else: llama.cpp's have no config.json.
        fs::remove_file(copy.0.join("config.json")).unwrap();
        copy.refused(ErrorKind::Unsupported, &[expected]);
    }
    // The other engine's.
    let copy = Copy::of(TIED, "graphs");
    fs::remove_file(copy.0.join(WEIGHTS)).unwrap();
    fs::create_dir(copy.0.join("onnx")).unwrap();
    copy.refused(ErrorKind::Unsupported, &["onnx: holds ONNX graphs", "backend \"onnx\""]);

    let copy = Copy::of(TIED, "nothing");
    fs::remove_file(copy.0.join(WEIGHTS)).unwrap();
    copy.refused(ErrorKind::NotFound, &[WEIGHTS]);
    fs::remove_file(copy.0.join("config.json")).unwrap();
    copy.refused(ErrorKind::NotFound, &["config.json"]);
}

/// The arrays are judged in golden.rs; here, that each of the two has its part in them.
#[test]
fn biases_and_scaled_rotations_change_what_is_said() {
    let copy = Copy::of(BIASES, "parts");
    let dtypes = [DTypeKind::F32, DTypeKind::Int8];
    let ask = |copy: &Copy, dtype| {
        let engine = copy.load(&EngineOptions { dtype, ..Default::default() }).unwrap();
        let long = "What is the answer to all the questions of the people in this picture? ".repeat(3);
        engine.ask(&Request { max_new_tokens: 12, ..Request::new(&long, &[]) }).unwrap().token_ids
    };
    let whole = dtypes.map(|dtype| ask(&copy, dtype));
    copy.config(|config| {
        config["text_config"].as_object_mut().unwrap().remove("rope_scaling");
    });
    for (dtype, whole) in dtypes.iter().zip(&whole) {
        assert_ne!(&ask(&copy, *dtype), whole, "{dtype:?}: without llama3's scaling");
    }
}

/// The first six logits after 100 tokens, made by transformers 5.23:
/// `Idefics3ForConditionalGeneration` in float32 with eager attention on this checkpoint,
/// `rope_scaling` replaced.
#[test]
fn every_kind_of_rotation_is_the_references() {
    let copy = Copy::of(BIASES, "kinds");
    let ids: Vec<u32> = (0..100).map(|i| (7 * i + 11) % 300 + 3).collect();
    for (scaling, expected) in [
        (json!({"rope_type": "default"}), [-1.2093, 0.00725, -3.86256, 1.55361, -3.55688, -0.2521]),
        (json!({"rope_type": "dynamic", "factor": 2.0}), [-1.2093, 0.00725, -3.86256, 1.55361, -3.55688, -0.2521]),
        (json!({"rope_type": "linear", "factor": 4.0}), [-1.83302, 0.96802, 0.87518, 4.80242, 6.53851, -2.51374]),
        (
            json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}),
            [2.07794, -4.80117, -0.40891, 8.18233, -0.60326, 1.81203],
        ),
        (
            json!({"rope_type": "longrope", "original_max_position_embeddings": 128,
                "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 4.0, 4.0, 4.0]}),
            [4.14052, -4.8278, -1.49332, 5.07819, 1.11648, -1.23694],
        ),
        (
            json!({"rope_type": "proportional", "partial_rotary_factor": 0.5}),
            [-6.41803, 7.82784, -4.55473, -0.49186, -2.01023, 2.7771],
        ),
    ] {
        copy.config(|config| config["text_config"]["rope_scaling"] = scaling.clone());
        let files = ModelFiles::open(&copy.0).unwrap();
        let model = ModelConfig::load(&files).unwrap();
        let images = ImageConfig::load(&files, &model).unwrap();
        // The logits' root mean square is 3.2 to 3.7.
        for (dtype, tolerance) in [(DTypeKind::F32, 1e-3), (DTypeKind::Bf16, 0.3)] {
            let options = EngineOptions { dtype, ..Default::default() };
            let mut decoder = CandleBackend::load(&files, &model, &images, &options).unwrap().decoder().unwrap();
            let logits = decoder.prefill(&ids, &[], &Stop::default()).unwrap();
            for (ours, theirs) in logits.iter().zip(expected) {
                assert!((ours - theirs).abs() <= tolerance, "{scaling} {dtype:?}: {ours} is not {theirs}");
            }
        }
        // Beyond the original length longrope has other frequencies, for the tokens before as well.
        let longest = if scaling["rope_type"] == "longrope" { 128 } else { 512 };
        assert_eq!(copy.load(&EngineOptions::default()).unwrap().context_tokens(), longest);
    }
}
