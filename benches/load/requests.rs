//! Prepared HTTP requests.

use std::fmt::Write;
use std::fs;

use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::signature::{HEADER, Secret};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The time of every new user.
pub(crate) const CREATED_AT: &str = "2026-09-01T08:15:30.412Z";

/// The first number in IDs. It is large, so that all IDs have the same length and sort by number, as WorkOS's IDs sort by time.
pub(crate) const FIRST: u64 = 10_000_000;

/// Tokens that are used in turn before each is used again.
const TURN: usize = 32;

/// The requests of a lane, by number.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Kind {
    /// `user.created` of new users.
    Created,
    /// `user.updated` of users that were loaded with SQL, in turn.
    Updated {
        /// How many there are.
        users: u64,
    },
    /// `user.created`, the same events repeatedly.
    Duplicates {
        /// How many there are.
        events: u64,
    },
    /// `GET` of this path with a token.
    Lookups {
        /// `/auth/user` or `/auth/session`.
        path: String,
        /// The file with tokens, one a line.
        tokens: String,
        /// How often each is used.
        uses: usize,
        /// Begin again when all were used.
        again: bool,
    },
    /// The empty handler with a webhook's body.
    EmptyPost,
    /// The empty handler without a body.
    EmptyGet,
}

/// Prepared requests in one piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    uses: usize,
    again: bool,
}

impl Requests {
    fn push(&mut self, request: &str) {
        self.bytes.extend_from_slice(request.as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// The request with this number; `None` after the last one.
    pub(crate) fn get(&self, number: usize) -> Option<&[u8]> {
        let turn = number / (TURN * self.uses);
        let mut at = if self.uses == 1 { number } else { turn * TURN + number % TURN };
        if self.again {
            at %= self.ends.len();
        }
        let end = *self.ends.get(at)?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }

    /// Prepares `count` requests, or as many as repeat.
    pub(crate) fn prepare(kind: &Kind, run: &str, secret: &str, count: usize) -> Self {
        let mut requests = Self { uses: 1, ..Self::default() };
        match kind {
            Kind::Created => {
                requests.webhooks("/workos/webhook", secret, 0..count as u64, |number| created(run, number))
            }
            Kind::Updated { users } => {
                requests.webhooks("/workos/webhook", secret, 0..count as u64, |number| updated(run, number, *users));
            }
            Kind::Duplicates { events } => {
                requests.again = true;
                requests.webhooks("/workos/webhook", secret, 0..*events, |number| created(run, number));
            }
            Kind::EmptyPost => {
                requests.again = true;
                requests.webhooks("/post", secret, 0..1_000, |number| created(run, number));
            }
            Kind::Lookups { path, tokens, uses, again } => {
                (requests.uses, requests.again) = (*uses, *again);
                for token in fs::read_to_string(tokens).unwrap().lines() {
                    requests.push(&format!("GET {path} HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {token}\r\n\r\n"));
                }
            }
            Kind::EmptyGet => {
                requests.again = true;
                let token = "x".repeat(800);
                requests.push(&format!("GET /get HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {token}\r\n\r\n"));
            }
        }
        requests
    }

    fn webhooks(&mut self, path: &str, secret: &str, numbers: std::ops::Range<u64>, event: impl Fn(u64) -> Value) {
        let (secret, now) = (Secret::new(secret), Clock::system().now());
        let mut request = String::new();
        for number in numbers {
            let body = event(number).to_string();
            let signature = secret.sign(now, body.as_bytes());
            request.clear();
            write!(
                request,
                "POST {path} HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\n{HEADER}: \
                 {signature}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            self.push(&request);
        }
    }
}

/// A user object.
pub(crate) fn user(id: &str, first_name: &str, updated_at: &str) -> Value {
    json!({
        "object": "user", "id": id, "email": format!("{id}@example.test"), "email_verified": true,
        "first_name": first_name, "last_name": "Quill", "name": "Ada Quill", "profile_picture_url": null,
        "external_id": format!("crm-{id}"), "metadata": {"plan": "team"}, "last_sign_in_at": null, "locale": "en-GB",
        "created_at": CREATED_AT, "updated_at": updated_at,
    })
}

fn event(id: &str, event_type: &str, user_id: &str, first_name: &str, updated_at: &str) -> Value {
    json!({
        "object": "event", "id": id, "event": event_type, "created_at": updated_at,
        "context": {"client_id": "client_bench"}, "data": user(user_id, first_name, updated_at),
    })
}

/// The event of a new user.
pub(crate) fn created(run: &str, number: u64) -> Value {
    let (id, user_id) = (format!("event_{run}_{}", FIRST + number), format!("user_{run}_{}", FIRST + number));
    event(&id, "user.created", &user_id, "Ada", CREATED_AT)
}

/// An update of a user that was loaded with SQL. The first name identifies the update.
fn updated(run: &str, number: u64, users: u64) -> Value {
    let (id, user_id) = (format!("event_{run}_{}", FIRST + number), format!("user_seed_{}", FIRST + number % users));
    let at = Clock::system().now().plus_seconds(i64::try_from(number / users).unwrap());
    event(&id, "user.updated", &user_id, &format!("{run}-{number}"), json!(at).as_str().unwrap())
}
