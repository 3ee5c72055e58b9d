//! Claims as text: for comparison, and short and printable for messages.

use serde_json::{Map, Value};

/// Returns text from a caller for a message or a quoted header value: at most 80 characters of printable ASCII, without quotes
/// and backslashes. Text with an @ can be an email address and is withheld.
pub(super) fn plain(text: &str) -> String {
    if text.contains('@') {
        return "(withheld: it contains an @)".to_owned();
    }
    let plain = |char: char| char == ' ' || (char.is_ascii_graphic() && char != '"' && char != '\\');
    let mut short: String = text.chars().take(80).map(|char| if plain(char) { char } else { '?' }).collect();
    if text.chars().nth(80).is_some() {
        short.push_str("...");
    }
    short
}

/// Returns a claim as short printable text. For a claim that is not text, it returns "not text, or empty".
pub(super) fn shown(claim: Option<&Value>) -> String {
    match claim {
        None => "none".to_owned(),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
            let items: Vec<String> = items.iter().take(8).map(|item| shown(Some(item))).collect();
            plain(&items.join(", "))
        }
        Some(Value::String(text)) if !text.is_empty() => plain(text),
        Some(_) => "not text, or empty".to_owned(),
    }
}

/// Returns the text of a claim, or empty text.
pub(super) fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> &'a str {
    claims.get(name).and_then(Value::as_str).unwrap_or_default()
}
