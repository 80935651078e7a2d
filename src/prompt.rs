//! A conversation to ids: the checkpoint's own chat template, then image-token expansion, then the tokenizer.
//!
//! Newlines may merge with their neighbours, so the whole expanded string is tokenised at once. A
//! marker such as `<image>` in a user's own text stays text: while the template renders, a guard
//! character stands inside it, and it is taken out again only where no marker can arise any more.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::preprocess::Tiles;
use crate::tokenizer::Tokenizer;

pub(crate) const IMAGE_TOKEN: &str = "<image>";
const FAKE: &str = "<fake_token_around_image>";
const GLOBAL: &str = "<global-img>";

/// Bounds what a damaged or hostile template can do, in minijinja's instructions.
const TEMPLATE_FUEL: u64 = 1_000_000;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: Vec<Part>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    Image,
    Text { text: String },
}

impl Message {
    /// Text alone.
    pub fn text(role: Role, text: &str) -> Self {
        Self { role, content: vec![Part::Text { text: text.to_owned() }] }
    }

    /// Pictures first, then the text, as the family was trained.
    pub fn question(images: usize, text: &str) -> Self {
        let mut message = Self::text(Role::User, text);
        message.content.splice(0..0, (0..images).map(|_| Part::Image));
        message
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|part| if let Part::Text { text } = part { Some(text.as_str()) } else { None })
    }

    /// The same message with its texts changed.
    fn map_text(&self, f: impl Fn(&str) -> String) -> Self {
        let content = self.content.iter().map(|part| match part {
            Part::Image => Part::Image,
            Part::Text { text } => Part::Text { text: f(text) },
        });
        Self { role: self.role, content: content.collect() }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// How many tiles a picture became: `rows` x `cols` and the global one, or one frame if both are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub rows: usize,
    pub cols: usize,
}

impl From<&Tiles> for Grid {
    fn from(tiles: &Tiles) -> Self {
        Self { rows: tiles.rows, cols: tiles.cols }
    }
}

/// The checkpoint's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Finds the template where a checkpoint may keep it: `chat_template.jinja`, `chat_template.json`,
    /// or `tokenizer_config.json`.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let (file, source) = find_source(files)?;
        let mut environment = Environment::new();
        // As transformers compiles templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::internal(one_line(&e)))?);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        let invalid = |e: minijinja::Error| Error::invalid_model(one_line(&e)).at(files.path(file).display());
        environment.add_template_owned(NAME, source).map_err(invalid)?;
        let template = Self { environment };

        // A template that loses the picture would make the model answer blindly.
        let probe = [Message::question(1, "\u{2}")];
        let rendered = template.render(&probe).map_err(|e| e.at(files.path(file).display()))?;
        if rendered.matches(IMAGE_TOKEN).count() != 1 || !rendered.contains('\u{2}') {
            return Err(Error::invalid_model("the template loses an image or the text").at(files.path(file).display()));
        }
        Ok(template)
    }

    fn render(&self, messages: &[Message]) -> Result<String> {
        #[derive(Serialize)]
        struct Turn<'a> {
            role: &'static str,
            content: &'a [Part],
        }
        let turns: Vec<_> = messages.iter().map(|m| Turn { role: m.role.name(), content: &m.content }).collect();
        let template = self.environment.get_template(NAME).map_err(|e| Error::internal(one_line(&e)))?;
        template
            .render(context! { messages => Value::from(Serde(&turns)), add_generation_prompt => true })
            .map_err(|e| Error::invalid_model(format!("chat template: {}", one_line(&e))))
    }
}

fn one_line(error: &minijinja::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Where transformers 5's processor finds a template, in its order, and after it its tokenizer.
fn find_source(files: &ModelFiles) -> Result<(&'static str, String)> {
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

    // The second is transformers 4's, and wins over the .jinja file that transformers 5 writes beside it.
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

/// What turns a conversation into ids.
pub struct PromptBuilder {
    template: ChatTemplate,
    /// Image tokens of one tile.
    tokens_per_tile: usize,
}

impl PromptBuilder {
    pub fn new(template: ChatTemplate, tokens_per_tile: usize) -> Self {
        Self { template, tokens_per_tile }
    }

    /// Image tokens of one tile.
    pub fn tokens_per_tile(&self) -> usize {
        self.tokens_per_tile
    }

    /// The ids of `messages`, ready for the assistant's answer. `grids` are those of all pictures in order.
    pub fn build(&self, messages: &[Message], grids: &[Grid], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let guard = free_guard(messages)?;
        let guarded: Vec<Message> =
            messages.iter().map(|m| m.map_text(|text| guard_markers(text, guard, tokenizer))).collect();
        let rendered = self.template.render(&guarded)?;
        let expanded = expand_images(&rendered, grids, self.tokens_per_tile)?;

        let mut ids = Vec::new();
        let mut text_start = 0;
        let encode = |text: &str, ids: &mut Vec<u32>| tokenizer.encode_text(&text.replace(guard, ""), ids);
        for (span, id) in tokenizer.special_tokens(&expanded) {
            encode(&expanded[text_start..span.start], &mut ids)?;
            ids.push(id);
            text_start = span.end;
        }
        encode(&expanded[text_start..], &mut ids)?;
        Ok(ids)
    }
}

/// A private-use character that no message contains.
fn free_guard(messages: &[Message]) -> Result<char> {
    ('\u{E000}'..='\u{F8FF}')
        .find(|&c| !messages.iter().flat_map(Message::texts).any(|text| text.contains(c)))
        .ok_or_else(|| Error::invalid_argument("prompt: uses every private-use code point from U+E000 to U+F8FF"))
}

/// Puts `guard` after every character in a user's text that can start a marker, so that none is left.
fn guard_markers(text: &str, guard: char, tokenizer: &Tokenizer) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        out.push(c);
        if IMAGE_TOKEN.starts_with(c) || tokenizer.starts_special(c) {
            out.push(guard);
        }
    }
    out
}

/// Replaces each `<image>` by what a picture of that grid is in the prompt (the reference's
/// `Idefics3Processor`).
fn expand_images(text: &str, grids: &[Grid], tokens_per_tile: usize) -> Result<String> {
    let markers = text.matches(IMAGE_TOKEN).count();
    if markers != grids.len() {
        return Err(Error::invalid_model(format!(
            "chat template: makes {markers} image markers for {} images",
            grids.len()
        )));
    }
    let tile = IMAGE_TOKEN.repeat(tokens_per_tile);
    let mut parts = text.split(IMAGE_TOKEN);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (grid, rest) in grids.iter().zip(parts) {
        for row in 1..=grid.rows {
            for col in 1..=grid.cols {
                out += &format!("{FAKE}<row_{row}_col_{col}>{tile}");
            }
            out.push('\n');
        }
        if grid.rows > 0 {
            out.push('\n');
        }
        out += &format!("{FAKE}{GLOBAL}{tile}{FAKE}");
        out += rest;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_and_a_grid_expand_as_the_reference_does() {
        let one = expand_images("a<image>b", &[Grid { rows: 0, cols: 0 }], 2).unwrap();
        assert_eq!(one, "a<fake_token_around_image><global-img><image><image><fake_token_around_image>b");
        let grid = expand_images("<image>", &[Grid { rows: 1, cols: 2 }], 1).unwrap();
        assert_eq!(
            grid,
            "<fake_token_around_image><row_1_col_1><image><fake_token_around_image><row_1_col_2><image>\n\
             \n<fake_token_around_image><global-img><image><fake_token_around_image>"
        );
    }

    #[test]
    fn a_template_that_miscounts_images_is_refused() {
        assert!(expand_images("no marker", &[Grid { rows: 0, cols: 0 }], 1).is_err());
    }
}
