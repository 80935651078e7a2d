//! The template engine: minijinja, set up to render as transformers has jinja2 render chat templates.

use std::fmt;

use chrono::NaiveDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, ErrorKind as JinjaKind, State};
use minijinja_contrib::pycompat;

use super::generation::without_generation_tags;
use super::moment::{Moment, current};
use super::tojson::tojson;
use crate::error::{Error, Result};

type Rendered<T> = std::result::Result<T, minijinja::Error>;

/// Bounds what a damaged or hostile template can do, in minijinja's instructions.
const FUEL: u64 = 1_000_000;

const NAME: &str = "chat_template";

/// A compiled template and the variables that are the same for every conversation.
pub(super) struct Template {
    environment: Environment<'static>,
    /// For error messages only: no text of a conversation is looked for here.
    source: String,
}

impl Template {
    /// Compiles `source`; `variables` are the checkpoint's special tokens by name.
    pub(super) fn new(source: &str, variables: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        // As transformers compiles templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::internal(one_line(&e)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("tojson", tojson);
        environment.add_filter("length", length);
        environment.add_filter("count", length);
        environment.add_test("sequence", is_sequence);
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        for (name, token) in variables {
            environment.add_global(name, token);
        }
        // The reference passes both, and templates ask `tools is not none`.
        environment.add_global("tools", Value::from(()));
        environment.add_global("documents", Value::from(()));
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| Error::invalid_model(one_line(&e)))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// Whether the template's own text has `c` in it.
    pub(super) fn contains(&self, c: char) -> bool {
        self.source.contains(c)
    }

    /// Renders `messages`, which have the form of the reference's; `open` for an answer to follow.
    pub(super) fn render(&self, messages: Value, open: bool, moment: Moment) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|e| Error::internal(one_line(&e)))?;
        let context = Value::from_pairs([("messages", messages), ("add_generation_prompt", Value::from(open))]);
        let _set = moment.enter();
        template.render(context).map_err(|e| match raised(&e) {
            // The template refuses this conversation, and says why.
            Some(Raised(message)) => Error::invalid_argument(format!("chat template: {message}")),
            None => Error::invalid_model(format!("chat template: {}", one_line(&e))),
        })
    }
}

fn one_line(error: &minijinja::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What a template said with `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Macros and imported blocks wrap the error that was raised inside.
fn raised(error: &minijinja::Error) -> Option<&Raised> {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(raised) = error.downcast_ref() {
            return Some(raised);
        }
        next = error.source();
    }
    None
}

fn raise_exception(message: Option<Value>, named: Kwargs) -> Rendered<Value> {
    let message = argument("raise_exception", "message", message, &named)?.to_string();
    Err(minijinja::Error::new(JinjaKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The first argument of a function, which Python takes by its place or its name.
fn argument(function: &str, name: &str, positional: Option<Value>, named: &Kwargs) -> Rendered<Value> {
    let value = match positional {
        Some(value) => Some(value),
        None => named.get(name)?,
    };
    named.assert_all_used()?;
    value.ok_or_else(|| minijinja::Error::new(JinjaKind::MissingArgument, format!("{function}() needs `{name}`")))
}

/// Python's `datetime.now().strftime`, local time without a zone.
fn strftime_now(format: Option<Value>, named: Kwargs) -> Rendered<String> {
    let format = argument("strftime_now", "format", format, &named)?.to_string();
    strftime(current().now, &format)
        .map_err(|_| minijinja::Error::new(JinjaKind::InvalidOperation, format!("strftime_now: {format:?}")))
}

/// Two of Python's letters mean something else to chrono: `%f` is microseconds, and a time without a zone
/// has an empty `%z` and `%Z`.
fn strftime(now: NaiveDateTime, format: &str) -> std::result::Result<String, fmt::Error> {
    use fmt::Write;
    let mut translated = String::with_capacity(format.len());
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('f')) => translated.push_str("%6f"),
            ('%', Some('z' | 'Z')) => {}
            // Python prints a last `%` as it is.
            ('%', None) => translated.push_str("%%"),
            ('%', Some(letter)) => translated.extend(['%', letter]),
            _ => translated.push(c),
        }
    }
    let mut text = String::new();
    write!(text, "{}", now.format(&translated))?;
    Ok(text)
}

/// In jinja2 what is not defined has no length; here it is an error without this.
fn length(value: &Value) -> Rendered<usize> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let message = format!("cannot calculate the length of a value of type {}", value.kind());
        minijinja::Error::new(JinjaKind::InvalidOperation, message)
    })
}

/// jinja2 calls sequence whatever has a length and can be indexed: a string and a mapping too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.try_iter().is_ok()
}

/// Methods of Python's strings that minijinja-contrib has not; the rest is its own.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Rendered<Value> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    let one = || -> Rendered<&str> {
        match args {
            [separator] => separator.as_str().filter(|s| !s.is_empty()),
            _ => None,
        }
        .ok_or_else(|| minijinja::Error::new(JinjaKind::InvalidOperation, format!("{method}() needs one text")))
    };
    match method {
        "removeprefix" => one().map(|s| text.strip_prefix(s).unwrap_or(text).into()),
        "removesuffix" => one().map(|s| text.strip_suffix(s).unwrap_or(text).into()),
        "partition" => one().map(|s| match text.split_once(s) {
            Some((head, tail)) => texts(&[head, s, tail]),
            None => texts(&[text, "", ""]),
        }),
        "rpartition" => one().map(|s| match text.rsplit_once(s) {
            Some((head, tail)) => texts(&[head, s, tail]),
            None => texts(&["", "", text]),
        }),
        "rsplit" => rsplit(text, args),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn texts(texts: &[&str]) -> Value {
    texts.iter().copied().map(Value::from).collect::<Vec<_>>().into()
}

fn rsplit(text: &str, args: &[Value]) -> Rendered<Value> {
    let (Rest(positional), named): (Rest<Value>, Kwargs) = minijinja::value::from_args(args)?;
    let mut positional = positional.into_iter();
    let separator = match positional.next() {
        Some(separator) => Some(separator),
        None => named.get("sep")?,
    };
    let most: Option<i64> = match positional.next() {
        Some(most) => most.as_i64(),
        None => named.get("maxsplit")?,
    };
    named.assert_all_used()?;
    let pieces = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<&str> = match separator.as_ref().and_then(Value::as_str) {
        Some("") => return Err(minijinja::Error::new(JinjaKind::InvalidOperation, "rsplit(): empty separator")),
        Some(separator) => text.rsplitn(pieces, separator).collect(),
        None => whitespace_from_the_end(text, pieces),
    };
    parts.reverse();
    Ok(texts(&parts))
}

/// The words of `text` from the last to the first, in at most `pieces`.
fn whitespace_from_the_end(text: &str, pieces: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let cut = if parts.len() + 1 < pieces { rest.rfind(char::is_whitespace) } else { None };
        let Some(at) = cut else {
            parts.push(if parts.len() + 1 < pieces { rest } else { rest.trim_end() });
            break;
        };
        parts.push(rest[at..].trim_start());
        rest = rest[..at].trim_end();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let now = chrono::NaiveDate::from_ymd_opt(2024, 7, 6).unwrap().and_hms_micro_opt(9, 5, 3, 42).unwrap();
        Template::new(source, vec![("bos_token", "<s>".into())])?.render(
            Value::from(()),
            true,
            Moment { guards: ('\u{E000}', '\u{E000}'), now },
        )
    }

    #[test]
    fn what_a_template_raises_reaches_the_caller_from_a_macro_too() {
        for source in [
            "{{ raise_exception('Roles must\nalternate') }}",
            "{% macro m() %}{{ raise_exception(message='Roles must alternate') }}{% endmacro %}{{ m() }}",
        ] {
            let error = render(source).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument);
            assert_eq!(error.message(), "chat template: Roles must alternate", "{source}");
        }
    }

    #[test]
    fn a_time_is_written_as_python_writes_it() {
        let shown = render("{{ strftime_now('%d %b %Y %H:%M:%S.%f|%z%Z|%-d %e %% %j %') }}").unwrap();
        assert_eq!(shown, "06 Jul 2024 09:05:03.000042||6  6 % 188 %");
        assert!(render("{{ strftime_now('%Q') }}").is_err());
    }

    #[test]
    fn python_methods_are_there() {
        let cases = [
            ("'a<b>'.removesuffix('<b>')", "a"),
            ("'xay'.removeprefix('x')", "ay"),
            ("'a-b-c'.partition('-')[2]", "b-c"),
            ("'a-b-c'.rpartition('-')[0]", "a-b"),
            ("'a-b-c'.rsplit('-', 1)[0]", "a-b"),
            ("' a  b c '.rsplit(None, 1)[0]", " a  b"),
            ("' a  b c '.rsplit()|length", "3"),
            ("nothing|length", "0"),
            ("'abc' is sequence and {} is sequence and 'abc' is iterable", "True"),
            ("tools is none and tools is defined", "True"),
            ("bos_token", "<s>"),
        ];
        for (expression, expected) in cases {
            assert_eq!(render(&format!("{{{{ {expression} }}}}")).unwrap(), expected, "{expression}");
        }
    }
}
