//! Keeps a marker in a user's text from becoming a token, through all that a template may do with
//! the text.
//!
//! A guard character stands inside the marker while the template renders. A template that measures
//! or compares texts could see it; so the same conversation is rendered without guards too, and
//! only where both say the same do the guards count.

use super::message::Message;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Private-use characters, one after the other, that neither a message nor the template contains.
#[derive(Clone, Debug)]
pub(super) struct Guards {
    /// Stands inside a marker, and for nothing.
    inside: char,
    /// The characters that can start a marker. Those after `inside` stand for them, in this order.
    starts: Vec<char>,
}

impl Guards {
    /// Those for `messages`; `in_template` says what the template has in it.
    pub(super) fn free(messages: &[Message], starts: Vec<char>, in_template: impl Fn(char) -> bool) -> Result<Self> {
        let taken = |c: char| in_template(c) || messages.iter().flat_map(Message::texts).any(|t| t.contains(c));
        let mut free = 0;
        for c in PRIVATE_USE {
            free = if taken(c) { 0 } else { free + 1 };
            if free > starts.len() {
                let guards = |inside| Self { inside, starts };
                return char::from_u32(c as u32 + 1 - free as u32)
                    .map(guards)
                    .ok_or_else(|| Error::internal("guards: no first one"));
            }
        }
        Err(Error::invalid_argument("prompt: uses the private-use code points from U+E000 to U+F8FF"))
    }

    /// The first and the last of them.
    pub(super) fn range(&self) -> (char, char) {
        (self.inside, self.stand_in(self.starts.len()))
    }

    /// `text` as it is meant.
    pub(super) fn remove(&self, text: &str) -> String {
        let (first, last) = self.range();
        let meant = |c: char| match c {
            c if c == self.inside => None,
            c if (first..=last).contains(&c) => self.starts.get((c as u32 - first as u32) as usize - 1).copied(),
            c => Some(c),
        };
        text.chars().filter_map(meant).collect()
    }

    /// The guard with this number; the first is `inside`.
    fn stand_in(&self, number: usize) -> char {
        char::from_u32(self.inside as u32 + number as u32).unwrap_or(self.inside)
    }

    fn position(&self, c: char) -> Option<usize> {
        self.starts.iter().position(|&start| start == c)
    }

    /// A guard after every character that can start a marker, so that none is left and none can
    /// arise.
    fn split_all(&self, text: &str) -> String {
        let guarded = |c| [Some(c), self.position(c).map(|_| self.inside)];
        text.chars().flat_map(guarded).flatten().collect()
    }

    /// A guard in the place of every such character: the text keeps its length.
    fn replace_all(&self, text: &str) -> String {
        text.chars().map(|c| self.position(c).map_or(c, |i| self.stand_in(i + 1))).collect()
    }
}

const PRIVATE_USE: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{F8FF}';

/// What `render` makes of `messages`, with guards in all markers that are a user's.
pub(super) fn render(
    messages: &[Message],
    guards: &Guards,
    tokenizer: &Tokenizer,
    render: impl Fn(&[Message]) -> Result<String>,
) -> Result<String> {
    let plain = render(messages)?;
    let guarded = |f: &dyn Fn(&str) -> String| messages.iter().map(|m| m.map_text(f)).collect::<Vec<_>>();
    let split = guarded(&|text| guards.split_all(text));
    if split.iter().flat_map(Message::texts).eq(messages.iter().flat_map(Message::texts)) {
        return Ok(plain);
    }
    // One compares texts, the next measures them. Fewer guards disturb less: `</think>` in an
    // answer, which templates look for, is a marker to no tokenizer of the family.
    let candidates: [&dyn Fn() -> Vec<Message>; 3] =
        [&|| split.clone(), &|| guarded(&|text| guards.replace_all(text)), &|| {
            guarded(&|text| split_markers(text, guards.inside, tokenizer))
        }];
    for candidate in candidates {
        match render(&candidate()) {
            Ok(text) if guards.remove(&text) == plain => return Ok(text),
            _ => {}
        }
    }
    let marker = messages
        .iter()
        .flat_map(Message::texts)
        .find_map(|text| tokenizer.special_tokens(text).next().map(|(span, _)| text[span].to_owned()));
    Err(Error::invalid_argument(format!(
        "prompt: the chat template treats {} in a text as its own; leave it out",
        marker.as_deref().unwrap_or("a part of a special token")
    )))
}

/// Puts `guard` into every whole marker, and into the start of one at the text's end, which another
/// text might go on with.
fn split_markers(text: &str, guard: char, tokenizer: &Tokenizer) -> String {
    let mut guarded = text.to_owned();
    loop {
        let starts: Vec<usize> = tokenizer.special_tokens(&guarded).map(|(span, _)| span.start).collect();
        if starts.is_empty() {
            break;
        }
        // From the last, so that the others stay where they are.
        for at in starts.into_iter().rev() {
            insert_after_first(&mut guarded, at, guard);
        }
    }
    let end = guarded.trim_end().len();
    let starts = guarded[..end].char_indices().rev().map(|(at, _)| at).take(tokenizer.longest_token_bytes());
    let open: Vec<usize> = starts.filter(|&at| tokenizer.begins_special(&guarded[at..end])).collect();
    for at in open {
        insert_after_first(&mut guarded, at, guard);
    }
    guarded
}

fn insert_after_first(text: &mut String, at: usize, guard: char) {
    let first = text[at..].chars().next().map_or(0, char::len_utf8);
    text.insert(at + first, guard);
}
