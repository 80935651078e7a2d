//! Where a checkpoint keeps its chat template.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// Where transformers 5's processor finds a template, in its order, and after it its tokenizer.
pub(super) fn find_source(files: &ModelFiles) -> Result<(&'static str, String)> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Source {
        One(String),
        Named(Vec<NamedSource>),
        ByName(BTreeMap<String, String>),
    }
    #[derive(Deserialize)]
    struct NamedSource {
        name: String,
        template: String,
    }
    #[derive(Deserialize)]
    struct Holder {
        chat_template: Option<Source>,
    }

    const JINJA: &str = "chat_template.jinja";
    const FOLDER: &str = "additional_chat_templates";
    const DEFAULT: &str = "additional_chat_templates/default.jinja";
    let no_default = |place: &str, names: Vec<String>| {
        let message = format!("chat templates {}, none of them named default: rename the one to use", names.join(", "));
        Error::invalid_model(message).at(files.path(place).display())
    };
    let in_json = |file: &'static str| {
        if !files.has(file) {
            return Ok(None);
        }
        let named: BTreeMap<_, _> = match parse::<Holder>(files, file)?.chat_template {
            None => return Ok(None),
            Some(Source::One(source)) => return Ok(Some((file, source))),
            Some(Source::Named(named)) => named.into_iter().map(|n| (n.name, n.template)).collect(),
            Some(Source::ByName(named)) => named,
        };
        match named.get("default") {
            Some(source) => Ok(Some((file, source.clone()))),
            None => Err(no_default(file, named.into_keys().collect())),
        }
    };

    // The second is transformers 4's, and wins over the .jinja file that transformers 5 writes
    // beside it.
    for file in ["processor_config.json", "chat_template.json"] {
        if let Some(found) = in_json(file)? {
            return Ok(found);
        }
    }
    for file in [JINJA, DEFAULT] {
        if files.has(file) {
            return Ok((file, files.read_text(file)?));
        }
    }
    let names = files.stems(FOLDER, "jinja");
    if !names.is_empty() {
        return Err(no_default(FOLDER, names));
    }
    in_json("tokenizer_config.json")?.ok_or_else(|| {
        Error::not_found(format!(
            "{}: not there, and neither {DEFAULT}, processor_config.json, chat_template.json nor tokenizer_config.json holds a chat \
             template; copy it from the checkpoint that this one was trained from",
            files.path(JINJA).display()
        ))
    })
}
