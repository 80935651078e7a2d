//! Held to the reference's numbers.

use serde_json::json;

use super::*;

fn around() -> Around {
    Around { head_dim: 16, max_position_embeddings: 256, original: None }
}

fn settings(value: Value) -> Result<Read> {
    read(value.as_object(), None, &around())
}

/// Made by transformers 5.23: `ROPE_INIT_FUNCTIONS[kind](LlamaConfig(hidden_size=64,
/// num_attention_heads=4, max_position_embeddings=256, rope_scaling=..., rope_theta=...))`.
#[test]
fn frequencies_are_the_references() {
    let short: Vec<f64> = (0..8).map(|i| 1.0 + 0.1 * f64::from(i)).collect();
    let cases = [
        (
            json!({"rope_type": "linear", "factor": 4.0}),
            1e4,
            [0.25, 0.079056941, 0.025, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
            1.0,
        ),
        (
            json!({"type": "dynamic", "factor": 2.0}),
            1e4,
            [1.0, 0.31622776, 0.1, 0.031622779, 0.0099999998, 0.0031622779, 0.001, 0.00031622779],
            1.0,
        ),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}),
            5e5,
            [1.0, 0.079403013, 0.0047007538, 0.00091158313, 0.00017677668, 3.4281024e-05, 6.6478697e-06, 1.2891732e-06],
            1.0,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
            1e4,
            [1.0, 0.23717082, 0.049999997, 0.0079056947, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
            1.138629436111989,
        ),
        (
            json!({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 8.0,
                "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": false}),
            1e3,
            [1.0, 0.056488287, 0.011114246, 0.0046868385, 0.0019764237, 0.00083345093, 0.00035146333, 0.00014821086],
            0.8777191591153677,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}),
            1e4,
            [1.0, 0.25693506, 0.0625, 0.013834965, 0.0024999999, 0.00079056947, 0.00025000001, 7.9056947e-05],
            1.5,
        ),
        (
            json!({"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": short,
                "long_factor": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]}),
            1e4,
            [1.0, 0.28747976, 0.083333336, 0.024325214, 0.0071428572, 0.0021081853, 0.00062499999, 0.00018601633],
            1.1547005383792517,
        ),
        (
            json!({"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}),
            1e4,
            [0.5, 0.15811388, 0.050000001, 0.015811389, 0.0, 0.0, 0.0, 0.0],
            1.0,
        ),
    ];
    for (value, theta, frequencies, scale) in cases {
        let Read { rope, max_position_embeddings, .. } = settings(value.clone()).unwrap();
        let rotary = rope.rotary(theta, 16);
        assert_eq!(rotary.inv_freq.len(), 8, "{value}");
        for (ours, theirs) in rotary.inv_freq.iter().zip(frequencies) {
            assert!((f64::from(*ours) - theirs).abs() <= 1e-6 * theirs, "{value}: {ours} is not {theirs}");
        }
        assert!((f64::from(rotary.scale) - scale).abs() <= 1e-6, "{value}: {}", rotary.scale);
        let longest = if matches!(rope, Rope::LongRope { .. }) { 64 } else { 256 };
        assert_eq!(max_position_embeddings, longest, "{value}");
    }
}

#[test]
fn the_reference_s_order_of_keys_is_ours() {
    let linear = json!({"rope_type": "linear", "type": "default", "factor": 4.0});
    assert_eq!(settings(linear.clone()).unwrap().rope, Rope::Linear { factor: 4.0 });
    let parameters = json!({"rope_type": "default", "rope_theta": 5.0});
    let both = read(linear.as_object(), parameters.as_object(), &around()).unwrap();
    assert_eq!((both.rope, both.theta), (Rope::Linear { factor: 4.0 }, None));
    let nothing = json!({});
    let one = read(nothing.as_object(), parameters.as_object(), &around()).unwrap();
    assert_eq!((one.rope, one.theta), (Rope::Default, Some(5.0)));
}

#[test]
fn what_cannot_be_computed_is_named() {
    for (value, expected) in [
        (json!({"type": "su", "factor": 2.0}), "rope_type \"su\""),
        (json!({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}), "\"dynamic\" with"),
        (json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary_factor: 0.5"),
        (json!({"rope_type": "default", "mrope_section": [2, 3, 3]}), "rope_scaling.mrope_section: "),
        (json!({"full_attention": {"rope_type": "default"}}), "rope_scaling.full_attention: "),
        (json!({"rope_type": "linear"}), "rope_scaling.factor: is not there"),
        (json!({"rope_type": "linear", "factor": 0}), "rope_scaling.factor: 0, "),
        (json!({"rope_type": "linear", "factor": "4"}), "rope_scaling.factor: \"4\" is no number"),
        (json!({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": -1}), "at least 2"),
        (json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": []}), "short_factor: 1 numbers"),
        (json!({"rope_type": 3}), "rope_type: 3 is no text"),
    ] {
        let error = settings(value.clone()).err().unwrap_or_else(|| panic!("{value}: not refused"));
        assert!(error.message().contains(expected), "{value}: {error}");
    }
    let contradiction = Around { original: Some(32), ..around() };
    let yarn = json!({"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 64});
    let error = read(yarn.as_object(), None, &contradiction).err().unwrap();
    assert!(error.message().contains("32, but text_config.rope_scaling says 64"), "{error}");
}
