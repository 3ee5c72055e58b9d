//! The cache of verified tokens: a token that is used again needs no second signature check.
//!
//! It stores only what cannot change: which key signed the token, and what the claims are. Every use compares the key with
//! WorkOS's current keys, and the times of the claims with the clock. A token whose key was replaced or removed is verified again.
//!
//! It does not store refused tokens, because otherwise any caller could fill it.

use std::fmt;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::claims::Times;
use super::error::TokenError;
use super::identity::Identity;
use super::keys::KeyFingerprint;

/// Memory for the cache, in bytes. A token of WorkOS takes about 1 KiB.
const MEMORY: u64 = 16 * 1024 * 1024;

/// Memory of an entry without its strings, in bytes, rounded up. It also bounds the number of entries.
const ENTRY: usize = 384;

/// A token whose signature is valid and whose claims are accepted.
pub(super) struct Verified {
    /// The key that signed the token.
    pub(super) key_id: Box<str>,
    pub(super) key: KeyFingerprint,
    /// The times of the claims. The clock decides again at each use.
    pub(super) times: Times,
    pub(super) identity: Identity,
}

impl Verified {
    /// Creates the entry of a token whose claims have passed every check.
    pub(super) fn new(key_id: &str, key: KeyFingerprint, claims: &Map<String, Value>) -> Result<Self, TokenError> {
        let identity = Identity::of(claims).map_err(|error| {
            TokenError::invalid("malformed", format!("its claims cannot be written as JSON: {error}"))
        })?;
        Ok(Self { key_id: key_id.into(), key, times: Times::read(claims)?, identity })
    }

    fn size(&self) -> usize {
        ENTRY + self.key_id.len() + self.identity.size()
    }
}

/// The SHA-256 of a whole token, including the signature. No two tokens have the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// The cache, bounded in bytes. Tokens that are used once do not evict those that are used often. Cloning is cheap; clones share
/// the tokens.
#[derive(Clone)]
pub(super) struct VerifiedTokens(Arc<Cache<TokenHash, Arc<Verified>, Size>>);

impl VerifiedTokens {
    pub(super) fn new() -> Self {
        Self::with_memory(MEMORY)
    }

    fn with_memory(bytes: u64) -> Self {
        let typical = usize::try_from(bytes / 1024).unwrap_or(usize::MAX);
        Self(Arc::new(Cache::with_weighter(typical, bytes, Size)))
    }

    pub(super) fn get(&self, token: &TokenHash) -> Option<Arc<Verified>> {
        self.0.get(token)
    }

    pub(super) fn insert(&self, token: TokenHash, verified: Arc<Verified>) {
        self.0.insert(token, verified);
    }
}

impl fmt::Debug for VerifiedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedTokens({} tokens)", self.0.len())
    }
}

/// Returns the memory of an entry to the cache, in bytes.
#[derive(Clone)]
struct Size;

impl Weighter<TokenHash, Arc<Verified>> for Size {
    fn weight(&self, _: &TokenHash, verified: &Arc<Verified>) -> u64 {
        u64::try_from(verified.size()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(claims: usize) -> Arc<Verified> {
        let parsed = serde_json::json!({"sub": "user_1", "exp": 1, "x": "x".repeat(claims)});
        let Value::Object(parsed) = parsed else { panic!("not an object") };
        Arc::new(Verified::new("key_1", KeyFingerprint::default(), &parsed).unwrap())
    }

    #[test]
    fn a_flood_of_distinct_tokens_stays_within_the_memory_and_leaves_a_token_in_use() {
        const BYTES: u64 = 4 * 1024 * 1024;
        let cache = VerifiedTokens::with_memory(BYTES);
        let used = TokenHash::of("used");
        cache.insert(used, verified(500));
        for at in 0..100_000 {
            assert!(cache.get(&used).is_some(), "evicted after {at} tokens");
            cache.insert(TokenHash::of(&format!("token {at}")), verified(at % 12_000));
            assert!(cache.0.weight() <= BYTES, "{} bytes after {at} tokens", cache.0.weight());
        }
        assert!(cache.0.len() > 100, "the memory is used: {} tokens", cache.0.len());
    }
}
