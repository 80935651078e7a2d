//! Whether a template wants a message's content as a list of parts or as one text, found out by
//! trying.
//!
//! The family's own templates go through a list. One that came from a text model joins or strips a
//! text, and would fail on a list, or print it as Python does; it gets the parts in one text,
//! pictures as their markers.

use minijinja::value::Value;

use super::message::{IMAGE_TOKEN, Message, Part, Role};
use crate::error::{Error, Result};

/// The form of each role's contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms {
    system: Form,
    user: Form,
    assistant: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Parts,
    Text,
}

const BOTH: [Form; 2] = [Form::Parts, Form::Text];

/// Words that no template has by itself.
const SYSTEM: &str = "zqvsystem";
const QUESTION: &str = "zqvquestion";
const ANSWER: &str = "zqvanswer";
const NEXT: &str = "zqvnext";

impl Forms {
    /// The forms in which `render` loses nothing. Lists come first, as the reference's users write
    /// them.
    pub(super) fn find(render: impl Fn(&[Message], Forms) -> Result<String>) -> Result<Self> {
        let question = Message::question(1, QUESTION);
        let mut forms = Self::default();

        let mut first_error = None;
        let found = BOTH.into_iter().find(|&form| {
            match render(std::slice::from_ref(&question), Self { user: form, ..forms }) {
                Ok(text) => says(&text, QUESTION) && text.matches(IMAGE_TOKEN).count() == 1,
                Err(error) => {
                    first_error.get_or_insert(error);
                    false
                }
            }
        });
        // A template that loses the picture would make the model answer blindly.
        let lost = || Error::invalid_model("the template loses an image or the text");
        forms.user = found.ok_or_else(|| first_error.unwrap_or_else(lost))?;

        let system = [Message::text(Role::System, SYSTEM), question.clone()];
        forms.system = best(|form| render(&system, Self { system: form, ..forms }), SYSTEM);
        let answered = [question, Message::text(Role::Assistant, ANSWER), Message::text(Role::User, NEXT)];
        forms.assistant = best(|form| render(&answered, Self { assistant: form, ..forms }), ANSWER);
        Ok(forms)
    }

    /// `messages` as the template takes them.
    pub(super) fn messages(self, messages: &[Message]) -> Value {
        let turn = |message: &Message| {
            let form = match message.role {
                Role::System => self.system,
                Role::User => self.user,
                Role::Assistant => self.assistant,
            };
            let content = match form {
                Form::Parts => message.content.iter().map(part).collect::<Vec<_>>().into(),
                Form::Text => Value::from(joined(&message.content)),
            };
            Value::from_pairs([("role", Value::from(message.role.name())), ("content", content)])
        };
        messages.iter().map(turn).collect::<Vec<_>>().into()
    }
}

fn part(part: &Part) -> Value {
    match part {
        Part::Image => Value::from_pairs([("type", "image")]),
        Part::Text { text } | Part::Answer { text, .. } => Value::from_pairs([("type", "text"), ("text", text)]),
    }
}

/// The pictures' markers and the texts one after the other, as the family's templates write them.
fn joined(content: &[Part]) -> String {
    let text = |part| match part {
        &Part::Image => IMAGE_TOKEN,
        Part::Text { text } | Part::Answer { text, .. } => text.as_str(),
    };
    content.iter().map(text).collect()
}

/// The form that shows `word`. A template may leave out what a role says in either form, or refuse
/// the role: then the one that is at least rendered.
fn best(render: impl Fn(Form) -> Result<String>, word: &str) -> Form {
    let rendered = BOTH.map(|form| (form, render(form)));
    let with = |wanted: &dyn Fn(&str) -> bool| {
        rendered.iter().find(|(_, text)| text.as_ref().is_ok_and(|t| wanted(t))).map(|(form, _)| *form)
    };
    with(&|text| says(text, word)).or_else(|| with(&|text| !text.to_lowercase().contains(word))).unwrap_or_default()
}

/// Whether `word` is there as itself, not inside of a list that was printed or made JSON.
fn says(rendered: &str, word: &str) -> bool {
    let rendered = rendered.to_lowercase();
    rendered
        .match_indices(word)
        .any(|(at, _)| !["'text': '", "\"text\": \"", "\"text\":\""].iter().any(|p| rendered[..at].ends_with(p)))
}
