//! The filter `tojson` as transformers has it: Python's `json.dumps`, with its options and separators.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::moment::current;

type Rendered<T> = Result<T, Error>;

const PARAMETERS: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, Rest(positional): Rest<Value>, named: Kwargs) -> Rendered<String> {
    if positional.len() > PARAMETERS.len() {
        return Err(Error::new(ErrorKind::TooManyArguments, "tojson: at most 4 options"));
    }
    let mut options = [const { None }; PARAMETERS.len()];
    for (i, name) in PARAMETERS.into_iter().enumerate() {
        let given: Option<Value> = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => named.get(name)?,
        };
        options[i] = given.filter(|v| !v.is_none() && !v.is_undefined());
    }
    named.assert_all_used()?;
    let [ensure_ascii, indent, separators, sort_keys] = options;
    let indent = indent.map(|indent| indentation(&indent)).transpose()?;
    let (item, key) = match separators {
        Some(pair) => (text_at(&pair, 0)?, text_at(&pair, 1)?),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let is_true = |option: Option<Value>| option.is_some_and(|v| v.is_true());
    let mut writer = Writer {
        out: String::new(),
        ensure_ascii: is_true(ensure_ascii),
        indent,
        item,
        key,
        sort_keys: is_true(sort_keys),
        guards: current().guards,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// What one level is indented by: a text, or a number of spaces.
fn indentation(value: &Value) -> Rendered<String> {
    const MOST: i64 = 64;
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let spaces = if value.kind() == ValueKind::Bool { Some(i64::from(value.is_true())) } else { value.as_i64() };
    let spaces = spaces.filter(|&n| n <= MOST);
    let spaces = spaces.ok_or_else(|| invalid(format!("tojson: indent is {value}, {MOST} at most")))?;
    Ok(" ".repeat(usize::try_from(spaces).unwrap_or(0)))
}

fn text_at(pair: &Value, index: usize) -> Rendered<String> {
    let found = pair.get_item_by_index(index)?;
    let text = found.as_str().map(str::to_owned);
    text.ok_or_else(|| invalid(format!("tojson: separators are {pair}, two texts needed")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    guards: (char, char),
}

impl Writer {
    /// Deeper values than anybody's messages are refused before they fill the stack.
    const DEEPEST: usize = 64;

    fn value(&mut self, value: &Value, depth: usize) -> Rendered<()> {
        if depth > Self::DEEPEST {
            return Err(invalid(format!("tojson: nested more than {} deep", Self::DEEPEST)));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list(['[', ']'], items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((name(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list(['{', '}'], entries.into_iter(), depth, |writer, (key, value)| {
                    writer.text(&key);
                    writer.out.push_str(&writer.key.clone());
                    writer.value(&value, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T) -> Rendered<()>,
    ) -> Rendered<()> {
        self.out.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                self.out.push_str(&self.item.clone());
            }
            empty = false;
            self.line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                // Spelled out it could not be taken out again.
                c if (self.guards.0..=self.guards.1).contains(&c) => self.out.push(c),
                '\0'..='\u{1f}' => self.escape(c),
                '\u{7f}'.. if self.ensure_ascii => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        // Python leaves DEL alone.
        if c == '\u{7f}' {
            return self.out.push(c);
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// A key, which Python makes a text of.
fn name(key: &Value) -> Rendered<String> {
    match key.kind() {
        ValueKind::String => Ok(key.to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => number(key),
        kind => Err(invalid(format!("tojson: a key of type {kind} is not JSON"))),
    }
}

/// A number as Python's `repr` has it.
fn number(value: &Value) -> Rendered<String> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let float = f64::try_from(value.clone())?;
    if !float.is_finite() {
        let name = if float.is_nan() { "NaN" } else { "Infinity" };
        return Ok(if float < 0.0 { format!("-{name}") } else { name.to_owned() });
    }
    let shortest = format!("{float:?}");
    // Python writes an exponent's sign, and two digits at least.
    Ok(match shortest.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => shortest,
    })
}
