//! A session is asked a whole conversation.

use super::Session;
use crate::answer::{Answer, OnText, Picture, Request};
use crate::conversation::turns;
use crate::error::{Error, Result};
use crate::prompt::{Message, Part, Role};

impl Session {
    /// Answers a whole conversation, whoever held it; it becomes the session's. What the KV cache
    /// holds of it is used.
    ///
    /// `pictures` are those of the messages' [`Part::Image`], in order; they stay in their places
    /// between the texts. Messages of one role in a row become one turn, their texts on lines of
    /// their own; so system messages at the start become one. A later one stays in its place where
    /// the template renders it; where the template refuses it there, it goes to the start.
    ///
    /// A last message of the assistant's that has text is continued, as the reference's
    /// `continue_final_message` does: the answer is the rest of it. Without text it only says whose
    /// turn it is.
    ///
    /// Of `request`, the prompt, the system prompt and the images must be empty; `split` is the
    /// pictures' own. An error, or a stop before the first token, leaves the session as it was.
    pub fn converse(
        &mut self,
        messages: &[Message],
        pictures: &[Picture<'_>],
        request: &Request<'_>,
        on_text: &mut OnText<'_>,
    ) -> Result<Answer> {
        for (name, used) in [
            ("prompt", !request.prompt.is_empty()),
            ("system_prompt", request.system_prompt.is_some()),
            ("images", !request.images.is_empty()),
        ] {
            if used {
                return Err(Error::invalid_argument(format!("{name}: given beside messages, which have their own")));
            }
        }
        let places = messages.iter().flat_map(|message| &message.content).filter(|part| **part == Part::Image).count();
        if places != pictures.len() {
            let given = pictures.len();
            return Err(Error::invalid_argument(format!("pictures: {given} given, the messages have {places}")));
        }
        let mut messages = turns(messages);
        if messages.last().is_some_and(|last| last.role == Role::Assistant && !has_text(last)) {
            messages.pop();
        }
        if let Some(i) = messages.iter().position(|m| m.role != Role::User && m.content.contains(&Part::Image)) {
            let role = messages[i].role.name();
            return Err(Error::invalid_argument(format!(
                "messages: a picture of the {role}'s; the user shows pictures"
            )));
        }
        match messages.last() {
            None => Err(Error::invalid_argument("messages: none")),
            Some(last) if last.content.iter().all(|part| *part != Part::Image) && !has_text(last) => {
                Err(Error::invalid_argument("messages: the last one is empty"))
            }
            Some(_) => self.answer_messages(messages, pictures, request, on_text),
        }
    }
}

fn has_text(message: &Message) -> bool {
    message.texts().any(|text| !text.is_empty())
}
