//! `{% generation %}`, by which transformers finds an assistant's tokens in training: here its body counts.
//!
//! minijinja has no such tag. A `with` without variables is what it does to a prompt: the body, in a scope of
//! its own. The tags are found as jinja2's lexer finds them, so that the same letters in a text, a string, a
//! comment or a `raw` block stay as they are, and the whitespace around a tag is still the engine's to trim.

/// `source` with its generation blocks as plain scopes.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let len = match from.as_bytes().get(1) {
            Some(b'#') => from.find("#}").map_or(from.len(), |end| end + 2),
            Some(b'{') => end_of_expression(from, "}}"),
            Some(b'%') => match tag(from) {
                Some(Tag { name: name @ ("generation" | "endgeneration"), start, end, .. }) => {
                    out.push_str(&from[..start]);
                    out.push_str(if name == "generation" { "with" } else { "endwith" });
                    out.push_str(&from[start + name.len()..end]);
                    rest = &from[end..];
                    continue;
                }
                Some(Tag { name: "raw", end, .. }) => end + end_of_raw(&from[end..]),
                _ => end_of_expression(from, "%}"),
            },
            _ => 1,
        };
        out.push_str(&from[..len]);
        rest = &from[len..];
    }
    out.push_str(rest);
    out
}

/// A tag of one word.
struct Tag<'a> {
    name: &'a str,
    /// Where the word begins.
    start: usize,
    /// Where the tag ends.
    end: usize,
}

/// The tag that `text` begins with, if it is one word and nothing else.
fn tag(text: &str) -> Option<Tag<'_>> {
    let inside = text.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    let start = text.len() - inside.len();
    let name = &inside[..inside.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inside.len())];
    let after = inside[name.len()..].trim_start();
    let after = after.strip_prefix(['-', '+']).unwrap_or(after).strip_prefix("%}")?;
    Some(Tag { name, start, end: text.len() - after.len() })
}

/// Length of the expression or statement that `text` begins with: quotes and braces may hold its end marker.
fn end_of_expression(text: &str, marker: &str) -> usize {
    let mut quote = None;
    let mut braces = 0_usize;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, _) if braces == 0 && text[i..].starts_with(marker) => return i + marker.len(),
            (None, '{') => braces += 1,
            (None, '}') => braces = braces.saturating_sub(1),
            (None, _) => {}
        }
    }
    text.len()
}

/// Length of a raw block's body and its end tag.
fn end_of_raw(text: &str) -> usize {
    text.match_indices("{%")
        .find_map(|(at, _)| tag(&text[at..]).filter(|t| t.name == "endraw").map(|t| at + t.end))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_replaced_with_any_whitespace_control() {
        for (open, close) in [("{%", "%}"), ("{%-", "-%}"), ("{%+", "%}"), ("{%-\n", "\t-%}")] {
            let source = format!("a{open} generation {close}b{open} endgeneration {close}c");
            let expected = format!("a{open} with {close}b{open} endwith {close}c");
            assert_eq!(without_generation_tags(&source), expected);
        }
    }

    #[test]
    fn the_same_letters_elsewhere_stay() {
        for source in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{{ {'a': {'b': '}}'}} ~ '{% generation %}' }}",
            "{% set x = '%}{% generation %}' %}",
            "{% set x = 'it\\'s {% generation %}' %}",
            "{%- raw -%}{% generation %}{{ {%+ endraw %}",
            "{% generations %}{% generation x %}{ % generation %}",
            "{% if add_generation_prompt %}é{",
        ] {
            assert_eq!(without_generation_tags(source), source);
        }
        assert_eq!(
            without_generation_tags("{% raw %}{{{% endraw %}{% generation %}"),
            "{% raw %}{{{% endraw %}{% with %}"
        );
    }
}
