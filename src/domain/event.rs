//! Observations: what WorkOS told us about a user, by event or by snapshot.

use std::fmt;

use bytes::Bytes;

use super::timestamp::Timestamp;
use super::user::User;
use super::version::Version;

/// A WorkOS event, the same whether a webhook delivered it or the Events API listed it.
#[derive(Clone)]
pub struct Event {
    /// WorkOS's id; opaque. The same in a webhook and in the Events API, so it is what duplicates are known by.
    pub id: String,
    /// For example `user.updated`. New types appear without notice.
    pub event_type: String,
    /// When WorkOS made the event.
    pub created_at: Option<Timestamp>,
    /// The user it is about; whose deletion erases this payload.
    pub user_id: Option<String>,
    /// What it says.
    pub content: Content,
    /// The event as received, byte for byte.
    pub payload: Bytes,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("type", &self.event_type).finish_non_exhaustive()
    }
}

/// What an event says of its user.
#[derive(Clone, Debug)]
pub enum Content {
    /// `user.created` or `user.updated`: a full picture.
    Live {
        /// The user as of the event.
        user: Box<User>,
        /// Where the event stands among the user's observations.
        version: Version,
    },
    /// `user.deleted`: only the id counts.
    Deleted,
    /// `session.created`, nobody impersonating: a sign-in of its user.
    SignedIn(Timestamp),
    /// A type that changes no user.
    Other,
    /// It cannot be applied; the reason names no value of the payload.
    Unusable(&'static str),
}

/// A user object read from WorkOS's REST API.
#[derive(Clone)]
pub struct Snapshot {
    /// The user as read.
    pub user: User,
    /// `observed_at` is WorkOS's `Date` header less the request's duration; the id is `snapshot:` and a hash.
    pub version: Version,
    /// The object as received, kept only where it cannot be applied.
    pub payload: Bytes,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("user", &self.user).finish_non_exhaustive()
    }
}

/// One thing WorkOS told us.
#[derive(Clone, Debug)]
pub enum Observation {
    /// An event; it also enters the inbox.
    Event(Event),
    /// A snapshot; it leaves no trace but the row, unless it cannot be applied.
    Snapshot(Snapshot),
    /// WorkOS, asked by id, does not know the user: a deletion inferred, where no event told of it.
    Gone {
        /// The user.
        user_id: String,
        /// When WorkOS said so, by its own clock.
        confirmed_at: Timestamp,
    },
}

impl Observation {
    /// The same observation; unless `is_stored`, it tells of no sign-in. Whoever receives an event decides that.
    #[must_use]
    pub fn with_sign_in(self, is_stored: bool) -> Self {
        match self {
            Self::Event(event) if !is_stored && matches!(event.content, Content::SignedIn(_)) => {
                Self::Event(Event { content: Content::Other, ..event })
            }
            other => other,
        }
    }

    /// The user it names, whose row must be locked and whose deletion erases it.
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
    /// WorkOS posted it.
    Webhook,
    /// Read from the Events API behind the cursor.
    CatchUp,
    /// Read from the list of users to fill the table.
    Backfill,
    /// Read from WorkOS to repair the table.
    Reconcile,
    /// Read from WorkOS because a caller asked before any event came.
    ReadThrough,
}

impl Origin {
    /// The word used in the database, in metrics and in logs.
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

    /// The origin of that word.
    #[must_use]
    pub fn read(word: &str) -> Option<Self> {
        let all = [Self::Webhook, Self::CatchUp, Self::Backfill, Self::Reconcile, Self::ReadThrough];
        all.into_iter().find(|origin| origin.as_str() == word)
    }

    /// It tells of what has just happened. Backfill and reconcile find what may be years old: nobody wants ten thousand
    /// welcome mails for that.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Backfill | Self::Reconcile)
    }
}

/// What became of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It changed the row.
    Applied,
    /// The row already knew as much or more.
    Stale,
    /// Its type changes no user.
    Ignored,
    /// It could not be applied; it is kept until retried.
    Quarantined,
}

impl Outcome {
    /// The word used in the database, in metrics and in logs.
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
