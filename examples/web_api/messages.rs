//! OpenAI's messages to a conversation of the library's.

use serde::Deserialize;
use serde_json::{Map, Value};
use smolvlm::conversation::turns;
use smolvlm::prompt::{Message as Turn, Part as Piece, Role};

use crate::error::{ApiError, Result};
use crate::images;
use crate::options::Options;
use crate::worker::{Conversation, Picture};

/// Fields that say nothing to a model without names and tools are ignored: `name`, `tool_calls`,
/// `audio`.
#[derive(Deserialize)]
pub struct Message {
    role: Option<String>,
    /// Of an item of a response's input that is no message.
    r#type: Option<String>,
    content: Option<Content>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "content: neither a text nor an array of parts with a type each")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

impl Message {
    pub fn text(role: &str, text: String) -> Self {
        Self { role: Some(role.into()), r#type: None, content: Some(Content::Text(text)), refusal: None }
    }
}

/// What is there is decided by `type`, below, for errors that name it.
#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
    refusal: Option<String>,
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

/// Items of a response's input that an earlier answer with tools left there.
const READ_PAST: [&str; 4] = ["function_call", "function_call_output", "reasoning", "item_reference"];

/// `name` is the field that the messages came in; `split` overrides what the pictures' `detail`
/// says.
pub fn conversation(name: &str, messages: &[Message], split: Option<bool>, limits: &Options) -> Result<Conversation> {
    let mut conversation = Conversation::default();
    for (i, message) in messages.iter().enumerate() {
        let at = format!("{name}[{i}]");
        let Some(role) = role(&at, message)? else { continue };
        let content = match (&message.content, &message.refusal) {
            (Some(content), _) => content,
            (None, Some(refusal)) => &Content::Text(refusal.clone()),
            // It said nothing: it called a tool, or was cut.
            (None, None) if role == Role::Assistant => continue,
            (None, None) => return Err(ApiError::invalid(format!("{at}.content"), "missing")),
        };
        conversation.take(&at, role, content, split, limits)?;
    }
    if conversation.messages.is_empty() {
        return Err(ApiError::invalid(name, "no message to answer"));
    }
    conversation.messages = turns(&conversation.messages);
    conversation.messages.iter_mut().for_each(pictures_first);
    Ok(conversation)
}

/// `None` for what is read past: the model calls no tools, so what they said is nothing that it
/// asked for.
fn role(at: &str, message: &Message) -> Result<Option<Role>> {
    let shown = |text: &str| text.chars().take(40).collect::<String>();
    match message.role.as_deref() {
        Some("system" | "developer") => Ok(Some(Role::System)),
        Some("user") => Ok(Some(Role::User)),
        Some("assistant") => Ok(Some(Role::Assistant)),
        Some("tool" | "function") => Ok(None),
        Some(role) => {
            let message = format!("\"{}\" is none of system, developer, user, assistant and tool", shown(role));
            Err(ApiError::invalid(format!("{at}.role"), message))
        }
        None => match message.r#type.as_deref() {
            Some(kind) if READ_PAST.contains(&kind) => Ok(None),
            Some(kind) if kind != "message" => {
                Err(ApiError::invalid(format!("{at}.type"), format!("\"{}\" is not accepted", shown(kind))))
            }
            _ => Err(ApiError::invalid(format!("{at}.role"), "missing")),
        },
    }
}

/// The family was trained to see pictures before the text. Many clients put the question first, as
/// OpenAI's own examples do: where all pictures of a turn stand behind its text, they go before it.
/// Between texts they have a place of their own.
fn pictures_first(turn: &mut Turn) {
    let is_picture = |piece: &Piece| *piece == Piece::Image;
    let texts = turn.content.iter().take_while(|piece| !is_picture(piece)).count();
    if turn.role == Role::User && turn.content[texts..].iter().all(is_picture) {
        turn.content.rotate_left(texts);
    }
}

impl Conversation {
    /// Each part becomes a message; those of one role in a row are put together later.
    fn take(&mut self, at: &str, role: Role, content: &Content, split: Option<bool>, limits: &Options) -> Result<()> {
        let parts = match content {
            Content::Text(text) => {
                self.messages.push(Turn::text(role, text));
                return Ok(());
            }
            Content::Parts(parts) => parts,
        };
        if parts.is_empty() {
            self.messages.push(Turn::text(role, ""));
        }
        for (j, part) in parts.iter().enumerate() {
            let at = format!("{at}.content[{j}]");
            match (part.r#type.as_str(), &part.text, &part.refusal, &part.image_url) {
                ("text" | "input_text" | "output_text", Some(text), _, _) => {
                    self.messages.push(Turn::text(role, text));
                }
                ("refusal", _, Some(refusal), _) => self.messages.push(Turn::text(role, refusal)),
                ("image_url" | "input_image", _, _, Some(image)) => {
                    if role != Role::User {
                        return Err(ApiError::invalid(at, "pictures come from the user"));
                    }
                    let (at, url, detail) = match image {
                        ImageUrl::Url(url) => (format!("{at}.image_url"), url, &part.detail),
                        ImageUrl::Object { url, detail } => (format!("{at}.image_url.url"), url, detail),
                    };
                    // One tile, if that is enough.
                    let split = split.unwrap_or(detail.as_deref() != Some("low"));
                    self.picture(&at, url, split, limits)?;
                }
                ("text" | "input_text" | "output_text", None, _, _) => {
                    return Err(ApiError::invalid(format!("{at}.text"), "missing"));
                }
                ("refusal", _, None, _) => return Err(ApiError::invalid(format!("{at}.refusal"), "missing")),
                ("image_url" | "input_image", _, _, None) => {
                    return Err(ApiError::invalid(format!("{at}.image_url"), "missing"));
                }
                (kind, _, _, _) => {
                    let kind: String = kind.chars().take(40).collect();
                    let message = format!("\"{kind}\" is neither a text nor an image_url");
                    return Err(ApiError::invalid(format!("{at}.type"), message));
                }
            }
        }
        Ok(())
    }

    fn picture(&mut self, at: &str, url: &str, split: bool, limits: &Options) -> Result<()> {
        if self.pictures.len() == limits.max_images {
            return Err(ApiError::invalid(at, format!("at most {} pictures accepted", limits.max_images)));
        }
        let file = images::checked(at, images::from_url(at, url, limits)?, limits)?;
        self.pictures.push(Picture { file, split });
        self.messages.push(Turn { role: Role::User, content: vec![Piece::Image] });
        Ok(())
    }
}

/// The field `name` of a request, a boolean; `null` is false.
pub fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool> {
    Ok(choice(fields, name)?.unwrap_or(false))
}

/// The same; `None` where it is left open.
fn choice(fields: &Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(ApiError::invalid(name, "true or false expected")),
    }
}

/// vLLM's fields for whose turn it is, which the last message says here, as in llama.cpp's server:
/// refused where they say something else.
pub fn check_turn(fields: &Map<String, Value>, conversation: &Conversation) -> Result<()> {
    let begun = conversation.messages.last().is_some_and(|last| {
        last.role == Role::Assistant && last.content.iter().any(|piece| *piece != Piece::Text { text: String::new() })
    });
    let contradicts = if begun {
        let message = "the last message is the assistant's, which is continued; leave it out, or end with the user's";
        [("continue_final_message", false, message), ("add_generation_prompt", true, message)]
    } else {
        [
            ("continue_final_message", true, "the last message is not the assistant's; only an answer is continued"),
            ("add_generation_prompt", false, "the last message is not the assistant's; its answer has to begin"),
        ]
    };
    for (name, wrong, message) in contradicts {
        if choice(fields, name)? == Some(wrong) {
            return Err(ApiError::invalid(name, message));
        }
    }
    Ok(())
}
