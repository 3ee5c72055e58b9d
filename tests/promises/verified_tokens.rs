//! A token that was verified before gets the same verdict as a token that was not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::tokens::{KeyCache, KeyFetchError, KeySource, TokenPolicy, TokenVerifier};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::support::service::CLIENT_ID;
use crate::support::{fixture, fixture_bytes};

/// A document of signing keys that a test can replace.
struct Document(Mutex<Bytes>);

impl Document {
    fn publish(&self, document: impl Into<Bytes>) {
        *self.0.lock().unwrap() = document.into();
    }
}

impl KeySource for Document {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        let document = self.0.lock().unwrap().clone();
        async move { Ok(document) }.boxed()
    }
}

/// Verifiers that share their keys and their clock.
struct Verifiers {
    document: Arc<Document>,
    keys: KeyCache,
    clock: Clock,
}

impl Verifiers {
    fn new() -> Self {
        let document = Arc::new(Document(Mutex::new(fixture_bytes("jwks.document.during_rotation").into())));
        let clock = Clock::manual(Timestamp::parse("2026-09-01T08:30:00Z").unwrap());
        Self { keys: KeyCache::new(document.clone(), clock.clone()), document, clock }
    }

    /// A verifier that knows no token yet.
    fn verifier(&self) -> TokenVerifier {
        let policy = TokenPolicy::new(CLIENT_ID, "https://api.workos.com").allow_shared_issuer(true);
        TokenVerifier::new(policy, self.keys.clone(), self.clock.clone())
    }

    /// Publishes another document, which is fetched when that is due.
    async fn rotate(&self, document: impl Into<Bytes>) {
        self.document.publish(document);
        self.clock.set(self.clock.now().plus_seconds(700));
        self.keys.refresh_when_due().await;
    }
}

fn vectors() -> Vec<Value> {
    fixture("access_tokens")["vectors"].as_array().unwrap().clone()
}

fn token(name: &str) -> String {
    vectors().iter().find(|vector| vector["name"] == name).unwrap()["token"].as_str().unwrap().to_owned()
}

/// The verdict, with everything that a caller gets.
async fn verdict(verifier: &TokenVerifier, token: &str) -> Result<String, (&'static str, String)> {
    let verified = verifier.verify(token).await;
    verified.map(|it| json!(it).to_string()).map_err(|error| (error.reason(), error.to_string()))
}

#[tokio::test]
async fn every_token_gets_the_same_verdict_again_at_any_time() {
    let them = Verifiers::new();
    let used = them.verifier();
    // Years before and after the tokens were issued, and around the times in their claims.
    let instants: BTreeSet<i64> = vectors()
        .iter()
        .flat_map(|vector| ["exp", "nbf", "iat"].map(|name| vector["claims"][name].as_i64()))
        .flatten()
        .chain([0, 1_788_251_400])
        .flat_map(|at| [-11, -10, -9, 0, 9, 10, 11].map(|away| at + away))
        .collect();
    let mut accepted = 0;
    // The first instant is one at which the tokens are valid, so that they are in the cache at the other instants.
    for at in std::iter::once(1_788_251_400).chain(instants) {
        them.clock.set(Timestamp::from_unix_micros(at * 1_000_000));
        them.keys.refresh_when_due().await;
        for vector in vectors() {
            let (name, token) = (&vector["name"], vector["token"].as_str().unwrap());
            let fresh = verdict(&them.verifier(), token).await;
            assert_eq!(verdict(&used, token).await, fresh, "{name} at {at}");
            assert_eq!(verdict(&used, token).await, fresh, "{name} at {at}, again");
            assert_eq!(used.subject(token).await.is_ok(), fresh.is_ok(), "{name} at {at}");
            accepted += usize::from(fresh.is_ok());
        }
    }
    assert!(accepted > 100, "{accepted}");
}

#[tokio::test]
async fn a_known_token_expires() {
    let them = Verifiers::new();
    let used = them.verifier();
    let expired = token("expired");
    them.clock.set(Timestamp::from_unix_micros((1_788_250_830 - 60) * 1_000_000));
    assert!(verdict(&used, &expired).await.is_ok());
    them.clock.set(Timestamp::from_unix_micros((1_788_250_830 + 12) * 1_000_000));
    let refused = verdict(&used, &expired).await.unwrap_err();
    assert_eq!(refused, ("token_expired", "the token expired 12 s ago".to_owned()));
}

#[tokio::test]
async fn a_known_token_is_refused_once_its_key_is_withdrawn_or_replaced() {
    let them = Verifiers::new();
    let used = them.verifier();
    let token = token("per_client_issuer");
    assert!(verdict(&used, &token).await.is_ok());
    let keys = fixture("jwks.document.during_rotation")["keys"].as_array().unwrap().clone();
    let own = fixture("jwks.document")["keys"][0].clone();
    let other = keys.iter().find(|key| key["kid"] != own["kid"]).unwrap().clone();
    them.rotate(json!({"keys": [other]}).to_string()).await;
    assert_eq!(verdict(&used, &token).await.unwrap_err().0, "unknown_key");
    // Another key under the same key ID.
    let mut replaced = other.clone();
    replaced["kid"] = own["kid"].clone();
    them.rotate(json!({"keys": [replaced]}).to_string()).await;
    assert_eq!(verdict(&used, &token).await.unwrap_err().0, "wrong_signature");
    // The key is published again, in addition to the others.
    them.rotate(json!({"keys": [other, own]}).to_string()).await;
    assert!(verdict(&used, &token).await.is_ok());
    // No document for more than a day.
    them.document.publish("");
    them.clock.set(them.clock.now().plus_seconds(25 * 3_600));
    assert_eq!(verdict(&used, &token).await.unwrap_err().0, "keys_unavailable");
}

#[tokio::test]
async fn only_accepted_tokens_are_remembered() {
    let them = Verifiers::new();
    let verifier = them.verifier();
    let mut accepted = 0;
    for vector in vectors() {
        let token = vector["token"].as_str().unwrap();
        accepted += usize::from(verifier.verify(token).await.is_ok());
        // The same claims with the signature of another key.
        let forged = format!("{}AAAA", token.get(..token.len() - 4).unwrap());
        assert!(verifier.verify(&forged).await.is_err());
        assert!(format!("{verifier:?}").contains(&format!("VerifiedTokens({accepted} tokens)")), "{verifier:?}");
    }
    assert!(accepted > 5, "{accepted}");
}
