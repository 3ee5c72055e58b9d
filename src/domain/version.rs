//! What orders the observations of one user.

use super::timestamp::Timestamp;

/// Orders observations of one user: by `updated_at`, then by when it was observed, then by id bytewise.
///
/// The order is total over distinct observations, so that any permutation of them has the same last one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// WorkOS's `updated_at` of the user; where it is missing, the event's `created_at`.
    pub updated_at: Timestamp,
    /// An event's `created_at`, a snapshot's reading time; where it is missing, `updated_at`.
    pub observed_at: Timestamp,
    /// The event's id, or `snapshot:` and a hash of what was read.
    pub id: String,
}
