//! Which changes a handler selects, and when a failed change is retried.

use std::time::Duration;

/// Number of attempts before a change is dead-lettered. With the delays between them they take about half an hour.
pub const MAX_ATTEMPTS: i32 = 12;

/// The delay after a failure. It doubles from the first to the longest.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// Returns the delay before the next attempt after `attempts` failed ones, or `None` if the change is dead-lettered.
#[must_use]
pub fn delay_after(attempts: i32) -> Option<Duration> {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or_default().min(16);
    (attempts < MAX_ATTEMPTS).then(|| FIRST_DELAY.saturating_mul(2_u32.pow(doublings)).min(LONGEST_DELAY))
}

/// The rule for handler names, as an error message.
pub const NAME: &str = "a handler name has 1 to 64 letters, digits, dots, dashes and underscores";

/// Returns whether the text is a valid handler name. The name identifies the handler's progress, lease and metrics.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// The event types that a handler selects: an exact type (`user.created`), a prefix (`user.*`), or all types (`*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types(Vec<String>);

/// The text is not a list of event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event types are names like user.created, user.* or *, separated by commas")]
pub struct InvalidTypes;

impl Types {
    /// Parses a list separated by commas. Unknown names are accepted, because WorkOS adds types without notice.
    ///
    /// # Errors
    /// [`InvalidTypes`]
    pub fn parse(text: &str) -> Result<Self, InvalidTypes> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
        let name = |name: &String| {
            let stem = name.strip_suffix(".*").unwrap_or(name);
            name == "*" || (!stem.is_empty() && stem.len() <= 128 && stem.bytes().all(plain))
        };
        if names.iter().all(name) { Ok(Self(names)) } else { Err(InvalidTypes) }
    }

    /// Creates the list from names that were parsed before, for example those in the database.
    #[must_use]
    pub fn from_names(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Returns the names and patterns.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Returns the names without a `*`.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|name| !name.ends_with('*'))
    }

    /// Returns whether the list selects this event type.
    #[must_use]
    pub fn contains(&self, event_type: &str) -> bool {
        self.0.iter().any(|name| match name.strip_suffix('*') {
            Some(stem) => event_type.starts_with(stem),
            None => name == event_type,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_selected_by_name_by_prefix_or_all() {
        for (types, event_type, selected) in [
            ("user.created", "user.created", true),
            ("user.created", "user.created_again", false),
            ("user.*", "user.deleted", true),
            ("user.*", "user_session.created", false),
            ("user.*", "user", false),
            ("*", "anything.at_all", true),
            ("session.created, organization.*", "organization.updated", true),
            ("session.created,organization.*", "user.created", false),
        ] {
            assert_eq!(Types::parse(types).unwrap().contains(event_type), selected, "{types} {event_type}");
        }
        for types in ["", ",", "user.*,", "User.created", "user created", "user*", "*.created", ".*", "a'b"] {
            assert_eq!(Types::parse(types), Err(InvalidTypes), "{types}");
        }
    }

    #[test]
    fn delays_grow_and_end_after_the_last_attempt() {
        let delays: Vec<u64> = (1..).map_while(delay_after).map(|delay| delay.as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
    }
}
