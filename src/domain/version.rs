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

impl Version {
    /// Raises the version of a row that a complete scan of WorkOS's list found as it stands: the row was observed again at
    /// that instant. The scan does not keep the snapshot's hash; the ID sorts after those of events.
    pub fn confirm(&mut self, at: Timestamp) {
        let confirmed = Self { updated_at: self.updated_at, observed_at: at, id: "snapshot:".to_owned() };
        if *self < confirmed {
            *self = confirmed;
        }
    }
}
