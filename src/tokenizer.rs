//! Text to ids and back, for the byte-level BPE tokenizers of the family.

use std::collections::HashMap;
use std::panic;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

use crate::error::{Error, ErrorKind, Result};
use crate::files::ModelFiles;

const FILE: &str = "tokenizer.json";

/// Every tokenizer of the family.
type Bpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Ends a message, and so an answer.
const END_OF_UTTERANCE: &str = "<end_of_utterance>";

/// A loaded `tokenizer.json`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Finds the special tokens in a string, longest first; the pattern's index leads to
    /// `special_ids`.
    specials: AhoCorasick,
    /// Ascending.
    special_ids: Vec<u32>,
    special_starts: Vec<char>,
    special_texts: Vec<String>,
    /// What each id stands for; `None` for special tokens, which are not text.
    bytes: Vec<Option<Box<[u8]>>>,
    /// The longest of them, and of the special tokens.
    longest: usize,
    end_of_utterance: Option<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. Errors name the file.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let bytes = files.read(FILE)?;
        // The tokenizers crate panics on some inconsistent files; a damaged file is an error like
        // any other.
        panic::catch_unwind(|| Self::parse(&bytes))
            .unwrap_or_else(|_| Err(Error::invalid_model("inconsistent vocabulary, merges or added tokens")))
            .map_err(|e| e.at(files.path(FILE).display()))
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let invalid = |e: tokenizers::Error| Error::invalid_model(e.to_string());
        // Of any kind, the crate makes one of a tree of values that it makes of the file before:
        // that takes three times as long. It says best what is wrong, too.
        let mut inner = match serde_json::from_slice::<Bpe>(json) {
            Ok(bpe) => bpe.into(),
            Err(_) => tokenizers::Tokenizer::from_bytes(json).map_err(invalid)?,
        };
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(Error::unsupported("decoder: only ByteLevel is known in this family"));
        }
        // From here on special tokens are found by `specials` alone: the same words in a user's
        // text are text.
        inner.set_encode_special_tokens(true);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(invalid)?;

        let mut added: Vec<(u32, AddedToken)> =
            inner.get_added_tokens_decoder().into_iter().filter(|(_, t)| t.special).collect();
        added.sort_by_key(|(id, _)| *id);
        let specials = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(added.iter().map(|(_, t)| &t.content))
            .map_err(|e| Error::invalid_model(format!("added_tokens: {e}")))?;
        let mut special_starts: Vec<char> = added.iter().filter_map(|(_, t)| t.content.chars().next()).collect();
        special_starts.sort_unstable();
        special_starts.dedup();
        let special_ids: Vec<u32> = added.iter().map(|(id, _)| *id).collect();
        let bytes = token_bytes(&inner, &special_ids)?;
        // The first text has its expressions compiled, once in a process; a load is where forks
        // wait for that.
        let _ = inner.encode_fast("a", false);
        let lengths = bytes.iter().flatten().map(|b| b.len()).chain(added.iter().map(|(_, t)| t.content.len()));
        Ok(Self {
            special_starts,
            special_texts: added.iter().map(|(_, t)| t.content.clone()).collect(),
            specials,
            longest: lengths.max().unwrap_or(0),
            bytes,
            special_ids,
            end_of_utterance: inner.token_to_id(END_OF_UTTERANCE),
            inner,
        })
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the longest text that one token stands for.
    pub fn longest_token_bytes(&self) -> usize {
        self.longest
    }

    /// The id of the token with exactly this text, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token, special or not.
    pub(crate) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    /// The id of `<end_of_utterance>`.
    pub fn end_of_utterance(&self) -> Option<u32> {
        self.end_of_utterance
    }

    /// The spans of special tokens in `text`, with their ids, from left to right.
    pub(crate) fn special_tokens<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, u32)> + 'a {
        self.specials.find_iter(text).map(|m| (m.range(), self.special_ids[m.pattern().as_usize()]))
    }

    /// The characters that special tokens start with, each once.
    pub(crate) fn special_starts(&self) -> &[char] {
        &self.special_starts
    }

    /// Whether some special token starts with `text` and goes on after it.
    pub(crate) fn begins_special(&self, text: &str) -> bool {
        self.special_texts.iter().any(|special| special.len() > text.len() && special.starts_with(text))
    }

    /// Ids of plain text: special tokens in it are spelled out like any other word.
    pub(crate) fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("tokenizer: {e}")))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The bytes that `id` stands for; empty for special and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).and_then(Option::as_deref).unwrap_or_default()
    }

    /// How the special token `id` is written; `None` for all other ids.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        let index = self.special_ids.binary_search(&id).ok()?;
        self.special_texts.get(index).map(String::as_str)
    }
}

/// The bytes of every token, undone from GPT-2's printable stand-ins; `specials` ascend.
fn token_bytes(tokenizer: &tokenizers::Tokenizer, specials: &[u32]) -> Result<Vec<Option<Box<[u8]>>>> {
    /// No published vocabulary has a million entries; an id beyond that is a damaged file.
    const MAX_ID: u32 = 1 << 24;
    let mut stand_ins = [None; 0x200];
    for (stand_in, byte) in byte_stand_ins() {
        stand_ins[stand_in as usize] = Some(byte);
    }
    let added = tokenizer.get_added_tokens_decoder();
    let of_added = added.iter().map(|(&id, token)| (token.content.clone(), id));
    let vocab: Vec<_> = model_vocab(tokenizer.get_model()).into_iter().chain(of_added).collect();
    let len = vocab.iter().map(|(_, id)| id).max().map_or(0, |&id| id as usize + 1);
    if len > MAX_ID as usize {
        return Err(Error::invalid_model(format!("token id {} is above {MAX_ID}", len - 1)));
    }
    let mut bytes = vec![None; len];
    for (token, id) in vocab {
        if specials.binary_search(&id).is_ok() {
            continue;
        }
        // Added tokens are stored as they are; the rest in stand-ins.
        let text = if added.contains_key(&id) {
            None
        } else {
            token.chars().map(|c| stand_ins.get(c as usize).copied().flatten()).collect::<Option<Vec<u8>>>()
        };
        bytes[id as usize] = Some(text.unwrap_or_else(|| token.into_bytes()).into_boxed_slice());
    }
    Ok(bytes)
}

/// All tokens of a model. Ids without holes, as most have, are asked for one by one: the crate's
/// copy of the table takes several times as long.
fn model_vocab(model: &impl Model) -> Vec<(String, u32)> {
    let each = (0..model.get_vocab_size() as u32).map(|id| Some((model.id_to_token(id)?, id)));
    each.collect::<Option<_>>().unwrap_or_else(|| model.get_vocab().into_iter().collect())
}

/// GPT-2's table from printable characters to bytes: printable Latin-1 stands for itself, the other
/// bytes are numbered from U+0100 on.
fn byte_stand_ins() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => (char::from(byte), byte),
            _ => {
                next += 1;
                (char::from_u32(next - 1).unwrap_or_default(), byte)
            }
        })
        .collect()
}

/// Text as it is made, released in whole code points only.
#[derive(Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Takes a token's bytes and returns the text that is complete with them. Bytes that can no
    /// longer become UTF-8 come out as U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(e) => {
                    text.push_str(&String::from_utf8_lossy(&self.pending[..e.valid_up_to()]));
                    let Some(bad) = e.error_len() else {
                        self.pending.drain(..e.valid_up_to());
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending.drain(..e.valid_up_to() + bad);
                }
            }
        }
    }

    /// What is left when no more tokens come: an unfinished code point becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_never_splits_a_code_point() {
        let mut stream = TextStream::default();
        let bytes = "Grüße, 世界 🙂".as_bytes();
        let parts: Vec<String> = bytes.iter().map(|b| stream.push(std::slice::from_ref(b))).collect();
        assert_eq!(parts.concat(), "Grüße, 世界 🙂");
        assert!(parts.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)));
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn impossible_bytes_come_out_replaced_and_unfinished_ones_at_the_end() {
        let mut stream = TextStream::default();
        assert_eq!(stream.push(b"a\xFFb"), "a\u{FFFD}b");
        assert_eq!(stream.push(b"\xF0\x9F"), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    const BYTES: &str = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;

    /// A tokenizer of these tokens and merges, and an added one that the model has, and one that it
    /// lacks.
    fn json(model: &str, vocab: &str, merges: &str) -> String {
        let added = |id: u32, content: &str, special: bool| {
            format!(
                r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": {special}}}"#
            )
        };
        format!(
            r#"{{"version": "1.0", "added_tokens": [{}, {}],
                "normalizer": null, "pre_tokenizer": {BYTES},
                "decoder": {BYTES},
                "model": {{{model} "vocab": {{{vocab}}}, "merges": [{merges}]}}}}"#,
            added(0, "<s>", true),
            added(9, "é", false)
        )
    }

    #[test]
    fn a_tokenizer_read_at_once_is_what_the_crate_makes_of_any() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/tokenizer.json");
        let vocab = r#""<s>": 0, "a": 1, "Ġ": 2, "Ġa": 3"#;
        let typed =
            r#""type": "BPE", "ignore_merges": true, "byte_fallback": false, "dropout": null, "unk_token": "a","#;
        let files = [
            std::fs::read_to_string(demo).unwrap(),
            json(typed, vocab, r#"["Ġ", "a"]"#),
            json("", vocab, r#""Ġ a""#),
            json(r#""type": "\u0042PE","#, vocab, r#""Ġ a""#),
        ];
        for file in files {
            let theirs = tokenizers::Tokenizer::from_bytes(&file).unwrap();
            let ours = Tokenizer::parse(file.as_bytes()).unwrap();
            let theirs_are = theirs.get_vocab(true);
            assert_eq!(ours.vocab_size(), 1 + *theirs_are.values().max().unwrap() as usize);
            for (token, id) in theirs_are {
                assert_eq!((ours.id(&token), ours.token(id)), (Some(id), Some(token)));
            }
            let mut model = theirs;
            model.set_encode_special_tokens(true);
            model.with_padding(None).with_truncation(None).unwrap();
            assert_eq!(ours.inner.to_string(false).unwrap(), model.to_string(false).unwrap());
        }
        // Of other kinds, the crate says what is wrong.
        let wrong = json(r#""type": "BPE","#, vocab, r#"["Ġ", "b"]"#);
        let theirs = tokenizers::Tokenizer::from_bytes(&wrong).unwrap_err().to_string();
        assert_eq!(Tokenizer::parse(wrong.as_bytes()).err().unwrap().message(), theirs);
    }

    #[test]
    fn tokens_have_their_bytes_with_and_without_holes_between_ids() {
        for (vocab, ids) in [(r#""<s>": 0, "a": 1, "Ġa": 2"#, [1, 2, 3]), (r#""<s>": 0, "a": 4, "Ġa": 7"#, [4, 7, 3])]
        {
            let tokenizer = Tokenizer::parse(json(r#""type": "BPE","#, vocab, "").as_bytes()).unwrap();
            let [a, spaced, added] = ids;
            assert_eq!((tokenizer.token_bytes(0), tokenizer.special_text(0)), (&b""[..], Some("<s>")));
            assert_eq!((tokenizer.token_bytes(a), tokenizer.token_bytes(spaced)), (&b"a"[..], &b" a"[..]));
            // Not undone from stand-ins: this one was given as it is.
            assert_eq!(tokenizer.token_bytes(added), "é".as_bytes());
            assert_eq!(
                (tokenizer.vocab_size(), tokenizer.longest_token_bytes()),
                (*ids.iter().max().unwrap() as usize + 1, 3)
            );
        }
    }

    #[test]
    fn stand_ins_cover_every_byte_once() {
        let table = byte_stand_ins();
        assert_eq!(table.len(), 256);
        assert_eq!((table[&'A'], table[&'Ġ'], table[&'Ċ']), (b'A', b' ', b'\n'));
    }
}
