//! Settings under which a model only looks like the family: a key that changes arithmetic, and the
//! values that leave it as it is.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// When a key changes nothing. Null, false, an empty list, text or object never does.
#[derive(Clone, Copy)]
enum Off {
    /// Never else.
    Absent,
    /// As zero, too.
    Zero,
    /// As one, too.
    One,
    /// Where every element is this number.
    All(u64),
    /// Where it, or every element of it, is this text.
    Text(&'static str),
}

/// In `text_config`: of Granite, Cohere, Gemma, MiniCPM, SmolLM3, Qwen, Phi, OLMo, Llama 4 and
/// mixtures of experts, which share names and shapes of tensors with Llama.
const TEXT: [(&str, Off); 57] = [
    ("logits_scaling", Off::One),
    ("logit_scale", Off::One),
    ("logits_scale", Off::One),
    ("embedding_multiplier", Off::One),
    ("embedding_scale", Off::One),
    ("scale_emb", Off::One),
    ("residual_multiplier", Off::One),
    ("residual_scale", Off::One),
    ("lm_head_multiplier", Off::One),
    ("key_multiplier", Off::One),
    ("attention_in_multiplier", Off::One),
    ("attention_out_multiplier", Off::One),
    ("mlp_multipliers", Off::All(1)),
    ("scale_depth", Off::Absent),
    ("dim_model_base", Off::Absent),
    ("use_mup", Off::Absent),
    ("final_logit_softcapping", Off::Zero),
    ("attn_logit_softcapping", Off::Zero),
    ("attn_logit_softcap", Off::Zero),
    ("logits_soft_cap", Off::Zero),
    ("no_rope_layers", Off::All(1)),
    ("no_rope_layer_interval", Off::Zero),
    ("nope_layer_interval", Off::Zero),
    ("sliding_window_pattern", Off::Zero),
    ("attention_chunk_size", Off::Zero),
    ("attn_temperature_tuning", Off::Zero),
    ("attn_scale", Off::Absent),
    ("layer_types", Off::Text("full_attention")),
    ("block_types", Off::Text("attention")),
    ("global_attn_every_n_layers", Off::Zero),
    ("partial_rotary_factor", Off::One),
    ("rotary_pct", Off::One),
    ("rotary_percentage", Off::One),
    ("rope_interleaved", Off::Absent),
    ("qk_norm", Off::Absent),
    ("use_qk_norm", Off::Absent),
    ("qk_layernorm", Off::Absent),
    ("qk_layer_norms", Off::Absent),
    ("clip_qkv", Off::Zero),
    ("qkv_bias", Off::Absent),
    ("use_qkv_bias", Off::Absent),
    ("lm_head_bias", Off::Absent),
    ("use_parallel_residual", Off::Absent),
    ("parallel_residual", Off::Absent),
    ("alibi", Off::Absent),
    ("num_local_experts", Off::Zero),
    ("num_experts", Off::Zero),
    ("n_routed_experts", Off::Zero),
    ("kv_lora_rank", Off::Zero),
    ("num_kv_shared_layers", Off::Zero),
    ("cross_attention_layers", Off::Absent),
    ("hidden_size_per_layer_input", Off::Zero),
    ("hidden_activation", Off::Text("silu")),
    ("use_resampler", Off::Absent),
    ("use_bidirectional_attention", Off::Absent),
    ("num_nextn_predict_layers", Off::Zero),
    ("use_double_wide_mlp", Off::Absent),
];

/// In `vision_config`: of SigLIP 2, CLIP, InternViT and encoders with windows.
const VISION: [(&str, Off); 10] = [
    ("num_patches", Off::Absent),
    ("num_registers", Off::Zero),
    ("num_register_tokens", Off::Zero),
    ("window_size", Off::Zero),
    ("fullatt_block_indexes", Off::Absent),
    ("layer_types", Off::Text("full_attention")),
    ("qk_norm", Off::Absent),
    ("use_qk_norm", Off::Absent),
    ("use_rope", Off::Absent),
    ("rope_theta", Off::Absent),
];

/// Refuses the keys of `text_config` that no other check reads. `window`: that of a sliding
/// attention counts.
pub(super) fn check_text(others: &Map<String, Value>, head_dim: usize) -> Result<()> {
    check_quantised("text_config.", others)?;
    check("text_config.", others, &TEXT)?;
    let number = |key: &str| others.get(key).and_then(Value::as_f64);
    // Where the window is switched off, its size is a leftover.
    let switched_off = others.get("use_sliding_window") == Some(&Value::Bool(false));
    for key in ["sliding_window", "sliding_window_size"] {
        if !switched_off {
            check("text_config.", others, &[(key, Off::Zero)])?;
        }
    }
    // Llama's own scale of scores by another name.
    for (key, neutral) in
        [("attention_multiplier", (head_dim as f64).powf(-0.5)), ("query_pre_attn_scalar", head_dim as f64)]
    {
        if number(key).is_none_or(|value| (value - neutral).abs() > 1e-6 * neutral) {
            check("text_config.", others, &[(key, Off::Absent)])?;
        }
    }
    Ok(())
}

pub(super) fn check_vision(others: &Map<String, Value>) -> Result<()> {
    check_quantised("vision_config.", others)?;
    if let Some(kind) = others.get("model_type").and_then(Value::as_str) {
        let known = ["idefics3", "smolvlm", "idefics2", "siglip_vision_model"];
        let family = |name: &&str| kind == *name || kind.strip_prefix(name) == Some("_vision");
        if !known.iter().any(family) && kind != "siglip" {
            let message =
                format!("vision_config.model_type: \"{kind}\" is not the SigLIP encoder of idefics3 and smolvlm");
            return Err(Error::unsupported(message));
        }
    }
    check("vision_config.", others, &VISION)
}

/// Refuses what stands beside the known keys at the top of `config.json`.
pub(super) fn check_top(others: &Map<String, Value>) -> Result<()> {
    check_quantised("", others)
}

fn check(parent: &str, others: &Map<String, Value>, table: &[(&str, Off)]) -> Result<()> {
    for (key, off) in table {
        if let Some(value) = others.get(*key).filter(|value| !is_off(value, *off)) {
            return Err(Error::unsupported(format!(
                "{parent}{key}: {} makes other arithmetic than the family's, and is not known here",
                shown(value)
            )));
        }
    }
    Ok(())
}

fn is_off(value: &Value, off: Off) -> bool {
    let same = |value: &Value| match off {
        Off::Absent => false,
        Off::Zero => value.as_f64() == Some(0.0),
        Off::One => value.as_f64() == Some(1.0),
        Off::All(number) => value.as_f64() == Some(number as f64) || (number == 1 && *value == Value::Bool(true)),
        Off::Text(text) => value.as_str() == Some(text),
    };
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) if text.is_empty() => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.iter().all(same),
        value => same(value),
    }
}

/// A value for people: a long one is cut.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Refuses weights that another library has quantised, and says whose they are.
fn check_quantised(parent: &str, others: &Map<String, Value>) -> Result<()> {
    for key in ["quantization_config", "quantization", "compression_config"] {
        let Some(value) = others.get(key).filter(|value| !is_off(value, Off::Absent)) else { continue };
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let method = text("quant_method").or_else(|| text("quantization_method"));
        let what = match method {
            // transformers writes the flags whether or not it writes the method.
            None if value.get("load_in_4bit").is_some() || value.get("load_in_8bit").is_some() => "bitsandbytes",
            None if value.get("group_size").is_some() && value.get("bits").is_some() => "MLX",
            None => "quantised",
            Some("bitsandbytes") => "bitsandbytes",
            Some("gptq") => "GPTQ",
            Some("awq") => "AWQ",
            Some(other) => other,
        };
        let cure = match what {
            "bitsandbytes" => {
                "load it in transformers, call dequantize() and save_pretrained(), or take the checkpoint \
                it was made from"
            }
            "MLX" => "convert it with \"mlx_vlm.convert --dequantize\", or take the checkpoint it was made from",
            _ => "take the checkpoint it was made from",
        };
        return Err(Error::unsupported(format!(
            "{parent}{key}: {what} weights ({}) are not read; {cure}: weights become int8 or int4 at load here",
            shown(value)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn values_that_mean_off_are_accepted() {
        for value in [
            json!({}),
            json!({"logits_scaling": 1.0, "embedding_multiplier": 1, "residual_multiplier": null}),
            json!({"attention_multiplier": 0.125, "query_pre_attn_scalar": 64}),
            json!({"no_rope_layers": [1, 1, 1], "layer_types": ["full_attention", "full_attention"]}),
            json!({"no_rope_layers": [], "sliding_window": null, "quantization_config": null}),
            json!({"use_sliding_window": false, "sliding_window": 4096}),
            json!({"qk_layer_norms": false, "rope_interleaved": false, "use_resampler": false, "qk_norm": false}),
            json!({"partial_rotary_factor": 1.0, "final_logit_softcapping": null, "num_local_experts": 0}),
            // As the hub's own have it, of no meaning to the reference.
            json!({"neftune_noise_alpha": 0.0, "pixel_shuffle_factor": 4, "is_llama_config": true, "pretraining_tp": 1,
                "perceiver_config": {"qk_layer_norms_perceiver": false}, "transformers.js_config": {"dtype": "q4"}}),
        ] {
            check_text(&map(value.clone()), 64).unwrap_or_else(|e| panic!("{value}: {e}"));
        }
        for kind in ["idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision", "siglip_vision_model"] {
            check_vision(&map(json!({"model_type": kind, "use_base_siglip": true}))).unwrap();
        }
    }

    #[test]
    fn a_key_that_changes_arithmetic_is_named_with_its_value() {
        for (value, expected) in [
            (json!({"logits_scaling": 8.0}), "text_config.logits_scaling: 8.0 makes"),
            (json!({"embedding_multiplier": 12}), "text_config.embedding_multiplier: 12 "),
            (json!({"residual_multiplier": 0.22}), "text_config.residual_multiplier: 0.22 "),
            (json!({"attention_multiplier": 1.0}), "text_config.attention_multiplier: 1.0 "),
            (json!({"query_pre_attn_scalar": 256}), "text_config.query_pre_attn_scalar: 256 "),
            (json!({"no_rope_layers": [1, 1, 0]}), "text_config.no_rope_layers: [1,1,0] "),
            (json!({"sliding_window": 4096}), "text_config.sliding_window: 4096 "),
            (json!({"use_sliding_window": true, "sliding_window": 9}), "text_config.sliding_window: 9 "),
            (json!({"layer_types": ["full_attention", "sliding_attention"]}), "text_config.layer_types: [\"full"),
            (json!({"partial_rotary_factor": 0.5}), "text_config.partial_rotary_factor: 0.5 "),
            (json!({"qk_norm": true}), "text_config.qk_norm: true "),
            (json!({"rope_interleaved": true}), "text_config.rope_interleaved: true "),
            (json!({"final_logit_softcapping": 30.0}), "text_config.final_logit_softcapping: 30.0 "),
            (json!({"num_local_experts": 8}), "text_config.num_local_experts: 8 "),
            (
                json!({"no_rope_layers": vec![0; 400]}),
                "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0...",
            ),
        ] {
            let error = check_text(&map(value.clone()), 64).err().unwrap_or_else(|| panic!("{value}: accepted"));
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains(expected), "{error}");
        }
        let error = check_vision(&map(json!({"model_type": "siglip2_vision_model"}))).unwrap_err();
        assert!(error.message().contains("\"siglip2_vision_model\""), "{error}");
        assert!(check_vision(&map(json!({"model_type": "clip_vision_model"}))).is_err());
        assert!(check_vision(&map(json!({"num_patches": 256}))).is_err());
    }

    #[test]
    fn quantised_weights_are_called_by_their_name() {
        for (value, expected) in [
            (json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}), "bitsandbytes"),
            (json!({"quantization_config": {"load_in_8bit": true}}), "call dequantize() and save_pretrained()"),
            (json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), ": GPTQ weights"),
            (json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), ": AWQ weights"),
            (json!({"quantization_config": {"quant_method": "fp8"}}), ": fp8 weights"),
            (json!({"quantization": {"group_size": 64, "bits": 4}}), "mlx_vlm.convert --dequantize"),
            (json!({"compression_config": {"format": "pack-quantized"}}), "compression_config: quantised weights"),
        ] {
            let others = map(value);
            for (parent, error) in [("", check_top(&others)), ("text_config.", check_text(&others, 64))] {
                let error = error.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.message().starts_with(&format!("{parent}{}", others.keys().next().unwrap())), "{error}");
                assert!(error.message().contains(expected), "{error}");
            }
        }
    }
}
