//! Conversations that were held elsewhere: messages of any role in any number and order, to the
//! form that the family's templates take.

pub use crate::answer::Picture;
use crate::error::Result;
use crate::prompt::{Message, Part, Role};
use crate::stop::Run;

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

/// What `build` makes of `messages`, or, where it refuses a late system message, of them with that
/// at the start.
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
    use crate::error::Error;

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
