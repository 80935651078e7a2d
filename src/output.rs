//! An answer's text on its way to the caller: whole code points, no leading space, stop strings
//! held back.

use std::ops::{ControlFlow, Range};

use crate::answer::{FinishReason, OnText};
use crate::error::{Error, Result};
use crate::tokenizer::TextStream;

/// Collects text, and releases what can no longer turn out to be part of a stop string.
#[derive(Default)]
pub(crate) struct Output {
    stops: Vec<String>,
    stream: TextStream,
    text: String,
    /// Bytes of `text` that the caller has.
    released: usize,
    /// Special tokens in `text`, as byte ranges from left to right.
    markers: Vec<Range<usize>>,
    /// Whether the text goes on from another, so that a leading space is part of it.
    continues: bool,
}

impl Output {
    pub(crate) fn new(stops: &[&str]) -> Result<Self> {
        if let Some(i) = stops.iter().position(|s| s.is_empty()) {
            return Err(Error::invalid_argument(format!("stop[{i}]: empty")));
        }
        let stops = stops.iter().map(|s| s.to_string()).collect();
        Ok(Self {
            stops,
            stream: TextStream::default(),
            text: String::new(),
            released: 0,
            markers: Vec::new(),
            continues: false,
        })
    }

    /// The text is the rest of one that began elsewhere.
    pub(crate) fn continuing(self) -> Self {
        Self { continues: true, ..self }
    }

    /// Takes the bytes of one token.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let new = self.stream.push(bytes);
        self.append(&new);
    }

    /// Takes a special token that is part of the answer.
    pub(crate) fn push_special(&mut self, text: &str) {
        self.push(text.as_bytes());
        let end = self.text.len();
        if let Some(start) = end.checked_sub(text.len()).filter(|&start| self.text.get(start..) == Some(text)) {
            self.markers.push(start..end);
        }
    }

    /// Hands over what is safe; the reason to end, if there is one.
    pub(crate) fn release(&mut self, on_text: &mut OnText<'_>) -> Option<FinishReason> {
        if let Some(at) = self.stops.iter().filter_map(|s| self.text.find(s)).min() {
            self.text.truncate(at);
            return self.hand_over(at, on_text).or(Some(FinishReason::StopString));
        }
        self.hand_over(self.text.len() - self.held_back(), on_text)
    }

    /// Hands over the rest of an answer that ends for `reason`, unless it was stopped from outside.
    pub(crate) fn finish(&mut self, reason: FinishReason, on_text: &mut OnText<'_>) -> FinishReason {
        if matches!(reason, FinishReason::EndOfText | FinishReason::MaxTokens) {
            let rest = self.stream.finish();
            self.append(&rest);
            let end = self.release(on_text);
            return end.or_else(|| self.hand_over(self.text.len(), on_text)).unwrap_or(reason);
        }
        reason
    }

    /// What the caller was given, and the special tokens in it.
    pub(crate) fn into_text(mut self) -> (String, Vec<Range<usize>>) {
        self.text.truncate(self.released);
        self.markers.retain(|marker| marker.end <= self.released);
        (self.text, self.markers)
    }

    fn append(&mut self, new: &str) {
        // The family's answers start with a space.
        let new = if self.text.is_empty() && !self.continues { new.trim_start() } else { new };
        // C would take a NUL for the end of the text.
        self.text.extend(new.chars().map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }));
    }

    fn hand_over(&mut self, end: usize, on_text: &mut OnText<'_>) -> Option<FinishReason> {
        if end <= self.released {
            return None;
        }
        let piece = &self.text[self.released..end];
        self.released = end;
        match on_text(piece) {
            ControlFlow::Continue(()) => None,
            ControlFlow::Break(()) => Some(FinishReason::Cancelled),
        }
    }

    /// Bytes at the end that may be the start of a stop string.
    fn held_back(&self) -> usize {
        let starts = |s: &String| (1..s.len()).rev().find(|&n| s.is_char_boundary(n) && self.text.ends_with(&s[..n]));
        self.stops.iter().filter_map(starts).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], tokens: &[&str], reason: FinishReason) -> (Vec<String>, String, FinishReason) {
        let mut pieces = Vec::new();
        let mut on_text = |t: &str| {
            pieces.push(t.to_owned());
            ControlFlow::Continue(())
        };
        let mut output = Output::new(stops).unwrap();
        let mut end = None;
        for token in tokens {
            output.push(token.as_bytes());
            end = output.release(&mut on_text);
            if end.is_some() {
                break;
            }
        }
        let end = output.finish(end.unwrap_or(reason), &mut on_text);
        (pieces, output.into_text().0, end)
    }

    #[test]
    fn a_leading_space_goes_and_pieces_add_up_to_the_text() {
        let (pieces, text, _) = run(&[], &[" ", " A", " cat", " "], FinishReason::EndOfText);
        assert_eq!((pieces.concat().as_str(), text.as_str()), ("A cat ", "A cat "));
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let (pieces, text, end) = run(&["\nUser:", "STOP"], &["one", "\nUs", "er", ": x"], FinishReason::EndOfText);
        assert_eq!((pieces.concat().as_str(), text.as_str(), end), ("one", "one", FinishReason::StopString));
    }

    #[test]
    fn a_false_start_of_a_stop_string_is_shown_in_the_end() {
        let (pieces, text, end) = run(&["abcd"], &["xab", "c"], FinishReason::MaxTokens);
        assert_eq!(pieces, ["x", "abc"]);
        assert_eq!((text.as_str(), end), ("xabc", FinishReason::MaxTokens));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert_eq!(Output::new(&["a", ""]).err().unwrap().message(), "stop[1]: empty");
    }

    #[test]
    fn a_caller_who_stops_is_heard_at_a_stop_string_too() {
        let mut output = Output::new(&["."]).unwrap();
        output.push(b"Yes.");
        assert_eq!(output.release(&mut |_| ControlFlow::Break(())), Some(FinishReason::Cancelled));
        assert_eq!(output.into_text().0, "Yes");
    }

    #[test]
    fn special_tokens_that_are_shown_are_remembered_and_stop_an_answer() {
        let mut on_text = |_: &str| ControlFlow::Continue(());
        let mut output = Output::new(&["c</end>"]).unwrap();
        output.push(b" ");
        output.push_special("<a>");
        output.push("ü<b>".as_bytes());
        output.push(b"\xF0\x9F");
        output.push_special("<b>");
        output.push(b"c");
        assert_eq!(output.release(&mut on_text), None);
        output.push_special("</end>");
        assert_eq!(output.release(&mut on_text), Some(FinishReason::StopString));
        let (text, markers) = output.into_text();
        assert_eq!(text, "<a>ü<b>\u{fffd}<b>");
        assert_eq!(markers, [0..3, 11..14]);
    }

    #[test]
    fn a_nul_is_replaced_before_anybody_sees_it() {
        let mut output = Output::new(&[]).unwrap();
        output.push(b"a\0b");
        let mut pieces = String::new();
        output.release(&mut |piece| {
            pieces.push_str(piece);
            ControlFlow::Continue(())
        });
        assert_eq!((pieces.as_str(), output.into_text().0.as_str()), ("a\u{fffd}b", "a\u{fffd}b"));
    }
}
