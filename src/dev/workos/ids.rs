//! IDs in WorkOS's format: a prefix and a ULID. They are in the order of creation.

use serde::{Deserialize, Serialize};

use crate::domain::timestamp::Timestamp;

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A seeded generator of random numbers (splitmix64). The same seed gives the same sequence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// Returns true with a probability of `percent`.
    pub(super) fn happens(&mut self, percent: u8) -> bool {
        self.next() % 100 < u64::from(percent)
    }
}

/// Creates ascending IDs, even within a millisecond and when the clock goes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ids {
    random: Random,
    last: u128,
}

impl Ids {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), last: 0 }
    }

    /// Returns the next ID with this prefix.
    pub(super) fn next(&mut self, prefix: &str, now: Timestamp) -> String {
        format!("{prefix}_{}", self.ulid(now))
    }

    /// Returns the next ULID.
    pub(super) fn ulid(&mut self, now: Timestamp) -> String {
        let millis = u128::from(now.unix_millis().unsigned_abs());
        // 48 bits of time and 80 random bits. Within a millisecond: the last one plus one.
        let fresh = (millis << 80) | (u128::from(self.random.next()) << 8);
        self.last = fresh.max(self.last + 1);
        let digit = |place: u32| {
            let index = usize::try_from((self.last >> (5 * place)) & 31).unwrap_or_default();
            char::from(CROCKFORD.get(index).copied().unwrap_or(b'0'))
        };
        (0..26).rev().map(digit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_format_of_workos_and_ascend() {
        let mut ids = Ids::new(7);
        let at = Timestamp::parse("2026-09-01T08:15:30.412Z").unwrap();
        let made: Vec<String> = (0..100).map(|_| ids.next("user", at)).collect();
        assert!(made.is_sorted() && made.iter().all(|id| id.len() == 31));
        // A fixture of the same millisecond has the same prefix.
        assert!(made[0].starts_with("user_01M1E0K8K"), "{}", made[0]);
    }
}
