//! Conversations that were held elsewhere: messages of any role in any number and order, to the form that the family's
//! templates take.

use crate::backend::Run;
use crate::error::{Error, Result};
use crate::image::ImageView;
use crate::prompt::{Message, Part, Role};
use crate::session::{Answer, OnText, Request, Session};

/// A picture of a conversation.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    pub view: ImageView<'a>,
    /// Split it into tiles if it is large. `false`: one tile.
    pub split: bool,
}

impl Session {
    /// Answers a whole conversation, whoever held it; it becomes the session's. What the KV cache holds of it is used.
    ///
    /// `pictures` are those of the messages' [`Part::Image`], in order; they stay in their places between the texts.
    /// Messages of one role in a row become one turn, their texts on lines of their own; so system messages at the start
    /// become one. A later one stays in its place where the template renders it; where the template refuses it there,
    /// it goes to the start.
    ///
    /// A last message of the assistant's that has text is continued, as the reference's `continue_final_message` does: the
    /// answer is the rest of it. Without text it only says whose turn it is.
    ///
    /// Of `request`, the prompt, the system prompt and the images must be empty; `split` is the pictures' own. An error, or
    /// a stop before the first token, leaves the session as it was.
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

/// Messages of one role in a row made one. Where two of their texts meet, a line ends between them.
pub fn turns(messages: &[Message]) -> Vec<Message> {
    let mut turns: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match turns.last_mut().filter(|last| last.role == message.role) {
            None => turns.push(message.clone()),
            Some(turn) if !message.content.is_empty() => join(turn, message),
            Some(_) => {}
        }
    }
    turns
}

fn join(turn: &mut Message, message: &Message) {
    // An empty text is no line.
    turn.content.retain(|part| !matches!(part, Part::Text { text } if text.is_empty()));
    let mut parts = message.content.iter();
    match (turn.content.last(), message.content.first()) {
        (Some(Part::Text { .. } | Part::Answer { .. }), Some(Part::Text { text })) => {
            if !text.is_empty() {
                turn.append(&format!("\n{text}"), Vec::new());
            }
            parts.next();
        }
        (Some(Part::Text { .. } | Part::Answer { .. }), Some(Part::Answer { text, markers })) => {
            turn.append("\n", Vec::new());
            turn.append(text, markers.clone());
            parts.next();
        }
        _ => {}
    }
    turn.content.extend(parts.cloned());
}

/// The turns with all system messages in one at the start.
fn system_first(messages: &[Message]) -> Vec<Message> {
    let (mut ordered, others): (Vec<Message>, Vec<Message>) =
        messages.iter().cloned().partition(|message| message.role == Role::System);
    ordered.extend(others);
    turns(&ordered)
}

/// What `build` makes of `messages`, or, where it refuses a late system message, of them with that at the start.
pub(crate) fn built<T>(messages: &mut Vec<Message>, build: impl Fn(&[Message]) -> Result<T>) -> Run<T> {
    let late = messages.iter().skip(1).any(|message| message.role == Role::System);
    match build(messages) {
        Err(_) if late => {
            let ordered = system_first(messages);
            let made = build(&ordered)?;
            *messages = ordered;
            Ok(made)
        }
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text { text: text.into() }
    }

    fn message(role: Role, content: &[Part]) -> Message {
        Message { role, content: content.to_vec() }
    }

    #[test]
    fn messages_in_a_row_become_one_turn() {
        use Role::{Assistant, System, User};
        let sent = [
            Message::text(System, "A."),
            Message::text(System, "B."),
            message(User, &[Part::Image]),
            message(User, &[text("")]),
            message(User, &[text("one"), Part::Image, text("two")]),
            message(User, &[text("three")]),
            message(User, &[Part::Image]),
            Message::text(Assistant, ""),
            Message::text(Assistant, "Yes."),
        ];
        let expected = [
            Message::text(System, "A.\nB."),
            message(User, &[Part::Image, text("one"), Part::Image, text("two\nthree"), Part::Image]),
            Message::text(Assistant, "Yes."),
        ];
        assert_eq!(turns(&sent), expected);
    }

    #[test]
    fn a_late_system_message_moves_only_where_it_is_refused() {
        let sent = [
            Message::text(Role::System, "A."),
            Message::text(Role::User, "one"),
            Message::text(Role::System, "B."),
            Message::text(Role::User, "two"),
        ];
        let mut messages = sent.to_vec();
        assert_eq!(built(&mut messages, |m| Ok(m.len())).ok(), Some(4));
        assert_eq!(messages, sent);
        let strict = |m: &[Message]| {
            if m.iter().skip(1).any(|m| m.role == Role::System) { Err(Error::internal("late")) } else { Ok(m.len()) }
        };
        assert_eq!(built(&mut messages, strict).ok(), Some(2));
        assert_eq!(messages, [Message::text(Role::System, "A.\nB."), Message::text(Role::User, "one\ntwo")]);
    }
}
