//! Sets secrets in payloads to null before anything is stored (promise 2).
//!
//! WorkOS puts secrets into ordinary objects: the verification token of a domain, the token and the URL of an invitation, the IP
//! address and the user agent of a session. Which names are secret depends on the type of the event. They are secret at any depth,
//! because an event repeats its object, for example in `context.previous_attributes`. Fields that the customer named (in `metadata`
//! and `custom_attributes`) are never secrets of WorkOS.
//!
//! Every other byte of the payload stays as received. The scan is not recursive, so it also redacts payloads that are nested too
//! deeply to apply.

use std::borrow::Cow;
use std::ops::Range;

use super::{SNAPSHOT, UNREADABLE};
use crate::domain::object::Kind;

/// The words in the types of inbox rows whose payloads can contain secrets. A type consists of words with dots between them.
pub(crate) const TYPE_WORDS: [&str; 6] =
    ["organization", "organization_domain", "invitation", "session", SNAPSHOT, UNREADABLE];

/// Objects whose names the customer chose.
const CUSTOMER_DATA: [&str; 2] = ["metadata", "custom_attributes"];

/// The names that are secret in one payload.
#[derive(Clone, Copy, Default)]
struct Secrets {
    domains: bool,
    invitations: bool,
    sessions: bool,
}

impl Secrets {
    /// Returns the secrets of an event, or of another inbox row. An item that is not an event can have any type, so every name is
    /// treated as secret.
    fn of(event_type: &str) -> Self {
        event_type.split('.').fold(Self::default(), |secrets, word| match word {
            "organization" | "organization_domain" | SNAPSHOT => Self { domains: true, ..secrets },
            "invitation" => Self { invitations: true, ..secrets },
            "session" => Self { sessions: true, ..secrets },
            UNREADABLE => Self { domains: true, invitations: true, sessions: true },
            _ => secrets,
        })
    }

    fn contain(self, name: &str) -> bool {
        match name {
            "verification_token" => self.domains,
            "token" | "accept_invitation_url" => self.invitations,
            "ip_address" | "user_agent" => self.sessions,
            _ => false,
        }
    }

    fn is_empty(self) -> bool {
        !(self.domains || self.invitations || self.sessions)
    }
}

/// Returns the payload of an inbox row of this type without secrets, or `None` if it has none.
pub(crate) fn redacted(event_type: &str, payload: &[u8]) -> Option<Vec<u8>> {
    let secrets = Secrets::of(event_type);
    if secrets.is_empty() {
        return None;
    }
    let values = secret_values(payload, secrets);
    if values.is_empty() {
        return None;
    }
    let mut copy = Vec::with_capacity(payload.len());
    let mut done = 0;
    for value in values {
        copy.extend_from_slice(payload.get(done..value.start).unwrap_or_default());
        copy.extend_from_slice(b"null");
        done = value.end;
    }
    copy.extend_from_slice(payload.get(done..).unwrap_or_default());
    Some(copy)
}

/// Returns an object of the REST API without secrets.
pub(super) fn snapshot(kind: Kind, text: &str) -> Cow<'_, str> {
    let redacted = if kind == Kind::Organization { redacted(SNAPSHOT, text.as_bytes()) } else { None };
    redacted.and_then(|bytes| String::from_utf8(bytes).ok()).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// Returns where the values of secrets are, without those that are null. A text that is not JSON gives any result, but no panic.
fn secret_values(json: &[u8], secrets: Secrets) -> Vec<Range<usize>> {
    let (mut at, mut found) = (0, Vec::new());
    while let Some(byte) = json.get(at) {
        if *byte != b'"' {
            at += 1;
            continue;
        }
        let end = string_end(json, at);
        let Some(value) = value_after_name(json, end) else {
            at = end;
            continue;
        };
        let name = name(json.get(at..end).unwrap_or_default());
        let is_secret = secrets.contain(&name);
        if is_secret || CUSTOMER_DATA.contains(&&*name) {
            at = value_end(json, value);
            let is_null = json.get(value..at) == Some(b"null");
            if is_secret && !is_null {
                found.push(value..at);
            }
        } else {
            at = value;
        }
    }
    found
}

/// Returns the name of a field. Any letter of a name can be an escape.
fn name(quoted: &[u8]) -> Cow<'_, str> {
    if quoted.contains(&b'\\') {
        return Cow::Owned(serde_json::from_slice(quoted).unwrap_or_default());
    }
    let name = quoted.strip_prefix(b"\"").and_then(|name| name.strip_suffix(b"\"")).unwrap_or_default();
    Cow::Borrowed(std::str::from_utf8(name).unwrap_or_default())
}

/// Returns where the value begins if the string that ends here is the name of a field.
fn value_after_name(json: &[u8], string_end: usize) -> Option<usize> {
    let colon = after_whitespace(json, string_end);
    (json.get(colon) == Some(&b':')).then(|| after_whitespace(json, colon + 1))
}

fn after_whitespace(json: &[u8], at: usize) -> usize {
    let rest = json.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// Returns the end of the string that begins here.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    json.len()
}

/// Returns the end of the value that begins here.
fn value_end(json: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at = string_end(json, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 1 => depth -= 1,
            b'}' | b']' => return at + depth,
            b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::Value;

    use super::*;
    use crate::domain::timestamp::Timestamp;

    fn clean(event_type: &str, json: &str) -> String {
        redacted(event_type, json.as_bytes()).map_or(json.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_type_decides_which_names_are_secret() {
        let every =
            r#"{"verification_token":"a","token":"b","accept_invitation_url":"c","ip_address":"d","user_agent":"e"}"#;
        let secrets = |event_type: &str| {
            let value: Value = serde_json::from_str(&clean(event_type, every)).unwrap();
            let fields = value.as_object().unwrap();
            fields.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        for event_type in ["organization.created", "organization_domain.verification_failed", SNAPSHOT] {
            assert_eq!(secrets(event_type), ["verification_token"], "{event_type}");
        }
        assert_eq!(secrets("invitation.resent"), ["accept_invitation_url", "token"]);
        for event_type in ["session.created", "session.revoked", "agent.instance.session.created"] {
            assert_eq!(secrets(event_type), ["ip_address", "user_agent"], "{event_type}");
        }
        assert_eq!(secrets(UNREADABLE).len(), 5, "an item that names no type");
        for event_type in
            ["user.updated", "organization_membership.created", "role.updated", "authentication.sso_failed", ""]
        {
            assert_eq!(secrets(event_type), [""; 0], "{event_type}");
        }
        for word in TYPE_WORDS {
            assert!(!Secrets::of(word).is_empty(), "{word}");
        }
    }

    #[test]
    fn every_other_byte_stays_as_received() {
        for (json, expected) in [
            (r#"{"token":"x"}"#, r#"{"token":null}"#),
            ("\u{FEFF} { \"token\"\n:\t\"x\\\"}\" , \"a\": 1.50 }", "\u{FEFF} { \"token\"\n:\tnull , \"a\": 1.50 }"),
            (r#"{"token":"x","token":"y","a":"token"}"#, r#"{"token":null,"token":null,"a":"token"}"#),
            (
                r#"{"\u0074o\u006ben":{"a":["}"]},"b":[{"token":-1e9}]}"#,
                r#"{"\u0074o\u006ben":null,"b":[{"token":null}]}"#,
            ),
            (r#"{"token":[],"token":true}"#, r#"{"token":null,"token":null}"#),
            (r#"{"a\ud800":"\u0000","token":"\ud800"}"#, r#"{"a\ud800":"\u0000","token":null}"#),
            (
                r#"{"metadata":{"token":"mine","x":{"token":1}},"token":"x"}"#,
                r#"{"metadata":{"token":"mine","x":{"token":1}},"token":null}"#,
            ),
            (
                r#"{"a":"\"token\":\"x\"","tokens":"x","Token":"x"}"#,
                r#"{"a":"\"token\":\"x\"","tokens":"x","Token":"x"}"#,
            ),
            (
                r#"{"context":{"previous_attributes":{"token":"old"}}}"#,
                r#"{"context":{"previous_attributes":{"token":null}}}"#,
            ),
        ] {
            assert_eq!(clean("invitation.created", json), expected);
        }
        assert_eq!(redacted("invitation.created", br#"{"token":null}"#), None, "no copy");
    }

    #[test]
    fn a_secret_below_any_depth_is_found_and_a_text_that_is_not_json_does_no_harm() {
        let deep = |value: &str| format!("{}{value}{}", "{\"a\":[".repeat(50_000), "]}".repeat(50_000));
        assert_eq!(clean("session.created", &deep(r#"{"ip_address":"x"}"#)), deep(r#"{"ip_address":null}"#));
        for broken in [
            "",
            "\"",
            "\"\\",
            "{\"ip_address\"",
            "{\"ip_address\":",
            "{\"ip_address\":\"",
            "{\"ip_address\":{",
            "]}:\"\\u",
        ] {
            redacted("session.created", broken.as_bytes());
        }
    }

    /// All fixtures of events. An independent walk over the parsed values determines which values must be null.
    #[test]
    fn no_fixture_of_an_event_keeps_a_secret_or_loses_anything_else() {
        let mut with_secrets = 0;
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.starts_with("event.") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            let event_type = expected["event"].as_str().unwrap().to_owned();
            let found = set_null(&mut expected, Secrets::of(&event_type));
            with_secrets += usize::from(found > 0);
            let event = super::super::read_event(&bytes::Bytes::from(text)).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&event.payload).unwrap(), expected, "{name}");
        }
        assert!(with_secrets >= 7, "{with_secrets}");
    }

    fn set_null(value: &mut Value, secrets: Secrets) -> usize {
        match value {
            Value::Object(fields) => fields
                .iter_mut()
                .filter(|(name, _)| !CUSTOMER_DATA.contains(&name.as_str()))
                .map(|(name, value)| {
                    let is_secret = secrets.contain(name) && !value.is_null();
                    if is_secret {
                        *value = Value::Null;
                    }
                    usize::from(is_secret) + set_null(value, secrets)
                })
                .sum(),
            Value::Array(items) => items.iter_mut().map(|item| set_null(item, secrets)).sum(),
            _ => 0,
        }
    }

    #[test]
    fn a_snapshot_has_no_secret_whether_it_can_be_applied_or_not() {
        let organization =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/organization.json"));
        let organization = organization.unwrap();
        assert!(organization.contains("tok4Yq"));
        let at = Timestamp::from_unix_micros(0);
        let usable = super::super::snapshot_of(Kind::Organization, &organization, at).unwrap();
        assert!(!String::from_utf8_lossy(&usable.payload).contains("tok4Yq"));
        assert!(!format!("{:?}", usable.object).contains("tok4Yq"));
        let again = std::str::from_utf8(&usable.payload).unwrap();
        let again = super::super::snapshot_of(Kind::Organization, again, at).unwrap();
        assert_eq!(again.version, usable.version, "a retry of the stored payload is the same snapshot");
        let nameless = organization.replace("\"name\"", "\"no_name\"");
        let item = serde_json::value::RawValue::from_string(nameless).unwrap();
        let crate::domain::event::Observation::Event(event) = super::super::listed(Kind::Organization, &item, at)
        else {
            panic!("it has no name")
        };
        assert!(!String::from_utf8_lossy(&event.payload).contains("tok4Yq"));
        let user = r#"{"id":"u","email":"a","email_verified":true,"updated_at":"2026-09-01T08:00:00Z","verification_token":"x"}"#;
        let user = super::super::snapshot(user, at).unwrap();
        assert!(String::from_utf8_lossy(&user.payload).contains("\"x\""), "other kinds are not scanned");
    }

    #[test]
    fn a_payload_that_an_earlier_release_stored_is_read_without_secrets() {
        let stored = r#"{"id":"e","event":"session.created","data":{"id":"s","ip_address":"203.0.113.9"}}"#;
        let data = super::super::stored_data(stored.as_bytes()).unwrap();
        assert_eq!(data.get(), r#"{"id":"s","ip_address":null}"#);
    }

    /// A JSON value as a text in parts, so that it can be written with and without secrets.
    #[derive(Clone, Debug)]
    enum Json {
        Scalar(&'static str),
        Array(Vec<Json>),
        Object(Vec<(&'static str, u64, Json)>),
    }

    fn json() -> impl Strategy<Value = Json> {
        let scalars = [
            "null",
            "true",
            "-0.5e10",
            "1e400",
            "\"\"",
            "\"secret\"",
            "\"\\\\\"",
            "\"\\\"\"",
            "\"token\"",
            "\"\\u0000\"",
            "\"\\ud800\"",
            "\"\\ud83e\\udd80 🦀\"",
            "\"}],:{[\"",
            "\"\\\"token\\\":\\\"x\"",
            "\"\\/\"",
        ];
        let names = [
            "token",
            "accept_invitation_url",
            "verification_token",
            "ip_address",
            "user_agent",
            "metadata",
            "custom_attributes",
            "a",
            "",
            "tokens",
            "data",
            "événement",
        ];
        select(scalars.to_vec()).prop_map(Json::Scalar).prop_recursive(6, 60, 6, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..5).prop_map(Json::Array),
                vec((select(names.to_vec()), any::<u64>(), inner), 0..6).prop_map(Json::Object),
            ]
        })
    }

    /// Writes the value. The bits of `style` choose escapes and white space.
    fn write(json: &Json, secrets: Secrets, out: &mut String) {
        match json {
            Json::Scalar(text) => out.push_str(text),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at == 0 { " " } else { ",\n" });
                    write(item, secrets, out);
                }
                out.push(']');
            }
            Json::Object(fields) => {
                out.push('{');
                for (at, (name, style, value)) in fields.iter().enumerate() {
                    let space = |bits: u64| ["", " ", "\t\r\n", "  "][usize::try_from(style >> bits & 3).unwrap()];
                    out.push_str(if at == 0 { "" } else { "," });
                    out.push_str(space(0));
                    out.push('"');
                    for (letter, unit) in name.encode_utf16().enumerate() {
                        match char::from_u32(unit.into()).filter(|_| style >> 62 == 0 || style >> (8 + letter) & 1 == 0)
                        {
                            Some(letter) => out.push(letter),
                            None => write!(out, "\\u{unit:04X}").unwrap(),
                        }
                    }
                    out.push('"');
                    out.push_str(space(2));
                    out.push(':');
                    out.push_str(space(4));
                    match name {
                        name if secrets.contain(name) => out.push_str("null"),
                        name if CUSTOMER_DATA.contains(name) => write(value, Secrets::default(), out),
                        _ => write(value, secrets, out),
                    }
                    out.push_str(space(6));
                }
                out.push('}');
            }
        }
    }

    proptest! {
        #[test]
        fn exactly_the_values_of_secret_names_become_null(json in json(), event_type in select(vec![
            "organization.updated", "organization_domain.created", "invitation.created", "session.revoked", "user.updated",
            "organization.invitation.created", UNREADABLE,
        ])) {
            let (mut received, mut expected) = (String::new(), String::new());
            write(&json, Secrets::default(), &mut received);
            write(&json, Secrets::of(event_type), &mut expected);
            prop_assert_eq!(clean(event_type, &received), expected);
        }
    }
}
