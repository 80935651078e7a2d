//! OpenAI's messages to a conversation: an optional system message, then questions and answers in turn.

use axum::body::Bytes;
use serde::Deserialize;

use crate::error::{ApiError, Result};
use crate::images;
use crate::options::Options;
use crate::worker::{Conversation, Turn};

#[derive(Deserialize)]
pub struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "content: neither a text nor an array of parts with a type each")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

impl Message {
    pub fn text(role: &str, text: String) -> Self {
        Self { role: role.into(), content: Some(Content::Text(text)) }
    }
}

/// What is there is decided by `type`, below, for errors that name it.
#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
    image_url: Option<ImageUrl>,
    detail: Option<String>,
}

/// Chat completions have an object here, responses a string.
#[derive(Deserialize)]
#[serde(untagged, expecting = "image_url: neither a URL nor an object with a url")]
enum ImageUrl {
    Url(String),
    Object { url: String, detail: Option<String> },
}

/// Whose turn it is.
#[derive(PartialEq)]
enum Expected {
    Anything,
    Question,
    Answer,
}

/// The last message must be a question. `name` is the field that they came in; `split` overrides what the pictures' `detail` says.
pub fn conversation(name: &str, messages: &[Message], split: Option<bool>, limits: &Options) -> Result<Conversation> {
    let mut conversation = Conversation::default();
    let mut expected = Expected::Anything;
    let mut image_count = 0;
    for (i, message) in messages.iter().enumerate() {
        let at = format!("{name}[{i}]");
        let turn = turn(&at, message, &mut image_count, limits)?;
        match (message.role.as_str(), &expected) {
            ("system" | "developer", Expected::Anything) => {
                conversation.system = Some(text_only(&at, turn)?);
                expected = Expected::Question;
            }
            ("user", Expected::Anything | Expected::Question) => {
                if turn.prompt.is_empty() {
                    return Err(ApiError::invalid(format!("{at}.content"), "no text"));
                }
                conversation.turns.push(Turn { split: split.unwrap_or(turn.split), ..turn });
                expected = Expected::Answer;
            }
            ("assistant", Expected::Answer) => {
                let answer = text_only(&at, turn)?;
                conversation.turns.last_mut().expect("a question came before").answer = answer;
                expected = Expected::Question;
            }
            (role, _) => {
                let message = format!(
                    "\"{}\" here; system (or developer) may come first, then user and assistant take turns",
                    role.chars().take(40).collect::<String>()
                );
                return Err(ApiError::invalid(format!("{at}.role"), message));
            }
        }
    }
    if expected != Expected::Answer {
        return Err(ApiError::invalid(name, "the last one must be the user's"));
    }
    Ok(conversation)
}

fn text_only(at: &str, turn: Turn) -> Result<String> {
    if turn.images.is_empty() { Ok(turn.prompt) } else { Err(ApiError::invalid(at, "pictures come from the user")) }
}

/// The texts, a line each, and the pictures, which the family was trained to see before the text.
fn turn(at: &str, message: &Message, image_count: &mut usize, limits: &Options) -> Result<Turn> {
    let mut turn = Turn { split: true, ..Turn::default() };
    let parts = match &message.content {
        None => return Err(ApiError::invalid(format!("{at}.content"), "missing")),
        Some(Content::Text(text)) => return Ok(Turn { prompt: text.clone(), ..turn }),
        Some(Content::Parts(parts)) => parts,
    };
    let mut texts = Vec::new();
    let mut details = Vec::new();
    for (j, part) in parts.iter().enumerate() {
        let at = format!("{at}.content[{j}]");
        match (part.r#type.as_str(), &part.text, &part.image_url) {
            ("text" | "input_text" | "output_text", Some(text), _) => texts.push(text.as_str()),
            ("image_url" | "input_image", _, Some(image)) => {
                let (at, url, detail) = match image {
                    ImageUrl::Url(url) => (format!("{at}.image_url"), url, &part.detail),
                    ImageUrl::Object { url, detail } => (format!("{at}.image_url.url"), url, detail),
                };
                *image_count += 1;
                turn.images.push(picture(&at, url, *image_count, limits)?);
                details.push(detail.as_deref());
            }
            ("text" | "input_text" | "output_text", None, _) => {
                return Err(ApiError::invalid(format!("{at}.text"), "missing"));
            }
            ("image_url" | "input_image", _, None) => {
                return Err(ApiError::invalid(format!("{at}.image_url"), "missing"));
            }
            (kind, _, _) => {
                let kind: String = kind.chars().take(40).collect();
                return Err(ApiError::invalid(
                    format!("{at}.type"),
                    format!("\"{kind}\" is neither a text nor an image_url"),
                ));
            }
        }
    }
    turn.prompt = texts.join("\n");
    // One tile a picture, if that is enough for each of them.
    turn.split = details.is_empty() || details.iter().any(|detail| *detail != Some("low"));
    Ok(turn)
}

fn picture(at: &str, url: &str, count: usize, limits: &Options) -> Result<Bytes> {
    if count > limits.max_images {
        return Err(ApiError::invalid(at, format!("at most {} pictures accepted", limits.max_images)));
    }
    images::checked(at, images::from_url(at, url, limits)?, limits)
}
