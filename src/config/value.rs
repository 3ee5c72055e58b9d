//! Parsers of the values of settings. An error says what the value must be, and never contains the value.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::action_endpoint::OnFailure;
use crate::actions::DEADLINE;
use crate::authkit::{KEY_LENGTH, MIN_STALENESS};
use crate::domain::action_rules::{RuleError, Rules};
use crate::domain::kinds::Kinds;
use crate::store::hosts::{Hosts, Wanted};
use crate::store::pool::MIN_CONNECTIONS;
use crate::workos::api::ApiKey;
use crate::workos::signature::Secret;

/// A value, or what it must be: "it must be …".
pub(super) type Parsed<T> = Result<T, Cow<'static, str>>;

pub(super) fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// Parses the address of the primary. Refuses `target_session_attrs=standby`.
pub(super) fn database_url(text: &str) -> Parsed<Hosts> {
    match read_database_url(text)? {
        hosts if hosts.wanted() == Wanted::Standby => {
            Err("a URL whose target_session_attrs is read-write, primary or any, because the service must write; \
             set target_session_attrs=read-write"
                .into())
        }
        hosts => Ok(hosts),
    }
}

/// Parses the address of a database that can be read.
pub(super) fn read_database_url(text: &str) -> Parsed<Hosts> {
    let hosts = Hosts::from_str(text).map_err(|error| error.0)?;
    // A pooler may refuse the driver's setting for the text of floating-point numbers, which no statement of ours reads.
    Ok(hosts.map(|options| options.application_name("authkit-sync").extra_float_digits(None)))
}

/// Placeholders for a client ID in our examples and WorkOS's, without the prefix.
const PLACEHOLDERS: [&str; 9] =
    ["", "123456789", "xxx", "id", "your_client_id", "changeme", "example", "replace_me", "todo"];

pub(super) fn client_id(text: &str) -> Parsed<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if PLACEHOLDERS.contains(&text.trim_start_matches("client_").to_ascii_lowercase().as_str()) {
        Err(
            "the client ID of your environment, but it is a placeholder; copy it from the API Keys page of the WorkOS dashboard".into(),
        )
    } else if text.starts_with("sk_") {
        Err("the client ID (client_…), but it is an API key (sk_…)".into())
    } else if plain {
        Ok(text.to_owned())
    } else {
        Err("the client ID from the dashboard (client_…)".into())
    }
}

pub(super) fn list(text: &str) -> Parsed<Vec<String>> {
    let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    if items.iter().any(String::is_empty) {
        Err("a list without empty items, separated by commas".into())
    } else {
        Ok(items)
    }
}

pub(super) fn url(text: &str) -> Parsed<String> {
    let wanted = "an http:// or https:// URL";
    let http = text.starts_with("https://") || text.starts_with("http://");
    if http && !text.contains(char::is_whitespace) { Ok(text.to_owned()) } else { Err(wanted.into()) }
}

pub(super) fn urls(text: &str) -> Parsed<Vec<String>> {
    list(text)?.iter().map(|item| url(item)).collect()
}

/// Parses origins: scheme, host and optional port, without a path.
pub(super) fn origins(text: &str) -> Parsed<Vec<String>> {
    let wanted = "origins like https://app.example.com, separated by commas, without paths and wildcards";
    let origin = |item: &String| {
        let host = item.strip_prefix("https://").or_else(|| item.strip_prefix("http://"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
        (!host.is_empty() && host.bytes().all(plain)).then(|| item.to_ascii_lowercase())
    };
    list(text)?.iter().map(origin).collect::<Option<_>>().ok_or(wanted.into())
}

pub(super) fn hostname(text: &str) -> Parsed<String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    if plain { Ok(text.to_owned()) } else { Err("a host name without scheme, port and path".into()) }
}

pub(super) fn port(text: &str) -> Parsed<u16> {
    text.parse().map_err(|_| "a port number from 0 to 65535".into())
}

pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| "an IP address and a port, like 0.0.0.0:8080 or [::]:8080".into())
}

pub(super) fn path(text: &str) -> Parsed<String> {
    let plain = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#{}".contains(&byte));
    if plain { Ok(text.to_owned()) } else { Err("a path that begins with / and contains none of ? # { }".into()) }
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// Parses a duration from 1 ms to 1 day.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let range = Duration::from_millis(1)..=Duration::from_secs(86_400);
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| range.contains(duration))
        .ok_or("a duration with a unit, like 300ms, 180s or 5m, from 1ms to 1day".into())
}

/// Parses the maximum age of the standby's data.
pub(super) fn staleness(text: &str) -> Parsed<Duration> {
    let long = duration(text).ok().filter(|staleness| *staleness >= MIN_STALENESS);
    long.ok_or_else(|| {
        format!("a duration with a unit, like 5s or 1m, from {} to 1day", duration_text(MIN_STALENESS)).into()
    })
}

/// Parses the timeout of the decision endpoint.
pub(super) fn action_timeout(text: &str) -> Parsed<Duration> {
    let short = duration(text).ok().filter(|timeout| *timeout <= DEADLINE);
    short.ok_or_else(|| {
        format!("a duration with a unit, like 800ms or 1s, of at most {}", duration_text(DEADLINE)).into()
    })
}

pub(super) fn allow_deny(text: &str) -> Parsed<OnFailure> {
    match text {
        "allow" => Ok(OnFailure::Allow),
        "deny" => Ok(OnFailure::Deny),
        _ => Err("allow or deny".into()),
    }
}

/// Parses a duration from 1 minute to 10 years.
pub(super) fn long_duration(text: &str) -> Parsed<Duration> {
    let range = Duration::from_secs(60)..=Duration::from_secs(10 * 365 * 86_400);
    humantime::parse_duration(text)
        .ok()
        .filter(|duration| range.contains(duration))
        .ok_or("a duration with a unit, like 24h or 90d, from 1m to 3650d".into())
}

/// Parses a duration; `off` is `None`.
pub(super) fn interval(text: &str) -> Parsed<Option<Duration>> {
    let wanted = "off, or a duration with a unit, like 24h or 7d, from 1m to 3650d";
    if text == "off" { Ok(None) } else { long_duration(text).map(Some).map_err(|_| wanted.into()) }
}

/// Parses a delay; `off` is zero.
pub(super) fn delay(text: &str) -> Parsed<Duration> {
    let wanted = "off, or a duration with a unit, like 500ms, 5s or 1m, from 1ms to 1day";
    if text == "off" { Ok(Duration::ZERO) } else { duration(text).map_err(|_| wanted.into()) }
}

pub(super) fn on_off(text: &str) -> Parsed<bool> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".into()),
    }
}

pub(super) fn auto_off(text: &str) -> Parsed<bool> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("auto or off".into()),
    }
}

pub(super) fn event_types(text: &str) -> Parsed<Vec<String>> {
    let plain = |name: &String| name.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte));
    let types = list(text)?;
    if types.iter().all(plain) {
        Ok(types)
    } else {
        Err("event types like session.created, separated by commas".into())
    }
}

/// The names of what is synced in addition to users.
const KINDS: [&str; 4] = ["organizations", "memberships", "roles", "sessions"];

pub(super) fn kinds(text: &str) -> Parsed<Kinds> {
    let names = list(text)?;
    if names.iter().any(|name| name != "users" && !KINDS.contains(&name.as_str())) {
        return Err("users, organizations, memberships, roles or sessions, separated by commas".into());
    }
    let [organizations, memberships, roles, sessions] = KINDS.map(|kind| names.iter().any(|name| name == kind));
    if (memberships || roles) && !organizations {
        return Err("a list with organizations, because memberships and roles belong to organizations".into());
    }
    Ok(Kinds { organizations, memberships, roles, sessions, sign_ins: false })
}

/// Formats what is synced in addition to users.
pub(super) fn kinds_text(kinds: Kinds) -> String {
    let synced = [kinds.organizations, kinds.memberships, kinds.roles, kinds.sessions];
    let names: Vec<&str> =
        KINDS.into_iter().zip(synced).filter(|(_, is_synced)| *is_synced).map(|(name, _)| name).collect();
    if names.is_empty() { "users".to_owned() } else { names.join(",") }
}

pub(super) fn secret(text: &str) -> Parsed<Secret> {
    Ok(Secret::new(text))
}

/// Parses the signing secrets of a WorkOS endpoint.
pub(super) fn signing_secrets(text: &str) -> Parsed<Vec<Secret>> {
    let secrets = list(text)?;
    if secrets.iter().any(|secret| secret.starts_with("sk_")) {
        return Err("the signing secret of the endpoint from the dashboard, but it contains an API key (sk_…)".into());
    }
    Ok(secrets.into_iter().map(Secret::new).collect())
}

pub(super) fn action_rules(text: &str) -> Parsed<Rules> {
    text.parse().map_err(|error: RuleError| format!("rules separated by semicolons: {error}").into())
}

pub(super) fn api_key(text: &str) -> Parsed<ApiKey> {
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    match text {
        _ if text.starts_with("client_") => Err("the API key (sk_…), but it is a client ID (client_…)".into()),
        _ if !graphic => Err("the API key from the dashboard (sk_…)".into()),
        _ => Ok(ApiKey::new(text)),
    }
}

/// Parses `label:key` pairs.
pub(super) fn service_keys(text: &str) -> Parsed<Vec<(String, String)>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let pair = |item: &String| {
        let (label, key) = item.split_once(':')?;
        let fit = !label.is_empty() && label.bytes().all(plain) && key.len() >= KEY_LENGTH;
        (fit && key.bytes().all(|byte| byte.is_ascii_graphic())).then(|| (label.to_owned(), key.to_owned()))
    };
    list(text)?.iter().map(pair).collect::<Option<_>>().ok_or_else(|| {
        format!("label:key pairs separated by commas: labels of letters, digits, - and _; keys of at least {KEY_LENGTH} characters").into()
    })
}

/// Parses the number of database connections.
pub(super) fn connections(text: &str) -> Parsed<u32> {
    let number = text.parse().ok().filter(|number| (MIN_CONNECTIONS..=1_000).contains(number));
    number.ok_or_else(|| format!("a number of connections from {MIN_CONNECTIONS} to 1000").into())
}

/// Parses a number of bytes with an optional unit, from 1 KiB to 16 MiB.
pub(super) fn size(text: &str) -> Parsed<usize> {
    let digits = text.trim_end_matches(|char: char| !char.is_ascii_digit());
    let unit = text.strip_prefix(digits).map(str::trim).unwrap_or_default();
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => 0,
    };
    let bytes = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    bytes
        .filter(|bytes| (1024..=16 * 1024 * 1024).contains(bytes))
        .ok_or("a size like 512KiB or 1MiB, from 1KiB to 16MiB".into())
}

/// Formats a duration in its largest unit, as [`duration`] and [`long_duration`] read it.
pub(super) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let unit = units.into_iter().find(|(_, length)| millis >= *length && millis.is_multiple_of(*length));
    let (unit, length) = unit.unwrap_or(("ms", 1));
    format!("{}{unit}", millis / length)
}

/// Formats a number of bytes in its largest unit, as [`size`] reads it.
pub(super) fn size_text(bytes: usize) -> String {
    let units = [("MiB", 1024 * 1024), ("KiB", 1024)];
    let unit = units.into_iter().find(|(_, length)| bytes >= *length && bytes.is_multiple_of(*length));
    let (unit, length) = unit.unwrap_or(("", 1));
    format!("{}{unit}", bytes / length)
}

/// Formats a switch as [`on_off`] reads it.
pub(super) fn on_off_text(is_on: bool) -> String {
    if is_on { "on" } else { "off" }.to_owned()
}

/// Returns true for JSON.
pub(super) fn log_format(text: &str) -> Parsed<bool> {
    match text {
        "text" => Ok(false),
        "json" => Ok(true),
        _ => Err("text or json".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_carry_units_and_bounds() {
        assert_eq!(size("1MiB"), Ok(1024 * 1024));
        assert_eq!(size("64 KiB"), Ok(64 * 1024));
        assert_eq!(size("2048"), Ok(2048));
        for text in ["", "MiB", "1MB", "-1", "1.5MiB", "99999999999999999999", "17MiB", "10"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(duration("180s"), Ok(Duration::from_secs(180)));
        for text in ["180", "0s", "2days", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_formatted_value_is_read_back() {
        for (millis, text) in [(1_500, "1500ms"), (5_000, "5s"), (180_000, "3m"), (86_400_000, "1d")] {
            assert_eq!(duration_text(Duration::from_millis(millis)), text);
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for (bytes, text) in [(1_000, "1000"), (512 * 1024, "512KiB"), (1024 * 1024, "1MiB")] {
            assert_eq!(size_text(bytes), text);
        }
        assert!([true, false].into_iter().all(|is_on| on_off(&on_off_text(is_on)) == Ok(is_on)));
    }

    #[test]
    fn a_key_in_the_wrong_place_is_named() {
        for placeholder in ["client_", "client_123456789", "client_replace_me", "client_xxx", "client_YOUR_CLIENT_ID"] {
            assert!(client_id(placeholder).is_err_and(|wanted| wanted.contains("placeholder")), "{placeholder}");
        }
        assert!(client_id("sk_test_123").is_err_and(|wanted| wanted.contains("API key")));
        assert!(hostname("https://api.workos.com").is_err());
        assert_eq!(list("a, b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(list("a,,b").is_err());
    }
}
