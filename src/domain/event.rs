//! Observations: events and snapshots of users, as received from WorkOS.

use std::fmt;

use bytes::Bytes;

use super::timestamp::Timestamp;
use super::user::User;
use super::version::Version;

/// A WorkOS event. It has the same form in a webhook and in the Events API.
#[derive(Clone)]
pub struct Event {
    /// WorkOS's ID of the event. Opaque. It is the same in a webhook and in the Events API, so it identifies duplicates.
    pub id: String,
    /// For example `user.updated`. WorkOS adds types without notice.
    pub event_type: String,
    /// When WorkOS created the event.
    pub created_at: Option<Timestamp>,
    /// The user of the event. Deleting the user erases the payload.
    pub user_id: Option<String>,
    /// The content of the event.
    pub content: Content,
    /// The event as received, byte for byte.
    pub payload: Bytes,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("type", &self.event_type).finish_non_exhaustive()
    }
}

/// What an event says about its user.
#[derive(Clone, Debug)]
pub enum Content {
    /// `user.created` or `user.updated`: all fields of the user.
    Live {
        /// The user at the time of the event.
        user: Box<User>,
        /// Orders the event among the observations of the user.
        version: Version,
    },
    /// `user.deleted`. Only the ID is used.
    Deleted,
    /// `session.created` without impersonation: the user signed in at this time.
    SignedIn(Timestamp),
    /// An event of a type that changes no user.
    Other,
    /// The event cannot be applied, for this reason. The reason contains nothing of the payload.
    Unusable(&'static str),
}

/// A user object read from WorkOS's REST API.
#[derive(Clone)]
pub struct Snapshot {
    /// The user.
    pub user: User,
    /// The version. `observed_at` is WorkOS's `Date` header minus the duration of the request. The ID is `snapshot:` and a hash.
    pub version: Version,
    /// The object as received, byte for byte. It is stored only if it cannot be applied.
    pub payload: Bytes,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("user", &self.user).finish_non_exhaustive()
    }
}

/// All fields of a user at one time, or its deletion.
#[derive(Clone, Debug)]
pub enum Observation {
    /// An event. It is stored in the inbox too.
    Event(Event),
    /// A snapshot. Only the row is stored, unless the snapshot cannot be applied.
    Snapshot(Snapshot),
    /// A read by ID answered that WorkOS does not know the user: a deletion without a delete event.
    Gone {
        /// The user's ID.
        user_id: String,
        /// When WorkOS answered, by its clock.
        confirmed_at: Timestamp,
    },
}

impl Observation {
    /// Returns the observation. If `is_stored` is false, a sign-in becomes an event that changes no user.
    #[must_use]
    pub fn with_sign_in(self, is_stored: bool) -> Self {
        match self {
            Self::Event(event) if !is_stored && matches!(event.content, Content::SignedIn(_)) => {
                Self::Event(Event { content: Content::Other, ..event })
            }
            other => other,
        }
    }

    /// Returns the ID of the user whose row must be locked, and whose deletion erases the observation.
    #[must_use]
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.user_id.as_deref(),
            Self::Snapshot(snapshot) => Some(&snapshot.user.id),
            Self::Gone { user_id, .. } => Some(user_id),
        }
    }
}

/// How an observation reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// WorkOS sent it to the webhook endpoint.
    Webhook,
    /// Catch-up read it from the Events API.
    CatchUp,
    /// Backfill read it from the list of users.
    Backfill,
    /// Reconcile read it from the list of users, or by ID.
    Reconcile,
    /// Read by ID for a caller, before an event delivered the user.
    ReadThrough,
}

impl Origin {
    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::CatchUp => "catch_up",
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::ReadThrough => "read_through",
        }
    }

    /// Parses the word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        let all = [Self::Webhook, Self::CatchUp, Self::Backfill, Self::Reconcile, Self::ReadThrough];
        all.into_iter().find(|origin| origin.as_str() == word)
    }

    /// Returns whether the change has just happened. What backfill and reconcile find can be years old, so handlers should not
    /// send welcome mails for it.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Backfill | Self::Reconcile)
    }
}

/// The result of applying an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It changed the stored user.
    Applied,
    /// The stored user already contains this observation or a later one.
    Stale,
    /// Events of this type change no user.
    Ignored,
    /// It cannot be applied. It is stored until a retry succeeds.
    Quarantined,
}

impl Outcome {
    /// Returns the word for the database, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
            Self::Quarantined => "quarantined",
        }
    }
}
