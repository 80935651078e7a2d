//! Where the image processor's settings and the chat template stand, and under which names the rest
//! is.

use serde_json::{Value, json};
use smolvlm::ErrorKind;

use crate::copy::{Copy, FLAT, SAVED};

const PROCESSOR: &str = "processor_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";

#[test]
fn the_image_processor_is_found_where_the_reference_finds_it() {
    let copy = Copy::new("image-processor", FLAT);
    let expected = copy.ask();
    let flat = copy.json(PREPROCESSOR);

    // transformers 5: nested only, a video processor beside it.
    copy.remove(PREPROCESSOR);
    let mut video = flat.clone();
    video["size"] = json!({"longest_edge": 96});
    video["video_processor_type"] = json!("SmolVLMVideoProcessor");
    copy.edit(PROCESSOR, |all| {
        all["image_processor"] = flat.clone();
        all["video_processor"] = video.clone();
    });
    copy.write("video_preprocessor_config.json", &video);
    assert_eq!(copy.ask(), expected);

    // Both, as after a copy into an older folder: the nested one wins.
    let mut smaller = flat.clone();
    smaller["size"] = json!({"longest_edge": 96});
    copy.write(PREPROCESSOR, &smaller);
    assert_eq!(copy.ask(), expected);
    copy.set(PROCESSOR, "image_processor", smaller.clone());
    copy.write(PREPROCESSOR, &flat);
    let one_tile = copy.ask();
    assert!(one_tile.prompt.len() < expected.prompt.len());

    // Nothing nested: the flat one.
    copy.set(PROCESSOR, "image_processor", Value::Null);
    assert_eq!(copy.ask(), expected);
    copy.write(PREPROCESSOR, &smaller);
    assert_eq!(copy.ask(), one_tile);
    copy.remove(PROCESSOR);
    assert_eq!(copy.ask(), one_tile);

    copy.remove(PREPROCESSOR);
    let error = copy.load().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let message = error.message();
    assert!(
        message.contains(PREPROCESSOR) && message.contains(PROCESSOR) && message.contains("save_pretrained"),
        "{message}"
    );
    copy.write(PROCESSOR, json!({"image_processor": {"max_image_size": {"longest_edge": 95}}}));
    let message = copy.refused();
    assert!(message.contains("processor_config.json: image_processor: max_image_size.longest_edge: 95"), "{message}");
}

/// As the fast image processors of transformers 4.5x write.
#[test]
fn nulls_and_single_numbers_are_what_the_reference_takes_them_for() {
    let copy = Copy::new("nulls", FLAT);
    let expected = copy.ask();
    copy.edit(PREPROCESSOR, |all| {
        for key in
            ["crop_size", "do_center_crop", "device", "input_data_format", "image_mean", "rescale_factor", "resample"]
        {
            all[key] = Value::Null;
        }
        all["do_image_splitting"] = Value::Null;
        all["image_std"] = json!(0.5);
        all["size"]["height"] = Value::Null;
        all["image_processor_type"] = json!("Idefics3ImageProcessorFast");
    });
    assert_eq!(copy.ask(), expected);
}

/// What a template says of its home, so that an answer tells which one was used.
fn template(word: &str) -> String {
    format!(
        "<|im_start|>{word}{{% for m in messages %}}{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}<image>\
         {{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
    )
}

/// In the order of transformers 5.23's processor, then of its tokenizer; tried with it.
const HOMES: [&str; 5] = [
    PROCESSOR,
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "tokenizer_config.json",
];

fn put(copy: &Copy, home: &str, word: &str) {
    match home.ends_with(".json") {
        true => copy.set(home, "chat_template", json!(template(word))),
        false => copy.write(home, template(word)),
    }
}

#[test]
fn of_two_templates_the_reference_takes_the_same() {
    let words = ["car", "dog", "cat", "bird", "house"];
    for (first, home) in HOMES.iter().enumerate() {
        let alone = Copy::new("template", SAVED);
        alone.remove("chat_template.jinja");
        put(&alone, home, words[first]);
        let expected = alone.ask();
        for second in first + 1..HOMES.len() {
            put(&alone, HOMES[second], words[second]);
            assert_eq!(alone.ask(), expected, "{home} before {}", HOMES[second]);
        }
        let other = Copy::new("template", SAVED);
        put(&other, "chat_template.jinja", "tree");
        assert_ne!(other.ask().prompt, expected.prompt);
    }
}

#[test]
fn of_named_templates_the_default_is_taken() {
    let copy = Copy::new("named", SAVED);
    let expected = copy.ask();
    let source = std::fs::read_to_string(copy.path().join("chat_template.jinja")).unwrap();
    copy.write("additional_chat_templates/rag.jinja", template("rag"));
    assert_eq!(copy.ask(), expected);
    copy.remove("chat_template.jinja");
    assert!(copy.refused().contains("additional_chat_templates: chat templates rag, none of them named default"));
    copy.remove("additional_chat_templates/rag.jinja");

    let list = json!([{"name": "rag", "template": template("rag")}, {"name": "default", "template": source}]);
    copy.set("tokenizer_config.json", "chat_template", list);
    assert_eq!(copy.ask(), expected);
    copy.set("chat_template.json", "chat_template", json!({"default": source, "rag": template("rag")}));
    copy.set("tokenizer_config.json", "chat_template", Value::Null);
    assert_eq!(copy.ask(), expected);
    copy.set("chat_template.json", "chat_template", json!({"rag": "", "tool_use": ""}));
    assert!(copy.refused().contains("chat_template.json: chat templates rag, tool_use, none of them"));
    copy.remove("chat_template.json");
    assert_eq!(copy.load().err().unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn names_that_changed_between_versions_mean_the_same() {
    let copy = Copy::new("names", FLAT);
    let expected = copy.ask();
    let whole = copy.json("config.json");
    let changes: [fn(&mut Value); 5] = [
        // transformers 5.
        |c| {
            c["dtype"] = c["torch_dtype"].take();
            c.as_object_mut().unwrap().remove("torch_dtype");
            for part in ["text_config", "vision_config"] {
                c[part]["dtype"] = json!("float32");
            }
            let theta = c["text_config"].as_object_mut().unwrap().remove("rope_theta").unwrap();
            c["text_config"]["rope_parameters"] = json!({"rope_theta": theta, "rope_type": "default"});
        },
        // 4.5x wrote what it meant and nulls.
        |c| {
            for key in ["rope_scaling", "rope_parameters", "pad_token_id", "head_dim"] {
                c["text_config"][key] = Value::Null;
            }
            c["text_config"]["torch_dtype"] = json!("float32");
        },
        |c| drop(c.as_object_mut().unwrap().remove("torch_dtype")),
        |c| c["text_config"]["tie_word_embeddings"] = Value::Null,
        // Both, as where a trainer adds its own.
        |c| {
            c["dtype"] = json!("bfloat16");
            c["text_config"]["rope_parameters"] = json!({"rope_theta": 100_000.0, "rope_type": "default"});
            c["text_config"]["rope_scaling"] = json!({"rope_type": "default"});
            c["transformers_version"] = json!("5.0.0.dev0");
            c["unsloth_fixed"] = json!(true);
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut config = whole.clone();
        change(&mut config);
        copy.write("config.json", config);
        assert_eq!(copy.ask(), expected, "change {i}");
    }
    let tokens = json!(["<fake_token_around_image>", "<image>", "<end_of_utterance>"]);
    let by_name = json!({"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"});
    for (extra, additional) in
        [(tokens.clone(), Value::Null), (by_name, tokens), (json!([]), json!([])), (json!({}), Value::Null)]
    {
        copy.edit("tokenizer_config.json", |all| {
            all["extra_special_tokens"] = extra;
            all["additional_special_tokens"] = additional;
        });
        assert_eq!(copy.ask(), expected);
    }
}
