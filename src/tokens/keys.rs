//! The keys of a JWKS document (RFC 7517).

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Accepted size of a modulus, in bytes. Smaller keys are insecure, and larger keys are slow.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The usable keys of one JWKS document, by key ID.
#[derive(Default)]
pub(super) struct KeySet(HashMap<String, PublishedKey>);

/// A key that can verify signatures.
pub(super) struct PublishedKey {
    pub(super) public: ParsedPublicKey,
    pub(super) fingerprint: KeyFingerprint,
}

/// The SHA-256 of a public key. It changes if WorkOS replaces the key under the same key ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyFingerprint([u8; 32]);

impl KeyFingerprint {
    fn of(key: &RsaPublicKeyComponents<Vec<u8>>) -> Self {
        // The length keeps the two numbers apart.
        let length = u64::try_from(key.n.len()).unwrap_or(u64::MAX).to_be_bytes();
        Self(Sha256::new().chain_update(length).chain_update(&key.n).chain_update(&key.e).finalize().into())
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.0.len())
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    n: String,
    e: String,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
}

impl KeySet {
    /// Reads the usable keys and skips the others: one bad key must not make the set unusable. Returns `None` without a key.
    pub(super) fn parse(document: &[u8]) -> Option<Self> {
        let document: Document = serde_json::from_slice(document).ok()?;
        let keys: HashMap<_, _> = document.keys.into_iter().filter_map(usable).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, kid: &str) -> Option<&PublishedKey> {
        self.0.get(kid)
    }
}

fn usable(entry: Value) -> Option<(String, PublishedKey)> {
    let jwk: Jwk = serde_json::from_value(entry).ok()?;
    let for_us = jwk.kty == "RSA"
        && jwk.alg.is_none_or(|alg| alg == "RS256")
        && jwk.usage.is_none_or(|usage| usage == "sig")
        && !jwk.kid.is_empty();
    let n = URL_SAFE_NO_PAD.decode(jwk.n).ok()?;
    let e = URL_SAFE_NO_PAD.decode(jwk.e).ok()?;
    // A JWKS document can contain leading zeros, which the parser rejects.
    let n: Vec<u8> = n.into_iter().skip_while(|byte| *byte == 0).collect();
    if !for_us || !MODULUS_BYTES.contains(&n.len()) {
        return None;
    }
    let key = RsaPublicKeyComponents { n, e };
    let fingerprint = KeyFingerprint::of(&key);
    let public = key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).ok()?;
    Some((jwk.kid, PublishedKey { public, fingerprint }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_entry_is_skipped_and_the_other_keys_of_the_set_stay_usable() {
        let good: Value = serde_json::from_slice(include_bytes!("../../tests/fixtures/jwks.document.json")).unwrap();
        let good = good["keys"][0].clone();
        let changed = |name: &str, value: Value| {
            let mut entry = good.clone();
            entry["kid"] = Value::from(format!("bad {name}"));
            entry[name] = value;
            entry
        };
        let entries = [
            Value::Null,
            Value::from(7),
            changed("kty", "EC".into()),
            changed("alg", "RS512".into()),
            changed("use", "enc".into()),
            changed("n", "AQAB".into()),
            changed("n", "not base64url!".into()),
            changed("kid", "".into()),
            good.clone(),
        ];
        let document = serde_json::json!({ "keys": entries }).to_string();
        let set = KeySet::parse(document.as_bytes()).unwrap();
        assert_eq!(set.len(), 1);
        assert!(set.get(good["kid"].as_str().unwrap()).is_some());
        for nothing in ["", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"RSA"}]}"#, "<html>"] {
            assert!(KeySet::parse(nothing.as_bytes()).is_none(), "{nothing}");
        }
    }
}
