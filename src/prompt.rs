//! A conversation to ids: the checkpoint's own chat template, then image-token expansion, then the
//! tokenizer.
//!
//! Newlines may merge with their neighbours, so the whole expanded string is tokenised at once. A
//! marker such as `<image>` in a user's own text stays text: while the template renders, a guard
//! character stands inside it, and is taken out again only where no marker can arise any more.

mod forms;
mod generation;
mod guard;
mod message;
mod moment;
mod source;
mod template;
mod tojson;
mod variables;

use chrono::NaiveDateTime;

use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::preprocess::Tiles;
use crate::tokenizer::Tokenizer;
use forms::Forms;
use guard::Guards;
pub(crate) use message::IMAGE_TOKEN;
pub use message::{Message, Part, Role};
use moment::Moment;
use source::find_source;
use template::Template;

const FAKE: &str = "<fake_token_around_image>";
const GLOBAL: &str = "<global-img>";

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
    /// Finds the template where a checkpoint may keep it. The first of these counts:
    /// `processor_config.json`, `chat_template.json`, `chat_template.jinja`,
    /// `additional_chat_templates/default.jinja`, `tokenizer_config.json`.
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
        let begun = messages.last().filter(|last| last.role == Role::Assistant);
        let mut marked = messages.to_vec();
        let end = begun.map(|_| self.end_mark(messages)).transpose()?;
        if let (Some(end), Some(last)) = (end, marked.last_mut()) {
            last.append(&format!("{end} "), Vec::new());
        }
        let mut starts = tokenizer.special_starts().to_vec();
        starts.extend(IMAGE_TOKEN.chars().next().filter(|c| !starts.contains(c)));
        let guards = Guards::free(&marked, starts, |c| self.template.contains(c))?;
        let mut rendered = guard::render(&marked, &guards, tokenizer, |messages| {
            // A last answer that is to be continued is cut open below.
            let open = begun.is_none();
            self.template.render(self.forms.messages(messages), open, Moment { guards: guards.range(), now })
        })?;
        if let (Some(end), Some(begun)) = (end, begun) {
            let text = begun.texts().last().unwrap_or_default().trim();
            let shown = guards.remove(&rendered).contains(text);
            rendered = cut_at(rendered, end).filter(|_| shown).ok_or_else(|| {
                Error::unsupported(
                    "chat template: changes the last answer, or shows it more than once; so it cannot be continued",
                )
            })?;
        }
        Ok((rendered, guards))
    }
}

/// The prompt up to the only mark, at the end of a last answer, as the reference's
/// `continue_final_message` cuts it: where the template took the space behind the mark away, it
/// would have taken the answer's own away, too.
fn cut_at(mut rendered: String, end: char) -> Option<String> {
    let at = rendered.rfind(end)?;
    let kept = rendered[at + end.len_utf8()..].starts_with(' ');
    rendered.truncate(at);
    if !kept {
        rendered.truncate(rendered.trim_end().len());
    }
    Some(rendered).filter(|rendered| !rendered.contains(end))
}

fn now() -> NaiveDateTime {
    chrono::Local::now().naive_local()
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

    /// The ids of `messages`, ready for the assistant's answer; a last message that is the
    /// assistant's is left open, to be continued. `grids` are those of all pictures in order.
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
