//! Promises 7 and 8: the token decides nothing before its signature, every refusal names its reason, and who must act
//! decides the status. Every row of the lookups' status table, over real HTTP.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::tokens::{KeyFetchError, KeySource};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::fixture;
use crate::support::service::{CLIENT_ID, Service};

/// The user of every fixture token.
const USER: &str = "user_01M1E0K8KTSGG8REDJXJJNWG5C";

fn token(name: &str) -> String {
    let tokens = fixture("access_tokens");
    let vector = tokens["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == name);
    vector.unwrap_or_else(|| panic!("no token {name}"))["token"].as_str().unwrap().to_owned()
}

async fn with_user(pool: &PgPool) -> Service {
    let service = Service::start(pool).await;
    let created = body(&unique("event"), "user.created", 0, &user(USER, "Ada", 0));
    assert_eq!(service.deliver(&created).await.status, 200);
    service
}

#[tokio::test]
async fn every_access_token_gets_its_expected_verdict() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let custom = format!("https://auth.customer.example.test/user_management/{CLIENT_ID}");
    let plain = with_user(&pool).await;
    let legacy = Service::start_with(&pool, |builder| builder.allow_shared_issuer(true)).await;
    let domain = Service::start_with(&pool, |builder| {
        builder.issuers(vec![custom.clone(), "https://auth.customer.example.test".to_owned()])
    })
    .await;
    let tokens = fixture("access_tokens");
    let vectors = tokens["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 25);
    for vector in vectors {
        let (name, expect) = (vector["name"].as_str().unwrap(), vector["expect"].as_str().unwrap());
        let token = vector["token"].as_str().unwrap();
        // Which of the three services must accept the token.
        let (by_plain, by_legacy, by_domain) = match expect {
            "accept only with the explicit legacy opt-in" => (false, true, false),
            "accept when that issuer is configured" => (false, false, true),
            accept if accept.starts_with("accept") => (true, true, false),
            reject => {
                assert!(reject.contains("401"), "{name}: {reject}");
                (false, false, false)
            }
        };
        for (service, accepted) in [(&plain, by_plain), (&legacy, by_legacy), (&domain, by_domain)] {
            let answer = service.ask("/auth/session", token).await;
            if accepted {
                assert_eq!(answer.status, 200, "{name}: {}", answer.text);
                let identity = &answer.json()["identity"];
                assert_eq!(identity["claims"], vector["claims"], "{name}");
                assert_eq!(identity["impersonated"], json!(expect.contains("impersonated")), "{name}");
                let issuer = vector["claims"]["iss"].as_str().unwrap();
                assert_eq!(identity["token_identifier"], json!(format!("{issuer}|{USER}")), "{name}");
            } else {
                assert_eq!(answer.status, 401, "{name}: {}", answer.text);
                let challenge = answer.header("www-authenticate");
                assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{challenge}");
                assert!(challenge.len() > 60 && challenge.is_ascii(), "{name} gives no reason: {challenge}");
            }
        }
    }
    for service in [plain, legacy, domain] {
        service.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_names_the_real_reason() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = with_user(&pool).await;
    service.clock.set(Timestamp::from_unix_micros((1_788_250_830 + 12) * 1_000_000));
    let expired = service.ask("/auth/user", &token("expired")).await;
    assert_eq!(expired.code(), (401, "token_expired".to_owned()));
    assert!(
        expired.header("www-authenticate").contains("error_description=\"the token expired 12 s ago\""),
        "{expired:?}"
    );
    for (name, says) in [
        (
            "other_client_issuer",
            "is not accepted (accepted: https://api.workos.com, https://api.workos.com/user_management/client_01KT",
        ),
        ("custom_domain_bare", "issuer https://auth.customer.example.test is not accepted"),
        ("other_client_aud", "audience client_00000000000000000000000000 is not accepted (accepted: client_01KT"),
        ("other_client_id_claim", "client_id is client_00000000000000000000000000, not client_01KT"),
        ("legacy_issuer_unbound", "names no client"),
        ("machine_to_machine", "belongs to a machine"),
        ("no_exp", "never expire"),
        ("no_sid", "no sid"),
        ("issued_far_in_future", "not valid yet"),
        ("wrong_key_same_kid", "the signature does not match key"),
        ("unknown_kid", "which WorkOS does not publish"),
        ("no_kid", "has no key ID"),
        ("alg_none", "algorithm none is not accepted, only RS256"),
        ("alg_hs256_confusion", "algorithm HS256 is not accepted, only RS256"),
    ] {
        let answer = service.ask("/auth/user", &token(name)).await;
        assert_eq!(answer.code(), (401, "token_invalid".to_owned()), "{name}");
        let challenge = answer.header("www-authenticate").to_owned();
        assert!(challenge.contains(says), "{name}: {challenge}");
        assert!(answer.text.contains(says), "{name}: {}", answer.text);
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_user_is_workos_own_object() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start(&pool).await;
    let sent = fixture("user.unknown_extra_fields");
    assert_eq!(service.deliver(&body("event_1", "user.updated", 0, &sent)).await.status, 200);
    let answer = service.ask("/auth/user", &token("per_client_issuer")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json(), sent, "every field comes back, those we have no column for too");
    assert!(answer.text.contains("\"favourite_number\":12345678901234567890"), "to the digit");
    let session = service.ask("/auth/session", &token("per_client_issuer")).await.json();
    assert_eq!(session["user"], sent);
    assert_eq!(session["synced_through"], Value::Null);
    let minimal = fixture("user.legacy_minimal");
    assert_eq!(service.deliver(&body("event_2", "user.created", 0, &minimal)).await.status, 200);
    let row: (Option<String>, Value) = sqlx::query_as("select locale, metadata from workos.get_auth_user($1)")
        .bind(minimal["id"].as_str())
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(row, (None, json!({})), "absent is null, and absent metadata is empty");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn missing_and_malformed_authorization_headers_are_distinguished_from_bad_tokens() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = with_user(&pool).await;
    let ask = async |values: &[&str]| {
        let mut request = service.client.get(service.url("/auth/user"));
        for value in values {
            request = request.header("authorization", *value);
        }
        crate::support::service::Answer::of(request.send().await.unwrap()).await
    };
    let good = token("per_client_issuer");
    for odd in [&[][..], &["Basic abc"], &["Bearer"], &["Bearer "], &[""]] {
        let answer = ask(odd).await;
        assert_eq!(answer.code(), (401, "token_missing".to_owned()), "{odd:?}");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"authkit-sync\"");
    }
    let bearer = format!("Bearer {good}");
    assert_eq!(ask(&[&bearer, &bearer]).await.status, 401, "two headers: which one was checked by whom?");
    assert_eq!(ask(&[&format!("bEARER {good}")]).await.status, 200);
    let huge = format!("Bearer {}", "a".repeat(17_000));
    assert_eq!(ask(&[&huge]).await.code(), (401, "token_invalid".to_owned()));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_good_token_of_an_unknown_or_deleted_user_is_404_with_its_own_code() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start(&pool).await;
    let token = token("per_client_issuer");
    assert_eq!(service.ask("/auth/user", &token).await.code(), (404, "user_not_found".to_owned()));
    assert_eq!(service.ask("/auth/session", &token).await.code(), (404, "user_not_found".to_owned()));
    assert_eq!(service.ask("/auth/identity", &token).await.status, 200, "the token alone is good");
    assert_eq!(service.deliver(&body("event_1", "user.deleted", 0, &json!({"id": USER}))).await.status, 200);
    assert_eq!(service.ask("/auth/user", &token).await.code(), (404, "user_deleted".to_owned()));
    service.stop().await.unwrap();
}

#[tokio::test]
async fn without_keys_no_user_is_signed_out() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start_with(&pool, |builder| builder).await;
    let good = token("per_client_issuer");
    // Cached keys stay in use while a refresh fails. Only an unknown key is 503.
    assert_eq!(service.ask("/auth/identity", &good).await.status, 200);
    service.keys.away.store(true, Ordering::SeqCst);
    service.clock.set(service.clock.now().plus_seconds(3_600));
    assert_eq!(service.ask("/auth/identity", &good).await.status, 200);
    let unknown = service.ask("/auth/identity", &token("unknown_kid")).await;
    assert_eq!(unknown.code(), (503, "keys_unavailable".to_owned()));
    assert!(unknown.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Rotation: the key is published, and after the cooldown the token is accepted.
    service.keys.away.store(false, Ordering::SeqCst);
    service.keys.publish("jwks.document.during_rotation");
    service.clock.set(service.clock.now().plus_seconds(31));
    assert_eq!(service.ask("/auth/identity", &token("unknown_kid")).await.status, 200);
    // After a day without WorkOS, the cached keys are not used any more.
    service.keys.away.store(true, Ordering::SeqCst);
    service.clock.set(service.clock.now().plus_seconds(25 * 3_600));
    assert_eq!(service.ask("/auth/identity", &good).await.code(), (503, "keys_unavailable".to_owned()));
    service.stop().await.unwrap();
}

/// A source of signing keys with a defect.
#[derive(Debug)]
struct Panicking;

impl KeySource for Panicking {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        panic!("a source of keys of the test panics")
    }
}

#[tokio::test]
async fn a_source_of_keys_that_panics_is_a_failure_with_a_reason_and_signs_nobody_out() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start_with(&pool, |builder| builder.key_source(Arc::new(Panicking))).await;
    let answer = service.ask("/auth/identity", &token("per_client_issuer")).await;
    assert_eq!(answer.code(), (503, "keys_unavailable".to_owned()));
    let ready: Value =
        service.client.get(format!("http://{}/readyz", service.ops)).send().await.unwrap().json().await.unwrap();
    let keys = &ready["signing_keys"];
    assert!(keys["error"].as_str().unwrap().contains("panicked, which is a defect"), "{keys}");
    assert!(keys["failures"].as_u64().unwrap() > 0 && keys["failing_since"].is_string(), "{keys}");
    service.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tokens_with_unknown_keys_cause_one_request_to_workos() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = Service::start(&pool).await;
    assert_eq!(service.ask("/auth/identity", &token("per_client_issuer")).await.status, 200);
    service.clock.set(service.clock.now().plus_seconds(60));
    let before = service.keys.fetches.load(Ordering::SeqCst);
    let unknown = token("unknown_kid");
    let (client, url) = (service.client.clone(), service.url("/auth/identity"));
    let ask = |_| {
        let request = client.get(&url).bearer_auth(&unknown);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    // At once, as far as an ordinary user's limit of 1,024 open files allows for both ends.
    let mut answers = futures_util::stream::iter(0..1_000).map(ask).buffer_unordered(200);
    while let Some(status) = answers.next().await {
        assert_eq!(status, 401);
    }
    assert_eq!(service.keys.fetches.load(Ordering::SeqCst), before + 1);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn every_form_of_the_published_keys_is_read() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    for document in ["jwks.document", "jwks.document.during_rotation", "jwks.document.minimal_like_emulator"] {
        let service = Service::start(&pool).await;
        service.keys.publish(document);
        assert_eq!(service.ask("/auth/identity", &token("per_client_issuer")).await.status, 200, "{document}");
        service.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_tokens_are_refused_without_harm() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let service = with_user(&pool).await;
    let good = token("per_client_issuer");
    let mutated = (any::<prop::sample::Index>(), any::<u8>()).prop_map({
        let good = good.clone();
        move |(at, byte)| {
            let mut bytes = good.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = b'!' + byte % 94;
            String::from_utf8(bytes).unwrap()
        }
    });
    let strategy =
        prop_oneof![mutated, "[!-~]{1,200}", "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}"];
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 400,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner.run(&strategy, |token| {
            let answer = runtime.block_on(service.ask("/auth/user", &token));
            prop_assert!(answer.status == 401 || token == good, "{token} was answered {}", answer.status);
            prop_assert!(answer.text.is_ascii());
            Ok(())
        })
    })
    .unwrap();
    assert_eq!(service.ask("/auth/user", &good).await.status, 200);
    service.stop().await.unwrap();
}

#[tokio::test]
async fn without_the_database_lookups_are_503_and_the_identity_route_still_answers() {
    let database = TestDatabase::new().await;
    let nowhere = database.options().host("127.0.0.1").socket("/nonexistent");
    let pool =
        sqlx::postgres::PgPoolOptions::new().acquire_timeout(Duration::from_millis(200)).connect_lazy_with(nowhere);
    let service = Service::start_with(&pool, |builder| builder.database_timeout(Duration::from_millis(500))).await;
    let good = token("per_client_issuer");
    let answer = service.ask("/auth/user", &good).await;
    assert_eq!(answer.code(), (503, "database_unavailable".to_owned()));
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(service.ask("/auth/identity", &good).await.status, 200);
    let delivery = service.deliver(&body("event_1", "user.created", 0, &user(USER, "Ada", 0))).await;
    assert_eq!(delivery.code(), (503, "database_unavailable".to_owned()));
    assert!(!delivery.header("retry-after").is_empty());
    assert_eq!(service.get("/healthz").await.status, 200, "the process is alive");
    assert_eq!(service.get("/readyz").await.status, 503);
    service.stop().await.unwrap();
}
