//! Versions: the order of the observations of one object.

use super::timestamp::Timestamp;

/// Orders observations of one object by `updated_at`, then by `observed_at`, then by ID (bytewise).
///
/// Two different observations are never equal, so observations that arrive in any order have the same latest one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// WorkOS's `updated_at` of the object, or the event's `created_at` if it is missing.
    pub updated_at: Timestamp,
    /// The `created_at` of an event, or the time at which a snapshot was read. If it is missing, `updated_at`.
    pub observed_at: Timestamp,
    /// The event ID, or `snapshot:` and a hash of the object.
    pub id: String,
}

impl Version {
    /// Raises the version of a row that a complete scan of WorkOS's list found unchanged, because WorkOS showed the same object at
    /// this time. The scan does not store the snapshot's hash, so the ID is only its prefix, which sorts after event IDs.
    pub fn confirm(&mut self, at: Timestamp) {
        let confirmed = Self { updated_at: self.updated_at, observed_at: at, id: "snapshot:".to_owned() };
        if *self < confirmed {
            *self = confirmed;
        }
    }
}
