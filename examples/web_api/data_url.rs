//! Pictures in a text: `data:` URLs and plain base64, as clients write them.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;

/// How many clients leave the padding out, and some leave bits in the last letter, as other
/// decoders let them.
const FORGIVING: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);
/// A media type and its parameters are shorter. Behind it the picture is not searched for a marker.
const MAX_HEAD_BYTES: usize = 1024;
const MARKER: &str = ";base64,";

/// The bytes in a `data:` URL, or in base64 without one. What they are is for others to see: a
/// media type is not believed.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim_ascii();
    let is_url = text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
    match split(text) {
        Some((head, payload)) if is_base64(head) => base64(payload),
        Some((_, payload)) if is_url => Ok(percent_decode_str(payload).collect()),
        None if is_url => Err("a data URL without a comma; its form is data:image/jpeg;base64,...".into()),
        // Some leave `data:` out, and some the media type as well.
        _ => base64(text),
    }
}

/// What stands before and after the comma of a data URL. Parameters, such as a file's name, may
/// have commas of their own.
fn split(text: &str) -> Option<(&str, &str)> {
    let head = &text.as_bytes()[..text.len().min(MAX_HEAD_BYTES)];
    let marker = head.windows(MARKER.len()).position(|part| part.eq_ignore_ascii_case(MARKER.as_bytes()));
    let comma = marker.map(|at| at + MARKER.len() - 1).or_else(|| head.iter().position(|byte| *byte == b','))?;
    Some((&text[..comma], &text[comma + 1..]))
}

/// The standard has it as the last parameter; some write `;charset=utf-8` after it.
fn is_base64(head: &str) -> bool {
    head.split(';').skip(1).any(|parameter| parameter.trim_ascii().eq_ignore_ascii_case("base64"))
}

/// Either alphabet, with line breaks and spaces, padded or not, or percent-encoded on top of that.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    let text: Cow<'_, [u8]> = percent_decode_str(text).into();
    let mut letters = Vec::with_capacity(text.len());
    letters.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        byte => *byte,
    }));
    let given = letters.len();
    while letters.last() == Some(&b'=') {
        letters.pop();
    }
    // Where a form's decoder made spaces of plus signs, the rest would be another picture.
    if given != letters.len() && !given.is_multiple_of(4) {
        return Err(format!("base64: {given} letters with their padding, not a multiple of 4; some are lost"));
    }
    if letters.is_empty() {
        return Err("base64: empty".into());
    }
    FORGIVING.decode(&letters).map_err(|e| format!("base64: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_writing_give_the_same_bytes() {
        // Its letters have both that differ between the alphabets, and it needs padding.
        let bytes = [0xfb, 0xff, 0xbf, 0xfe, 0x00, 0x10, 0xfa];
        let same = [
            "data:image/jpeg;base64,+/+//gAQ+g==",
            "data:image/jpeg;base64,+/+//gAQ+g",
            "data:image/jpeg;base64,-_-__gAQ-g==",
            "data:image/jpeg;base64,-_-__gAQ-g",
            "  DATA:IMAGE/JPEG;BASE64,+/+//gAQ+g==\n",
            "data:image/jpeg;base64,+/+/\r\n/gAQ\n +g ==\t",
            "data:image/jpeg;charset=utf-8;base64,+/+//gAQ+g==",
            "data:image/jpeg;base64;charset=utf-8,+/+//gAQ+g==",
            "data:image/jpeg;name=a,b.jpg;base64,+/+//gAQ+g==",
            "data:image/jpeg;name=a,b.jpg;BASE64,+/+//gAQ+g==",
            "data:image/jpeg; base64,+/+//gAQ+g==",
            "data:;base64,+/+//gAQ+g==",
            "data:image/jpeg;base64,%2B%2F%2b/%2FgAQ%2Bg%3D%3D",
            "data:image/jpeg,%FB%FF%BF%FE%00%10%FA",
            "image/jpeg;base64,+/+//gAQ+g==",
            "+/+//gAQ+g==",
            "+/+//gAQ+g",
            "-_-__gAQ-h",
        ];
        for text in same {
            assert_eq!(decode(text).as_deref(), Ok(&bytes[..]), "{text}");
        }
    }

    #[test]
    fn broken_texts_are_refused() {
        let broken = [
            "",
            "data:",
            "data:image/jpeg;base64",
            "data:image/jpeg;base64,",
            "data:image/jpeg;base64,====",
            "data:image/jpeg;base64,+/+//gAQ g==",
            "data:image/jpeg;base64,+/+//",
            "data:image/jpeg;base64,+/+/!gAQ+g==",
            "data:image/jpeg;base64,+/=/",
            "photo.jpg",
            "ä",
        ];
        for text in broken {
            assert!(decode(text).is_err(), "{text}: {:?}", decode(text));
        }
    }
}
