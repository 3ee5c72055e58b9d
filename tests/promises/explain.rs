//! `token explain`: the true reason of every rejection, with the checks of the service.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::event::Origin;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::sync::apply;
use authkit_sync::tokens::{CheckResult, Explanation, KeyCache, TokenPolicy, TokenVerifier};
use authkit_sync::workos::http::http_client;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use crate::support::binary::{Served, binary, free_address, said};
use crate::support::events::observed;
use crate::support::fixture;
use crate::support::lab::{Lab, another_workos};
use crate::support::service::{Answer, CLIENT_ID, Keys, until};

fn policy() -> TokenPolicy {
    TokenPolicy::new(CLIENT_ID, "https://api.workos.com")
}

fn at(time: &str) -> Clock {
    Clock::manual(Timestamp::parse(time).unwrap())
}

fn verifier(policy: TokenPolicy, keys: &Arc<Keys>, clock: Clock) -> TokenVerifier {
    TokenVerifier::new(policy, KeyCache::new(keys.clone(), clock.clone()), clock)
}

fn vectors() -> Vec<Value> {
    fixture("access_tokens")["vectors"].as_array().unwrap().clone()
}

fn token(name: &str) -> String {
    vectors().iter().find(|vector| vector["name"] == name).unwrap()["token"].as_str().unwrap().to_owned()
}

fn check<'a>(explanation: &'a Explanation, name: &str) -> &'a authkit_sync::tokens::Check {
    explanation.checks.iter().find(|check| check.check == name).unwrap_or_else(|| panic!("no check {name}"))
}

/// The first check that failed.
fn first_failure(explanation: &Explanation) -> Option<&'static str> {
    explanation.checks.iter().find(|check| check.verdict == CheckResult::Fail).map(|check| check.check)
}

#[tokio::test]
async fn every_access_token_is_explained_by_its_true_cause() {
    let keys = Keys::of("jwks.document");
    let plain = verifier(policy(), &keys, at("2026-09-01T08:30:00Z"));
    for (name, failed, reason, fix) in [
        ("legacy_issuer_unbound", "client", "unbound", "to the JWT template"),
        ("custom_domain_per_client", "issuer", "wrong_issuer", "WORKOS_ISSUER"),
        ("custom_domain_bare", "issuer", "wrong_issuer", "custom auth domain"),
        ("other_client_issuer", "issuer", "wrong_issuer", "another WorkOS environment"),
        ("other_client_aud", "audience", "wrong_audience", "AUTHKIT_SYNC_AUDIENCES"),
        ("other_client_id_claim", "client", "wrong_client", "the same WORKOS_CLIENT_ID"),
        ("machine_to_machine", "subject", "machine_token", "signed-in user"),
        ("expired", "expiry", "token_expired", "refresh the session"),
        ("no_exp", "expiry", "no_expiry", "from AuthKit"),
        ("no_sid", "session", "no_session", "AuthKit session"),
        ("empty_sub", "subject", "no_subject", "AuthKit session"),
        ("issued_far_in_future", "not_before", "not_yet_valid", "clock"),
        ("unknown_kid", "key", "unknown_key", "the same WORKOS_CLIENT_ID"),
        ("wrong_key_same_kid", "signature", "wrong_signature", "forged"),
        ("no_kid", "key", "no_key_id", "from AuthKit"),
        ("alg_none", "algorithm", "wrong_algorithm", "Another system"),
        ("alg_hs256_confusion", "algorithm", "wrong_algorithm", "Another system"),
    ] {
        let explanation = plain.explain(&token(name)).await;
        assert_eq!((explanation.verdict, explanation.reason), ("bad", Some(reason)), "{name}: {explanation:#?}");
        assert_eq!(first_failure(&explanation), Some(failed), "{name}");
        assert!(explanation.fix.as_deref().unwrap().contains(fix), "{name}: {:?}", explanation.fix);
    }
    let custom = "https://auth.customer.example.test";
    let issuers = vec![custom.to_owned(), format!("{custom}/user_management/{CLIENT_ID}")];
    let legacy = verifier(policy().allow_shared_issuer(true), &keys, at("2026-09-01T08:30:00Z"));
    let domain = verifier(policy().issuers(issuers), &keys, at("2026-09-01T08:30:00Z"));
    for vector in vectors() {
        let (name, token) = (vector["name"].as_str().unwrap(), vector["token"].as_str().unwrap());
        let mut accepted = false;
        for verifier in [&plain, &legacy, &domain] {
            let (verified, explanation) = (verifier.verify(token).await, verifier.explain(token).await);
            assert_eq!(explanation.reason, verified.as_ref().err().map(|error| error.reason()), "{name}");
            assert_eq!(explanation.message, verified.as_ref().err().map(ToString::to_string), "{name}");
            assert_eq!(explanation.verdict == "good", verified.is_ok(), "{name}");
            assert_eq!(explanation.checks.len(), 13, "every check is shown: {explanation:#?}");
            accepted |= verified.is_ok();
            let shown = json!(explanation).to_string();
            assert!(shown.is_ascii() && !shown.contains(token), "{name}");
            assert!(!shown.contains("support@") && !shown.contains("Ada"), "{name}: {shown}");
        }
        let expected = vector["expect"].as_str().unwrap();
        assert_eq!(accepted, expected.starts_with("accept"), "{name}: {expected}");
    }
}

#[tokio::test]
async fn claims_without_a_valid_signature_are_shown_and_marked() {
    let keys = Keys::of("jwks.document");
    let verifier = verifier(policy(), &keys, at("2026-09-01T08:30:00Z"));
    for name in ["wrong_key_same_kid", "unknown_kid", "alg_none"] {
        let explanation = verifier.explain(&token(name)).await;
        let issuer = check(&explanation, "issuer");
        assert_eq!((issuer.verdict, issuer.trusted), (CheckResult::Pass, false), "{name}");
        assert!(explanation.subject().is_none(), "{name}: no user is looked up");
    }
    let late = verifier.explain(&token("expired")).await;
    assert!(check(&late, "issuer").trusted && late.subject().is_some(), "an expired token was genuine once");
    let none = verifier.explain("not a token").await;
    assert_eq!((none.reason, check(&none, "issuer").verdict), (Some("malformed"), CheckResult::Skipped));
}

#[tokio::test]
async fn unreachable_keys_give_no_verdict_and_rotated_keys_are_fetched() {
    let keys = Keys::of("jwks.document");
    keys.away.store(true, Ordering::SeqCst);
    let clock = at("2026-09-01T08:30:00Z");
    let judge = verifier(policy(), &keys, clock.clone());
    let away = judge.explain(&token("per_client_issuer")).await;
    assert_eq!((away.verdict, away.reason), ("unknown", Some("keys_unavailable")));
    assert!(check(&away, "key").found.contains("the test has removed the keys"), "{away:#?}");
    keys.away.store(false, Ordering::SeqCst);
    keys.publish("jwks.document.during_rotation");
    clock.set(clock.now().plus_seconds(60));
    assert_eq!(judge.explain(&token("unknown_kid")).await.verdict, "good");
    assert_eq!(judge.explain(&token("per_client_issuer")).await.verdict, "good");
}

/// The keys are fetched while the first token waits, with a running clock.
#[tokio::test]
async fn the_first_token_needs_no_retry() {
    let judge = verifier(policy(), &Keys::of("jwks.document"), Clock::system());
    assert!(judge.verify(&token("per_client_issuer")).await.is_ok());
}

/// For every mutated token, the explanation gives the reason of the verdict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explanation_and_verdict_give_the_same_reason() {
    let keys = Keys::of("jwks.document");
    let judge = verifier(policy(), &keys, at("2026-09-01T08:30:00Z"));
    let tokens: Vec<String> = vectors().iter().map(|vector| vector["token"].as_str().unwrap().to_owned()).collect();
    let header = prop_oneof![
        Just(json!({"alg": "RS256", "kid": "a\"b"})),
        Just(json!({"alg": "none", "crit": ["x"]})),
        Just(json!({"kid": 7})),
        Just(json!([])),
    ];
    let made = header.prop_map(|header| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.AAAA", part(&header), part(&json!({"aud": ["ada@example.test", 7], "exp": "soon"})))
    });
    let bent = (0..tokens.len(), any::<prop::sample::Index>(), any::<u8>()).prop_map(move |(which, at, byte)| {
        let mut bytes = tokens[which].clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = b'!' + byte % 94;
        String::from_utf8(bytes).unwrap()
    });
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
        proptest::test_runner::TestRunner::new(config)
            .run(&prop_oneof![bent, made, "\\PC{0,60}"], |token| {
                let (verified, explanation) =
                    runtime.block_on(async { (judge.verify(&token).await, judge.explain(&token).await) });
                prop_assert_eq!(explanation.reason, verified.err().map(|error| error.reason()), "{}", token);
                let shown = json!(explanation).to_string();
                prop_assert!(shown.is_ascii() && !shown.contains("ada@"), "{}", shown);
                Ok(())
            })
            .unwrap();
    });
}

/// Runs `token explain` of the real binary. Returns its exit code, stdout and stderr.
async fn explain(lab: &Lab, token: &str, more: &[(&'static str, &str)], arguments: &[&str]) -> (i32, String, String) {
    let mut command = binary();
    command.args(["token", "explain"]).args(arguments).envs(lab.environment()).env_remove("WORKOS_API_KEY");
    command.envs(more.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let token = token.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(token.as_bytes());
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(token_free(&said(&output)), "a token is printed: {}", said(&output));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn token_free(said: &str) -> bool {
    !said.contains("eyJ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_names_the_cause_and_ends_by_it() {
    let lab = Lab::new().await;
    let (ada, gone) = (lab.create_user("Ada"), lab.create_user("Grace"));
    lab.backfill().await;
    let (good, deleted) = (lab.workos.sign_in(&ada).unwrap(), lab.workos.sign_in(&gone).unwrap());
    let delete = observed("user.deleted", 9, &json!({"id": gone}));
    apply(&lab.context().store, Origin::Webhook, &[delete]).await.unwrap();
    let with = |claims: Value, life| lab.workos.token_with(claims, life).unwrap();
    let own = |more: Value| {
        let mut claims = json!({"sub": ada, "sid": "session_1"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claims
    };
    let soon = lab.clock.now().unix_seconds() + 3_600;
    for (token, code, reason) in [
        (good.clone(), 0, Value::Null),
        (format!("Authorization: Bearer {good}\n"), 0, Value::Null),
        (with(own(json!({"name": "Ada Quill", "email": "ada@example.test"})), 300), 0, Value::Null),
        (with(own(json!({})), -60), 1, json!("token_expired")),
        (with(own(json!({"nbf": soon})), 7_200), 1, json!("not_yet_valid")),
        (with(own(json!({"iss": "https://auth.example.test"})), 300), 1, json!("wrong_issuer")),
        (with(own(json!({"aud": "ada@example.test"})), 300), 1, json!("wrong_audience")),
        (with(json!({"sub": lab.workos.client_id(), "aud": lab.workos.client_id()}), 300), 1, json!("machine_token")),
        (with(json!({"sub": "user_nobody", "sid": "session_1"}), 300), 1, json!("user_not_found")),
        (deleted, 1, json!("user_deleted")),
        (String::new(), 1, json!("malformed")),
    ] {
        let (ended, out, err) = explain(&lab, &token, &[], &["--json"]).await;
        let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        assert_eq!((ended, &found["reason"]), (code, &reason), "{out}{err}");
        assert!(!out.contains("example.test\"") || reason == "wrong_issuer", "{out}");
        assert!(!out.contains("@example") && !out.contains("Quill"), "{out}");
        assert_eq!(found["fix"].is_string(), code != 0);
        assert_eq!(found["checks"].as_array().unwrap().len(), 14);
    }
    let (code, out, _) = explain(&lab, &good, &[], &[]).await;
    assert_eq!(code, 0, "{out}");
    for says in ["user        synced with the state of 20", "this machine's clock ", "good: every check passed"] {
        assert!(out.contains(says), "{out}");
    }
    // A token of another environment, which has another signing key.
    let other = another_workos(&lab.clock, fastrand::u64(..), None).await;
    let foreign = other.token(&ada, "session_1", 300).unwrap();
    let (code, out, _) = explain(&lab, &foreign, &[], &[]).await;
    assert!(code == 1 && out.contains("reason: unknown_key") && out.contains("no valid signature"));
    // A key that has just been rotated in is fetched.
    lab.workos.rotate_keys().unwrap();
    assert_eq!(explain(&lab, &lab.workos.sign_in(&ada).unwrap(), &[], &[]).await.0, 0);
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_asked_and_what_is_not_set_have_exit_codes_of_their_own() {
    let lab = Lab::new().await;
    let ada = lab.create_user("Ada");
    lab.backfill().await;
    let good = lab.workos.sign_in(&ada).unwrap();
    let (code, out, _) = explain(&lab, &good, &[("DATABASE_URL", "")], &[]).await;
    assert!(code == 0 && out.contains("DATABASE_URL is not set"), "the token alone decides: {out}");
    let nowhere = [("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:9/x"), ("AUTHKIT_SYNC_DB_TIMEOUT", "300ms")];
    let (code, out, err) = explain(&lab, &good, &nowhere, &[]).await;
    assert!(code == 69 && out.contains("reason: database_unavailable"), "{out}{err}");
    assert!(!err.contains("hunter2"));
    let expired = lab.workos.token(&ada, "session_1", -60).unwrap();
    assert_eq!(explain(&lab, &expired, &nowhere, &[]).await.0, 1, "a bad token is bad without a database");
    lab.workos.refuse_keys(Some(StatusCode::BAD_GATEWAY));
    let (code, out, _) = explain(&lab, &good, &[], &[]).await;
    assert!(code == 69 && out.contains("it answered 502") && out.contains("reason: keys_unavailable"), "{out}");
    lab.workos.refuse_keys(None);
    let (code, _, err) = explain(&lab, &good, &[("WORKOS_CLIENT_ID", "")], &[]).await;
    assert!(code == 78 && err.contains("WORKOS_CLIENT_ID is not set"), "{err}");
    let (code, _, err) = explain(&lab, &good, &[("DATABASE_URL", "mysql://x")], &[]).await;
    assert!(code == 78 && err.contains("DATABASE_URL is malformed"), "{err}");
    // The signing keys are then those of another environment, to which this database does not belong.
    let jwks = format!("{}/sso/jwks/{}", lab.workos.base_url(), lab.workos.client_id());
    let issuer = format!("{}/user_management/{}", lab.workos.base_url(), lab.workos.client_id());
    let elsewhere = [("WORKOS_CLIENT_ID", "client_other"), ("WORKOS_JWKS_URL", &jwks), ("WORKOS_ISSUER", &issuer)];
    let theirs = json!({"sub": ada, "sid": "s", "client_id": "client_other", "iss": lab.workos.base_url()});
    let theirs = lab.workos.token_with(theirs, 300).unwrap();
    let base = lab.workos.base_url().to_owned();
    let (code, out, err) = explain(&lab, &theirs, &[elsewhere[0], elsewhere[1], ("WORKOS_ISSUER", &base)], &[]).await;
    assert!(code == 78 && err.contains("rebind"), "{out}{err}");
    assert_eq!(explain(&lab, &good, &elsewhere, &[]).await.0, 1, "the token is bad first");
    // A token that was given as an argument is not printed.
    let (code, _, err) = explain(&lab, "", &[], &[&good]).await;
    assert!(code == 64 && err.contains("on stdin"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_is_named() {
    let lab = Lab::new().await;
    let ada = lab.create_user("Ada");
    lab.backfill().await;
    lab.clock.set(lab.clock.now().plus_seconds(-900));
    let token = lab.workos.sign_in(&ada).unwrap();
    let (code, out, _) = explain(&lab, &token, &[], &[]).await;
    assert!(code == 1 && out.contains("reason: token_expired"), "{out}");
    assert!(out.contains("s ahead of WorkOS's"), "{out}");
}

/// On a terminal, the command prints a prompt and reads one line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_it_prints_a_prompt() {
    let lab = Lab::new().await;
    let token = lab.workos.token("user_nobody", "session_1", 300).unwrap();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let mut command = binary();
    command.args(["token", "explain"]).envs(lab.environment()).env("DATABASE_URL", "").stdin(terminal);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut keyboard = std::fs::File::from(master);
    keyboard.write_all(format!("{token}\n").as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("paste an access token"), "{}", said(&output));
    assert!(token_free(&said(&output)));
}

/// Caller, log and `token explain` get the same reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_log_and_explanation_give_one_reason() {
    let lab = Lab::new().await;
    let ada = lab.create_user("Ada");
    lab.backfill().await;
    let environment = lab.environment();
    let mut more: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    more.push(("AUTHKIT_SYNC_LOG_FORMAT", "json"));
    let served = Served::start(&lab.database.url(), free_address(), &more);
    let with = |more: Value, life| {
        let mut claims = json!({"sub": ada, "sid": "session_1"});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        lab.workos.token_with(claims, life).unwrap()
    };
    let other = another_workos(&lab.clock, fastrand::u64(..), None).await;
    for (number, token) in [
        with(json!({}), -60),
        with(json!({"iss": "https://auth.example.test"}), 300),
        with(json!({"aud": "another"}), 300),
        with(json!({"client_id": "client_other"}), 300),
        with(json!({"sid": null}), 300),
        with(json!({"exp": null}), 300),
        other.token(&ada, "session_1", 300).unwrap(),
        format!("{}x", with(json!({}), 300)),
        lab.workos.token("user_nobody", "session_1", 300).unwrap(),
    ]
    .iter()
    .enumerate()
    {
        let request_id = format!("request-{number}");
        let request = http_client().unwrap().get(served.url("/auth/user")).bearer_auth(token);
        let answer = Answer::of(request.header("x-request-id", &request_id).send().await.unwrap()).await;
        let (_, out, err) = explain(&lab, token, &[], &["--json"]).await;
        let explained: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        let reason = explained["reason"].as_str().unwrap();
        until("the request is logged", async || served.log().contains(&request_id)).await;
        let log = served.log();
        let line = log.lines().find(|line| line.contains(&request_id)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["reason"], reason, "{line}");
        if answer.status == 401 {
            // An expired token is some seconds older by now.
            let message = explained["message"].as_str().unwrap().split(" s ago").next().unwrap();
            let stable = message.trim_end_matches(|char: char| char.is_ascii_digit());
            assert!(answer.header("www-authenticate").contains(stable), "{answer:?} {explained}");
        }
    }
    other.stop().await;
}
