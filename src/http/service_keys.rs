//! Service keys, which let backends read users. They are stored as hashes and compared in constant time. Logs contain their labels.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

/// Minimum length of a service key, in bytes. A shorter key could be guessed.
pub const KEY_LENGTH: usize = 32;

/// The accepted keys, as hashes with their labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceKeys(Vec<(String, [u8; 32])>);

impl ServiceKeys {
    pub(crate) fn add(&mut self, label: &str, key: &str) {
        self.0.push((label.to_owned(), Sha256::digest(key).into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the label of the request's key. Compares with every key, so that the time does not reveal which one matched.
    pub(crate) fn label(&self, headers: &HeaderMap) -> Option<&str> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        let given: [u8; 32] = Sha256::digest(key.trim()).into();
        let mut matching = None;
        for (label, hash) in &self.0 {
            if verify_slices_are_equal(hash, &given).is_ok() {
                matching = Some(label.as_str());
            }
        }
        matching.filter(|_| scheme.eq_ignore_ascii_case("bearer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_bearer_key_has_a_label() {
        let mut keys = ServiceKeys::default();
        keys.add("billing", "a-key-of-at-least-32-characters-1");
        keys.add("crm", "a-key-of-at-least-32-characters-2");
        let label = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            keys.label(&headers).map(str::to_owned)
        };
        assert_eq!(label(&["Bearer a-key-of-at-least-32-characters-2"]).as_deref(), Some("crm"));
        assert_eq!(label(&["bearer a-key-of-at-least-32-characters-1"]).as_deref(), Some("billing"));
        for wrong in [
            &["Basic a-key-of-at-least-32-characters-1"][..],
            &["Bearer a-key-of-at-least-32-characters-"],
            &["Bearer "],
            &["a-key-of-at-least-32-characters-1"],
            &["Bearer a-key-of-at-least-32-characters-1", "Bearer a-key-of-at-least-32-characters-1"],
            &[],
        ] {
            assert_eq!(label(wrong), None, "{wrong:?}");
        }
    }
}
