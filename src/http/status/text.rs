//! Times and numbers as the page shows them.

use maud::{Markup, html};

use crate::domain::timestamp::Timestamp;
use crate::sync::health::{self, State, ago};

/// An ID is shown up to this many characters. WorkOS's have about 32.
const ID_LENGTH: usize = 80;

/// Returns how long ago something happened, with the time itself for machines and as a tooltip.
pub(super) fn since(at: Timestamp, now: Timestamp) -> Markup {
    let seconds = now.unix_seconds().saturating_sub(at.unix_seconds());
    html! { time datetime=(at) title=(at) { (ago(seconds)) " ago" } }
}

/// Returns how long something has lasted.
pub(super) fn lasting(from: Timestamp, now: Timestamp) -> Markup {
    let seconds = now.unix_seconds().saturating_sub(from.unix_seconds());
    html! { time datetime=(from) title={ "since " (from) } { (ago(seconds)) } }
}

/// Returns a text with the parts between backticks as code.
pub(super) fn with_code(text: &str) -> Markup {
    html! { @for (index, part) in text.split('`').enumerate() { @if index % 2 == 1 { code { (part) } } @else { (part) } } }
}

/// Returns [`since`], or a dash.
pub(super) fn since_or_dash(at: Option<Timestamp>, now: Timestamp) -> Markup {
    at.map_or_else(dash, |at| since(at, now))
}

/// Returns the time until something happens.
pub(super) fn coming(at: Option<Timestamp>, now: Timestamp) -> Markup {
    let Some(at) = at else { return dash() };
    let seconds = at.unix_seconds().saturating_sub(now.unix_seconds());
    html! { time datetime=(at) title=(at) { @if seconds <= 0 { "now" } @else { "in " (ago(seconds)) } } }
}

/// Returns the time of the day in UTC.
pub(super) fn clock(at: Timestamp) -> Markup {
    let text = at.to_string();
    html! { time datetime=(text) title=(text) { (text.get(11..19).unwrap_or_default()) " UTC" } }
}

/// Returns a dash for an absent value, with a text for screen readers.
pub(super) fn dash() -> Markup {
    html! { span.muted aria-hidden="true" { "–" } span.hidden { "none" } }
}

/// Returns a number with spaces between thousands.
pub(super) fn number(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if number < 0 { format!("−{text}") } else { text }
}

/// Returns a number with its noun: "1 event", "2 000 events".
pub(super) fn count(count: i64, noun: &str) -> String {
    health::count(number(count), noun)
}

/// Returns an ID, shortened if it is longer than IDs of WorkOS.
pub(super) fn id(id: &str) -> Markup {
    let text: String = id.chars().take(ID_LENGTH).collect();
    html! { code { (text) @if text.len() < id.len() { "…" } } }
}

/// Returns the short name of a process.
pub(super) fn process(holder: &str) -> Markup {
    html! { code title=(holder) { (holder.chars().take(8).collect::<String>()) } }
}

/// Returns a word with the color of its state.
pub(super) fn chip(state: State, word: &str) -> Markup {
    html! { span class={ "chip " (state.as_str()) } { (word) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_counts_have_their_noun() {
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((number(0), number(999), number(-1_000)), ("0".into(), "999".into(), "−1\u{202f}000".into()));
        assert_eq!((count(1, "event"), count(0, "event")), ("1 event".to_owned(), "0 events".to_owned()));
    }

    #[test]
    fn every_text_is_escaped_and_long_ids_are_shortened() {
        assert_eq!(id("<b>").into_string(), "<code>&lt;b&gt;</code>");
        assert!(id(&"a".repeat(500)).into_string().ends_with("a…</code>"));
        assert_eq!(with_code("a `b<` c").into_string(), "a <code>b&lt;</code> c");
        assert!(process("\"><script>").into_string().contains("title=\"&quot;&gt;&lt;script&gt;\""));
    }
}
