//! What a session is asked, and what it answers.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::image::ImageView;
use crate::metrics::Metrics;
use crate::sampler::Sampling;
use crate::stop::StopReason;

/// Takes text as it is made, in whole code points; `Break` stops the generation.
pub type OnText<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// The longest answer where a request does not say, in tokens.
pub const DEFAULT_MAX_NEW_TOKENS: usize = 256;

/// One question.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// May be empty where there is a picture: the family answers with a caption.
    pub prompt: &'a str,
    /// Only with the first question of a conversation.
    pub system_prompt: Option<&'a str>,
    pub images: &'a [ImageView<'a>],
    /// Tile budget: the longest edge of a picture before it is split, in pixels. `None`: the
    /// checkpoint's.
    pub longest_edge: Option<usize>,
    /// Split large pictures into tiles. `false`: one tile a picture.
    pub split: bool,
    /// 0: [`DEFAULT_MAX_NEW_TOKENS`].
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: &'a [&'a str],
    /// Covers everything from the call on.
    pub timeout: Option<Duration>,
    /// The special tokens of the answer are in its text, but for those that end it and padding.
    /// Checkpoints that write a document's layout do so in such tokens.
    pub keep_special_tokens: bool,
}

impl<'a> Request<'a> {
    /// A greedy, unhurried question about `images`.
    pub fn new(prompt: &'a str, images: &'a [ImageView<'a>]) -> Self {
        Self {
            prompt,
            system_prompt: None,
            images,
            longest_edge: None,
            split: true,
            max_new_tokens: 0,
            sampling: Sampling::default(),
            stop: &[],
            timeout: None,
            keep_special_tokens: false,
        }
    }
}

/// A picture of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    pub view: ImageView<'a>,
    /// Split it into tiles if it is large. `false`: one tile.
    pub split: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    EndOfText,
    /// `max_new_tokens`, or the context, is used up.
    MaxTokens,
    StopString,
    Cancelled,
    Timeout,
}

impl From<StopReason> for FinishReason {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled => Self::Cancelled,
            StopReason::Timeout => Self::Timeout,
        }
    }
}

impl FinishReason {
    /// The lower-case name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::MaxTokens => "max_tokens",
            Self::StopString => "stop_string",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }
}

/// An answer, complete or as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    /// What the model generated, without the token that ends an answer.
    pub token_ids: Vec<u32>,
    pub prompt_token_ids: Vec<u32>,
    pub finish_reason: FinishReason,
    pub metrics: Metrics,
}
