//! A conversation to ids: the checkpoint's own chat template, then image-token expansion, then the tokenizer.
//!
//! Newlines may merge with their neighbours, so the whole expanded string is tokenised at once. A
//! marker such as `<image>` in a user's own text stays text: while the template renders, a guard
//! character stands inside it, and is taken out again only where no marker can arise any more.

mod forms;
mod generation;
mod guard;
mod moment;
mod template;
mod tojson;
mod variables;

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::NaiveDateTime;
use serde::Deserialize;

use crate::config::parse;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::preprocess::Tiles;
use crate::tokenizer::Tokenizer;
use forms::Forms;
use guard::Guards;
use moment::Moment;
use template::Template;

pub(crate) const IMAGE_TOKEN: &str = "<image>";
const FAKE: &str = "<fake_token_around_image>";
const GLOBAL: &str = "<global-img>";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: Vec<Part>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Image,
    Text {
        text: String,
    },
    /// What the model said with its special tokens in it. In these byte ranges they are tokens again, elsewhere text.
    Answer {
        text: String,
        markers: Vec<Range<usize>>,
    },
}

impl Message {
    /// Text alone.
    pub fn text(role: Role, text: &str) -> Self {
        Self { role, content: vec![Part::Text { text: text.to_owned() }] }
    }

    /// What the model said; `markers` are its special tokens, as byte ranges from left to right.
    pub(crate) fn answer(text: &str, markers: Vec<Range<usize>>) -> Self {
        match markers.is_empty() {
            true => Self::text(Role::Assistant, text),
            false => Self { role: Role::Assistant, content: vec![Part::Answer { text: text.to_owned(), markers }] },
        }
    }

    /// Pictures first, then the text, as the family was trained. Pictures alone are a question too.
    pub fn question(images: usize, text: &str) -> Self {
        let mut message = Self::text(Role::User, text);
        if images > 0 && text.is_empty() {
            message.content.clear();
        }
        message.content.splice(0..0, (0..images).map(|_| Part::Image));
        message
    }

    /// Lets the last text go on with `more`, in which `markers` are special tokens.
    pub(crate) fn append(&mut self, more: &str, markers: Vec<Range<usize>>) {
        let (mut text, mut all) = match self.content.pop() {
            Some(Part::Text { text }) => (text, Vec::new()),
            Some(Part::Answer { text, markers }) => (text, markers),
            other => {
                self.content.extend(other);
                (String::new(), Vec::new())
            }
        };
        all.extend(markers.into_iter().map(|marker| marker.start + text.len()..marker.end + text.len()));
        text += more;
        self.content.push(if all.is_empty() { Part::Text { text } } else { Part::Answer { text, markers: all } });
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|part| match part {
            Part::Image => None,
            Part::Text { text } | Part::Answer { text, .. } => Some(text.as_str()),
        })
    }

    /// The same message with its texts changed.
    fn map_text(&self, f: impl Fn(&str) -> String) -> Self {
        let content = self.content.iter().map(|part| match part {
            Part::Image => Part::Image,
            Part::Text { text } => Part::Text { text: f(text) },
            Part::Answer { text, markers } => Part::Text { text: map_between(text, markers, &f) },
        });
        Self { role: self.role, content: content.collect() }
    }
}

/// `text` with all changed but `markers`. A picture's marker that a model wrote stands for no picture.
fn map_between(text: &str, markers: &[Range<usize>], f: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for marker in markers {
        let (Some(before), Some(token)) = (text.get(end..marker.start), text.get(marker.clone())) else { continue };
        out += &f(before);
        out += &if token == IMAGE_TOKEN { f(token) } else { token.to_owned() };
        end = marker.end;
    }
    out + &f(&text[end..])
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
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
    template: Template,
    forms: Forms,
    /// What fills up shorter prompts of a batch.
    padding: Option<String>,
}

impl ChatTemplate {
    /// Finds the template where a checkpoint may keep it: `chat_template.jinja`, `chat_template.json`,
    /// or `tokenizer_config.json`.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let variables = variables::special_tokens(files)?;
        let (file, source) = find_source(files)?;
        Self::new(&source, variables).map_err(|e| e.at(files.path(file).display()))
    }

    fn new(source: &str, variables: Vec<(&'static str, String)>) -> Result<Self> {
        let padding = variables.iter().find(|(name, _)| *name == "pad_token").map(|(_, token)| token.clone());
        let template = Template::new(source, variables)?;
        let forms = Forms::find(|messages, forms| {
            let guards = Guards::free(messages, Vec::new(), |c| template.contains(c))?.range();
            template.render(forms.messages(messages), true, Moment { guards, now: now() })
        })?;
        Ok(Self { template, forms, padding })
    }

    /// A private-use character that stands nowhere; the guards begin at the other end of them.
    fn end_mark(&self, messages: &[Message]) -> Result<char> {
        let taken = |c: char| {
            self.template.contains(c) || messages.iter().flat_map(Message::texts).any(|text| text.contains(c))
        };
        ('\u{E000}'..='\u{F8FF}')
            .rev()
            .find(|&c| !taken(c))
            .ok_or_else(|| Error::invalid_argument("messages: use all private-use code points from U+E000 to U+F8FF"))
    }

    /// The prompt's text at the local time `now`, with guard characters, and these.
    fn render(&self, messages: &[Message], tokenizer: &Tokenizer, now: NaiveDateTime) -> Result<(String, Guards)> {
        let (marked, continued) = match messages.last() {
            Some(last) if last.role == Role::Assistant => {
                let end = self.end_mark(messages)?;
                let mut marked = messages.to_vec();
                if let Some(last) = marked.last_mut() {
                    last.append(&format!("{end} "), Vec::new());
                }
                (marked, Some(end))
            }
            _ => (Vec::new(), None),
        };
        let messages = if continued.is_some() { &marked[..] } else { messages };
        let mut starts = tokenizer.special_starts().to_vec();
        starts.extend(IMAGE_TOKEN.chars().next().filter(|c| !starts.contains(c)));
        let guards = Guards::free(messages, starts, |c| self.template.contains(c))?;
        let rendered = guard::render(messages, &guards, tokenizer, |messages| {
            // A last answer that is to be continued is cut open below.
            let open = continued.is_none();
            self.template.render(self.forms.messages(messages), open, Moment { guards: guards.range(), now })
        })?;
        let rendered = match continued {
            Some(end) => cut_at(rendered, end)?,
            None => rendered,
        };
        Ok((rendered, guards))
    }
}

/// The prompt up to the mark at the end of a last answer, as the reference's `continue_final_message` cuts it: where the
/// template took the space behind the mark away, it would have taken the answer's own away, too.
fn cut_at(mut rendered: String, end: char) -> Result<String> {
    let Some(at) = rendered.rfind(end) else {
        return Err(Error::unsupported("chat template: loses the last answer, which therefore cannot be continued"));
    };
    let kept = rendered[at + end.len_utf8()..].starts_with(' ');
    rendered.truncate(at);
    if !kept {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}

fn now() -> NaiveDateTime {
    chrono::Local::now().naive_local()
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

    /// The id of the padding token, which is never part of an answer.
    pub(crate) fn padding(&self, tokenizer: &Tokenizer) -> Option<u32> {
        let padding = self.template.padding.as_deref()?;
        tokenizer.special_tokens(padding).next().filter(|(span, _)| span.len() == padding.len()).map(|(_, id)| id)
    }

    /// The ids of `messages`, ready for the assistant's answer; a last message that is the assistant's is left open, to be
    /// continued. `grids` are those of all pictures in order.
    pub fn build(&self, messages: &[Message], grids: &[Grid], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        self.build_at(messages, grids, tokenizer, now()).map(|prompt| prompt.ids)
    }

    /// As `build`, at another local time, for templates that ask for it; with the text in between.
    #[doc(hidden)]
    pub fn build_at(
        &self,
        messages: &[Message],
        grids: &[Grid],
        tokenizer: &Tokenizer,
        now: NaiveDateTime,
    ) -> Result<Prompt> {
        let (rendered, guards) = self.template.render(messages, tokenizer, now)?;
        let expanded = expand_images(&rendered, grids, self.tokens_per_tile)?;

        let mut ids = Vec::new();
        let mut text_start = 0;
        let encode = |text: &str, ids: &mut Vec<u32>| tokenizer.encode_text(&guards.remove(text), ids);
        for (span, id) in tokenizer.special_tokens(&expanded) {
            encode(&expanded[text_start..span.start], &mut ids)?;
            ids.push(id);
            text_start = span.end;
        }
        encode(&expanded[text_start..], &mut ids)?;
        Ok(Prompt { rendered: guards.remove(&rendered), ids })
    }
}

/// What a conversation became.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The chat template's text, pictures still as markers.
    pub rendered: String,
    pub ids: Vec<u32>,
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
