//! What a call is about, and what is to come back if it fails.

use crate::answer::{Picture, Request};
use crate::prompt::{Grid, Message, Role};

/// What is to be answered.
pub(super) enum Asked<'a> {
    /// The request's, after what was said before.
    Question,
    /// Turns in place of what was said before.
    Conversation { messages: Vec<Message>, pictures: &'a [Picture<'a>] },
}

impl Asked<'_> {
    /// Whether the answer goes on from one that has begun.
    pub(super) fn continues(&self) -> bool {
        match self {
            Self::Question => false,
            Self::Conversation { messages, .. } => messages.last().is_some_and(|m| m.role == Role::Assistant),
        }
    }

    pub(super) fn pictures<'a>(&'a self, request: &'a Request<'a>) -> Vec<Picture<'a>> {
        match self {
            Self::Question => request.images.iter().map(|&view| Picture { view, split: request.split }).collect(),
            Self::Conversation { pictures, .. } => pictures.to_vec(),
        }
    }
}

/// The conversation before the call.
pub(super) enum Before {
    /// It was the same, and so long.
    Shorter {
        messages: usize,
        grids: usize,
        image_values: usize,
    },
    Other {
        messages: Vec<Message>,
        grids: Vec<Grid>,
        image_rows: Vec<f32>,
    },
}
