//! Keeps a marker in a user's text from becoming a token, through all that a template may do with the text.
//!
//! A guard character stands inside the marker while the template renders. A template that measures or compares
//! texts could see it; so the same conversation is rendered without guards too, and only where both say the same
//! do the guards count.

use super::{IMAGE_TOKEN, Message};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// A private-use character that neither a message nor the template contains.
pub(super) fn free_guard(messages: &[Message], in_template: impl Fn(char) -> bool) -> Result<char> {
    ('\u{E000}'..='\u{F8FF}')
        .find(|&c| !in_template(c) && !messages.iter().flat_map(Message::texts).any(|text| text.contains(c)))
        .ok_or_else(|| Error::invalid_argument("prompt: uses every private-use code point from U+E000 to U+F8FF"))
}

/// What `render` makes of `messages`, with guards in all markers that are a user's.
pub(super) fn render(
    messages: &[Message],
    guard: char,
    tokenizer: &Tokenizer,
    render: impl Fn(&[Message]) -> Result<String>,
) -> Result<String> {
    let plain = render(messages)?;
    let guarded = |f: &dyn Fn(&str) -> String| messages.iter().map(|m| m.map_text(f)).collect::<Vec<_>>();
    let everywhere = guarded(&|text| guard_starts(text, guard, tokenizer));
    if everywhere == messages {
        return Ok(plain);
    }
    // Fewer guards disturb less: a template may look for `</think>` in an answer, which is a marker to no tokenizer here.
    for candidate in [everywhere, guarded(&|text| guard_markers(text, guard, tokenizer))] {
        match render(&candidate) {
            Ok(text) if text.replace(guard, "") == plain => return Ok(text),
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

/// Puts `guard` after every character that can start a marker, so that none is left and none can arise.
fn guard_starts(text: &str, guard: char, tokenizer: &Tokenizer) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        out.push(c);
        if IMAGE_TOKEN.starts_with(c) || tokenizer.starts_special(c) {
            out.push(guard);
        }
    }
    out
}

/// Puts `guard` into every whole marker, and into the start of one at the text's end, which another text might go on with.
fn guard_markers(text: &str, guard: char, tokenizer: &Tokenizer) -> String {
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
