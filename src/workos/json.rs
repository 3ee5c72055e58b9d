//! A tolerant JSON reader: accepts all valid JSON, including text that PostgreSQL or serde reject.
//!
//! Objects are maps of raw values, so that large numbers keep their digits and nesting uses no stack.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Maximum nesting of an event, in levels. Deeper events are quarantined. PostgreSQL's own limit is higher.
const DEPTH_LIMIT: usize = 128;

/// An object's fields. If a name is repeated, the last field wins, as in PostgreSQL and JavaScript.
pub(crate) type Object = BTreeMap<String, Box<RawValue>>;

/// A JSON text that PostgreSQL accepts.
pub(crate) struct Sanitized<'a> {
    /// The text with every escaped NUL and every lone surrogate replaced by U+FFFD.
    pub(crate) text: Cow<'a, str>,
    /// Whether it is nested deeper than the limit.
    pub(crate) too_deep: bool,
}

/// Replaces escapes that JSON allows in a string, but PostgreSQL or UTF-8 does not. A text without such escapes is not copied.
pub(crate) fn sanitize(text: &str) -> Sanitized<'_> {
    let bytes = text.as_bytes();
    let (mut at, mut depth, mut deepest, mut in_string) = (0, 0_usize, 0_usize, false);
    let mut replaced: Vec<usize> = Vec::new();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                let (length, lone) = escape(bytes.get(at..).unwrap_or_default());
                if lone {
                    replaced.push(at);
                }
                at += length;
                continue;
            }
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Sanitized { text: replace(text, &replaced), too_deep: deepest > DEPTH_LIMIT }
}

/// Returns the length of the escape at the beginning of `rest`, and whether it is a NUL or a lone surrogate.
fn escape(rest: &[u8]) -> (usize, bool) {
    match unit(rest) {
        Some(0) => (6, true),
        Some(0xD800..=0xDBFF) => {
            let low = rest.get(6..).and_then(unit);
            if matches!(low, Some(0xDC00..=0xDFFF)) { (12, false) } else { (6, true) }
        }
        Some(0xDC00..=0xDFFF) => (6, true),
        Some(_) => (6, false),
        None => (2, false),
    }
}

/// Returns the UTF-16 code unit of a `\uXXXX` escape.
fn unit(escape: &[u8]) -> Option<u16> {
    let digits = escape.strip_prefix(b"\\u")?.get(..4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn replace<'a>(text: &'a str, escapes: &[usize]) -> Cow<'a, str> {
    if escapes.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut copy = String::with_capacity(text.len());
    let mut done = 0;
    for &at in escapes {
        copy.push_str(text.get(done..at).unwrap_or_default());
        copy.push_str("\\uFFFD");
        done = at + 6;
    }
    copy.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(copy)
}

/// Parses an object. Returns `None` for any other value.
pub(crate) fn object(text: &str) -> Option<Object> {
    text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()
}

/// Converts a value to text: a string is unchanged, a number or boolean becomes its JSON text, any other value `None`.
pub(crate) fn text(value: Option<&RawValue>) -> Option<String> {
    let json = value?.get();
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b'-' | b'0'..=b'9' | b't' | b'f' => Some(json.to_owned()),
        _ => None,
    }
}

/// Returns the value if it is a string.
pub(crate) fn string(value: Option<&RawValue>) -> Option<String> {
    value.filter(|value| value.get().starts_with('"')).and_then(|value| serde_json::from_str(value.get()).ok())
}

/// Returns the value if it is a boolean.
pub(super) fn boolean(value: Option<&RawValue>) -> Option<bool> {
    serde_json::from_str(value?.get()).ok()
}

/// Writes a value with sorted keys and without white space, so that equal values have equal hashes.
pub(super) fn canonical(value: &RawValue, out: &mut String) {
    let json = value.get();
    if let Some(object) = object(json) {
        out.push('{');
        for (name, value) in &object {
            out.push_str(&serde_json::Value::from(name.as_str()).to_string());
            out.push(':');
            canonical(value, out);
            out.push(',');
        }
        out.push('}');
    } else if let Ok(items) = serde_json::from_str::<Vec<Box<RawValue>>>(json) {
        out.push('[');
        for item in &items {
            canonical(item, out);
            out.push(',');
        }
        out.push(']');
    } else if let Ok(text) = serde_json::from_str::<String>(json) {
        out.push_str(&serde_json::Value::from(text).to_string());
    } else {
        out.push_str(json);
    }
}
