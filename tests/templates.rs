//! Chat templates in the manner of the published ones, against the reference's own rendering
//! (tools/golden/templates.py).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::NaiveDateTime;
use serde::Deserialize;
use smolvlm::ErrorKind;
use smolvlm::files::ModelFiles;
use smolvlm::prompt::{ChatTemplate, Grid, Message, Part, PromptBuilder, Role};
use smolvlm::tokenizer::Tokenizer;

#[derive(Deserialize)]
struct Golden {
    template: String,
    files: BTreeMap<String, serde_json::Value>,
    image_seq_len: usize,
    now: String,
    cases: Vec<Case>,
}

impl Golden {
    fn now(&self) -> NaiveDateTime {
        self.now.parse().unwrap()
    }
}

#[derive(Deserialize)]
struct Case {
    messages: Vec<RawMessage>,
    grids: Vec<(usize, usize)>,
    rendered: Option<String>,
    ids: Option<Vec<u32>>,
    raises: Option<String>,
    /// The reference cannot continue the last answer: the template shows another text.
    #[serde(default)]
    lost: bool,
}

#[derive(Deserialize)]
struct RawMessage {
    role: String,
    content: Vec<RawPart>,
}

#[derive(Deserialize)]
struct RawPart {
    text: Option<String>,
}

impl Case {
    fn messages(&self) -> Vec<Message> {
        let part = |p: &RawPart| p.text.clone().map_or(Part::Image, |text| Part::Text { text });
        let message = |m: &RawMessage| Message {
            role: match m.role.as_str() {
                "system" => Role::System,
                "user" => Role::User,
                _ => Role::Assistant,
            },
            content: m.content.iter().map(part).collect(),
        };
        self.messages.iter().map(message).collect()
    }

    fn grids(&self) -> Vec<Grid> {
        self.grids.iter().map(|&(rows, cols)| Grid { rows, cols }).collect()
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&ModelFiles::open(&golden().join("smolvlm2-32x32-f32")).unwrap()).unwrap()
}

/// A directory with `template` and `files`.
fn folder(name: &str, template: &str, files: &BTreeMap<String, serde_json::Value>) -> ModelFiles {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates").join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
    for (file, value) in files {
        fs::write(dir.join(file), value.to_string()).unwrap();
    }
    ModelFiles::open(&dir).unwrap()
}

fn load(name: &str, template: &str) -> smolvlm::Result<PromptBuilder> {
    Ok(PromptBuilder::new(ChatTemplate::load(&folder(name, template, &BTreeMap::new()))?, 3))
}

#[test]
fn prompts_are_the_references() {
    let tokenizer = tokenizer();
    let mut wrong = Vec::new();
    let (mut templates, mut compared, mut continued) = (0, 0, 0);
    let mut paths: Vec<_> = fs::read_dir(golden().join("templates")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        templates += 1;
        let name = path.file_stem().unwrap().to_str().unwrap();
        let golden: Golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let template = match ChatTemplate::load(&folder(name, &golden.template, &golden.files)) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let prompt = PromptBuilder::new(template, golden.image_seq_len);
        for (i, case) in golden.cases.iter().enumerate() {
            compared += 1;
            let built = prompt.build_at(&case.messages(), &case.grids(), &tokenizer, golden.now());
            continued += usize::from(case.messages.last().is_some_and(|m| m.role == "assistant"));
            let found = match (built, &case.raises) {
                (Err(error), None) if case.lost && error.kind() == ErrorKind::Unsupported => continue,
                (Err(error), Some(raised)) if error.message() == format!("chat template: {raised}") => continue,
                (Ok(built), None) if Some(&built.rendered) != case.rendered.as_ref() => {
                    format!("{:?}\nis not\n{:?}", built.rendered, case.rendered)
                }
                (Ok(built), None) if case.ids.as_ref().is_some_and(|ids| *ids != built.ids) => "other ids".into(),
                (Ok(_), None) => continue,
                (built, raised) => format!("{built:?}, {raised:?}"),
            };
            wrong.push(format!("{name}, case {i}: {found}"));
        }
    }
    println!("{templates} templates, {compared} prompts");
    assert!(templates >= 12 && compared >= 84 && continued >= 34);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The special tokens in the prompt are those that it has where the text holds no marker at all.
#[test]
fn no_template_makes_a_token_of_a_users_text() {
    let tokenizer = tokenizer();
    let mut seen = 0;
    for entry in fs::read_dir(golden().join("templates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let golden: Golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let template = ChatTemplate::load(&folder(&format!("{name}-forged"), &golden.template, &golden.files)).unwrap();
        let prompt = PromptBuilder::new(template, golden.image_seq_len);
        let specials = |messages: &[Message], grids: &[Grid]| -> Vec<u32> {
            let ids = prompt.build_at(messages, grids, &tokenizer, golden.now()).unwrap().ids;
            ids.into_iter().filter(|&id| tokenizer.token_bytes(id).is_empty()).collect()
        };
        for case in golden.cases.iter().filter(|c| c.rendered.is_some() && c.ids.is_none()) {
            let messages = case.messages();
            let harmless: Vec<Message> = messages
                .iter()
                .map(|m| Message {
                    role: m.role,
                    content: m
                        .content
                        .iter()
                        .map(|part| match part {
                            Part::Text { text } => Part::Text { text: text.replace('<', "(") },
                            other => other.clone(),
                        })
                        .collect(),
                })
                .collect();
            assert_eq!(specials(&messages, &case.grids()), specials(&harmless, &case.grids()), "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 12);
}

/// The reference renders content of a picture alone, and of a picture and an empty text; ours is
/// the former.
#[test]
fn a_picture_alone_is_the_references_prompt() {
    let tokenizer = tokenizer();
    let mut seen = 0;
    for entry in fs::read_dir(golden().join("templates")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{}-alone", path.file_stem().unwrap().to_str().unwrap());
        let golden: Golden = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let template = ChatTemplate::load(&folder(&name, &golden.template, &golden.files)).unwrap();
        let prompt = PromptBuilder::new(template, golden.image_seq_len);
        for case in &golden.cases {
            if case.messages() == [Message { role: Role::User, content: vec![Part::Image] }] {
                let question = [Message::question(1, "")];
                let built = prompt.build_at(&question, &case.grids(), &tokenizer, golden.now()).unwrap();
                assert_eq!(Some(built.ids), case.ids, "{name}");
                seen += 1;
            }
        }
    }
    assert!(seen >= 12);
}

/// `measured` cuts a text at a think tag; two parts must not join to a marker there, where fewer
/// guards stand.
#[test]
fn markers_do_not_arise_where_texts_meet() {
    let template = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}\
                    {{ p.text.split('</think>')[-1] }}{% endif %}{% endfor %}{% endfor %}";
    let prompt = load("joined", template).unwrap();
    let tokenizer = tokenizer();
    let part = |text: &str| Part::Text { text: text.into() };
    let content = vec![Part::Image, part("a</think><image><ima"), part("ge><end_of_"), part("utterance>")];
    let built = prompt
        .build_at(
            &[Message { role: Role::User, content }],
            &[Grid { rows: 0, cols: 0 }],
            &tokenizer,
            Default::default(),
        )
        .unwrap();
    assert_eq!(built.rendered, "<image><image><image><end_of_utterance>");
    // Two fakes, the global marker, three of the picture.
    assert_eq!(built.ids.iter().filter(|&&id| tokenizer.token_bytes(id).is_empty()).count(), 6);
}

#[test]
fn a_template_that_decides_by_a_users_marker_is_an_error_that_names_it() {
    let template = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>\
                    {% elif '<end_of_utterance>' in p.text %}never{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}";
    let prompt = load("decides", template).unwrap();
    let ask = |text: &str| prompt.build(&[Message::question(1, text)], &[Grid { rows: 0, cols: 0 }], &tokenizer());
    assert!(ask("a < b").is_ok());
    let error = ask("What does <end_of_utterance> mean?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("<end_of_utterance>"), "{error}");
}

#[test]
fn templates_that_cannot_work_are_refused_by_name() {
    let refused = |name: &str, template: &str| load(name, template).err().unwrap().message().to_owned();
    let list = "{% for m in messages %}{{ m.content }}{% endfor %}";
    // A list that is printed loses the picture; a text in its place does not.
    assert!(load("printed", list).is_ok());
    for (name, template, expected) in [
        ("loses", "{% for m in messages %}{{ m.content[0].type }}{% endfor %}", "loses an image or the text"),
        ("raises", "{{ raise_exception('Text only!') }}", "chat template: Text only!"),
        ("syntax", "{% generation %}{% endgeneratio %}", "chat_template.jinja"),
        ("break", "{% break %}", "must be placed inside a loop"),
    ] {
        let message = refused(name, template);
        assert!(message.contains("chat_template.jinja") && message.contains(expected), "{name}: {message}");
    }
}

/// Where the reference leaves its own mark in the prompt.
#[test]
fn an_answer_that_is_shown_twice_or_changed_is_not_continued() {
    let part = "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}";
    let loops = |body: &str| format!("{{% for m in messages %}}{}{{% endfor %}}", body.replace("PART", part));
    let messages = [Message::question(1, "What?"), Message::text(Role::Assistant, "A red <b>star")];
    let build = |name: &str, template: &str| {
        load(name, &loops(template)).unwrap().build_at(
            &messages,
            &[Grid { rows: 0, cols: 0 }],
            &tokenizer(),
            Default::default(),
        )
    };
    assert_eq!(build("once", "PART|").unwrap().rendered, "<image>What?|A red <b>star");
    for (name, template) in [
        ("twice", "PART{% if m.role == 'assistant' %}{{ m.content[0].text }}{% endif %}"),
        ("loud", "{% if m.role == 'assistant' %}{{ m.content[0].text | upper }}{% else %}PART{% endif %}"),
        ("silent", "{% if m.role == 'user' %}PART{% endif %}"),
    ] {
        let error = build(name, template).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}");
        assert!(error.message().starts_with("chat template: changes the last answer"), "{name}: {error}");
    }
}

#[test]
fn a_special_token_of_another_kind_is_an_error_that_names_it() {
    let files = BTreeMap::from([("tokenizer_config.json".to_owned(), serde_json::json!({"bos_token": 1}))]);
    let error = ChatTemplate::load(&folder("number", "{{ messages }}", &files)).err().unwrap();
    assert!(error.message().ends_with("tokenizer_config.json: bos_token: 1, a text or an object needed"), "{error}");
}
