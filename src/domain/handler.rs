//! What a handler asks for, and when it is asked again.

use std::time::Duration;

/// Tries before a change is set aside: with the rests between them, about half an hour.
pub const TRIES: i32 = 12;

/// The rest after a failure doubles from the first to the longest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(600);

/// How long until a change is tried again that has failed so often; `None` when it is set aside.
#[must_use]
pub fn rest(tries: i32) -> Option<Duration> {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or_default().min(16);
    (tries < TRIES).then(|| FIRST_REST.saturating_mul(2_u32.pow(doublings)).min(LONGEST_REST))
}

/// What a handler's name must be.
pub const NAME: &str = "a handler's name is 1 to 64 letters, digits, dots, dashes and underscores";

/// Whether a handler may have this name: progress, leases and metrics go by it.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// Which changes a handler takes: event types, each whole (`user.created`), by its first words (`user.*`), or any (`*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types(Vec<String>);

/// Why a list of types is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event types are names like user.created, user.* or *, separated by commas")]
pub struct NotTypes;

impl Types {
    /// Reads a list separated by commas. Any name will do: WorkOS adds types without notice.
    ///
    /// # Errors
    /// [`NotTypes`]
    pub fn parse(text: &str) -> Result<Self, NotTypes> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
        let name = |name: &String| {
            let stem = name.strip_suffix(".*").unwrap_or(name);
            name == "*" || (!stem.is_empty() && stem.len() <= 128 && stem.bytes().all(plain))
        };
        if names.iter().all(name) { Ok(Self(names)) } else { Err(NotTypes) }
    }

    /// As the database holds them.
    #[must_use]
    pub fn from_names(names: Vec<String>) -> Self {
        Self(names)
    }

    /// The names, as given.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Those that name one type.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(|name| !name.ends_with('*'))
    }

    /// Whether this event type is among them.
    #[must_use]
    pub fn take(&self, event_type: &str) -> bool {
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
    fn types_are_taken_whole_by_their_first_words_or_all() {
        for (types, event_type, taken) in [
            ("user.created", "user.created", true),
            ("user.created", "user.created_again", false),
            ("user.*", "user.deleted", true),
            ("user.*", "user_session.created", false),
            ("user.*", "user", false),
            ("*", "anything.at_all", true),
            ("session.created, organization.*", "organization.updated", true),
            ("session.created,organization.*", "user.created", false),
        ] {
            assert_eq!(Types::parse(types).unwrap().take(event_type), taken, "{types} {event_type}");
        }
        for types in ["", ",", "user.*,", "User.created", "user created", "user*", "*.created", ".*", "a'b"] {
            assert_eq!(Types::parse(types), Err(NotTypes), "{types}");
        }
    }

    #[test]
    fn rests_grow_and_end() {
        let rests: Vec<u64> = (1..).map_while(rest).map(|rest| rest.as_secs()).collect();
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
    }
}
