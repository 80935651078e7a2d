//! Directories that hold something else than a checkpoint: what it is, and what makes a checkpoint
//! of it.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::ModelFiles;

const ADAPTER: &str = "adapter_config.json";

/// Refuses a folder whose weights are an adapter's, or that has no `config.json` and is known by
/// what it has instead.
pub(crate) fn check(files: &ModelFiles) -> Result<()> {
    let adapter = ["adapter_model.safetensors", "adapter_model.bin"].into_iter().any(|name| files.has(name));
    // Beside a checkpoint its settings alone are a leftover of a merge.
    if files.has(ADAPTER) && (adapter || !files.has("config.json")) {
        return Err(of_adapter(files));
    }
    if files.has("config.json") { Ok(()) } else { explain(files).map_or(Ok(()), Err) }
}

/// What there is where `model.safetensors` is not, if it is known.
pub(crate) fn explain(files: &ModelFiles) -> Option<Error> {
    if files.has(ADAPTER) {
        return Some(of_adapter(files));
    }
    let graphs = files.path("onnx").is_dir() && files.has("config.json");
    let python = "load it in transformers and save_pretrained() it";
    let onnx = graphs.then(|| "onnx".to_owned());
    let named = |name: &str| files.has(name).then(|| name.to_owned());
    let found = [
        (
            named("pytorch_model.bin").or_else(|| named("pytorch_model.bin.index.json")),
            "is a pickle of PyTorch",
            python,
        ),
        (named("zero_to_fp32.py"), "belongs to a checkpoint of DeepSpeed", "run it with --safe_serialization"),
        (
            with_prefix(files, "pytorch_model_fsdp"),
            "is a sharded checkpoint of FSDP",
            "\"accelerate merge-weights\" makes a model.safetensors of it",
        ),
        (with_suffix(files, ".gguf"), "is of llama.cpp", "take the checkpoint it was made from"),
        (named("weights.npz"), "is of MLX", "take the checkpoint it was made from"),
        (named("tf_model.h5"), "is of TensorFlow", python),
        (named("flax_model.msgpack"), "is of Flax", python),
        (with_suffix(files, ".pth").or_else(|| with_suffix(files, ".pt")), "is a pickle of PyTorch", python),
        (onnx, "holds ONNX graphs", "ask for the backend \"onnx\", which reads them"),
        (with_suffix(files, ".ckpt"), "is a checkpoint of Lightning", python),
    ];
    found.into_iter().find_map(|(name, what, cure)| {
        let path = files.path(&name?);
        Some(Error::unsupported(format!("{}: {what}, and there is no model.safetensors; {cure}", path.display())))
    })
}

fn of_adapter(files: &ModelFiles) -> Error {
    let settings: Value =
        files.read(ADAPTER).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let base = settings.get("base_model_name_or_path").and_then(Value::as_str).filter(|base| base.len() < 200);
    let kind = settings.get("peft_type").and_then(Value::as_str).filter(|kind| kind.len() < 40).unwrap_or("PEFT");
    Error::unsupported(format!(
        "{}: is a {kind} adapter of {}, no whole checkpoint; load both in peft, call merge_and_unload() and \
         save_pretrained() model and processor",
        files.path(ADAPTER).display(),
        base.unwrap_or("another model")
    ))
}

fn with_suffix(files: &ModelFiles, suffix: &str) -> Option<String> {
    first(files, |name| name.ends_with(suffix))
}

fn with_prefix(files: &ModelFiles, prefix: &str) -> Option<String> {
    first(files, |name| name.starts_with(prefix))
}

/// The first name in the folder that is so, in the order of the alphabet.
fn first(files: &ModelFiles, is: impl Fn(&str) -> bool) -> Option<String> {
    let entries = files.path("").read_dir().ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| is(name)).min()
}
