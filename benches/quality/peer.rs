//! Another engine as a decoder: a program that reads lines of words and writes numbers of four
//! bytes, the least first.
//!
//! It begins with the size of its vocabulary. `truncate N` keeps the first N tokens; `append ID ID
//! ...` is answered by the logits after the last one, as f32; by NaN alone where they are not to be
//! had.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use smolvlm::backend::{Decoder, Run, Stop};
use smolvlm::error::{Error, ErrorKind, Result};

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("{what}: {why}"))
}

pub struct Peer {
    child: Child,
    words: ChildStdin,
    numbers: BufReader<ChildStdout>,
    len: usize,
    bytes: Vec<u8>,
    logits: Vec<f32>,
}

impl Peer {
    /// `command`: words with spaces between.
    pub fn start(command: &str) -> Result<Self> {
        let mut words = command.split_whitespace();
        let lost = |error: std::io::Error| failed(command, error);
        let program = words.next().unwrap_or_default();
        let mut child =
            Command::new(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(lost)?;
        let (Some(words), Some(numbers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(command, "no pipes"));
        };
        let mut numbers = BufReader::with_capacity(1 << 20, numbers);
        let mut vocab = [0; 4];
        numbers.read_exact(&mut vocab).map_err(lost)?;
        let vocab = u32::from_le_bytes(vocab) as usize;
        Ok(Self { child, words, numbers, len: 0, bytes: vec![0; 4 * vocab], logits: Vec::new() })
    }

    fn say(&mut self, line: &str) -> Run<()> {
        Ok(writeln!(self.words, "{line}").map_err(|error| failed("peer", error))?)
    }
}

impl Decoder for Peer {
    fn prefill(&mut self, ids: &[u32], _: &[f32], _: &Stop) -> Run<&[f32]> {
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        self.say(&format!("append {}", words.join(" ")))?;
        self.numbers.read_exact(&mut self.bytes).map_err(|error| failed("peer", error))?;
        self.len += ids.len();
        self.logits.clear();
        self.logits.extend(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(&self.logits)
    }

    fn step(&mut self, id: u32, stop: &Stop) -> Run<&[f32]> {
        self.prefill(&[id], &[], stop)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        // What is lost is seen at the next token.
        let _ = self.say(&format!("truncate {len}"));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
