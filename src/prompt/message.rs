//! What was said, and shown, by whom.

use std::ops::Range;

/// Where a picture is in a prompt.
pub(crate) const IMAGE_TOKEN: &str = "<image>";

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
    /// What the model said with its special tokens in it. In these byte ranges they are tokens
    /// again, elsewhere text.
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
    pub(super) fn map_text(&self, f: impl Fn(&str) -> String) -> Self {
        let content = self.content.iter().map(|part| match part {
            Part::Image => Part::Image,
            Part::Text { text } => Part::Text { text: f(text) },
            Part::Answer { text, markers } => Part::Text { text: map_between(text, markers, &f) },
        });
        Self { role: self.role, content: content.collect() }
    }
}

/// `text` with all changed but `markers`. A picture's marker that a model wrote stands for no
/// picture.
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
