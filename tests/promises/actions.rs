//! Actions over real HTTP: who may sign in or up, signed as WorkOS checks it, and the same for a repeated request.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use authkit_sync::AuthKit;
use authkit_sync::authkit::Builder;
use authkit_sync::dev::workos::ActionAttempt;
use authkit_sync::domain::action::{ActionContext, ActionKind, Verdict};
use authkit_sync::domain::action_rules::Rules;
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::workos::actions::answer;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;
use sqlx::Executor;
use workos::webhook_verification::compute_webhook_signature;
use workos::{ActionType, ActionVerdict, ActionsHelper};

use crate::support::actions::{
    ACTION_SECRET, GMAIL, allowed, authentication, denied, fresh, registration, rules, secrets,
};
use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::lab::Lab;
use crate::support::pgbouncer::as_the_run_wants;
use crate::support::service::{CLIENT_ID, SECRET, Service, until};
use crate::support::{fixture, fixture_bytes};

/// Compares bytes, with the clock of the fixtures.
#[tokio::test]
async fn signed_answers_are_the_fixtures_and_what_the_official_crate_signs() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let message = "Nicht für dieses Gebiet verfügbar 🚫";
    let service = Service::start_with(&pool, rules(&format!("deny registration * \"{message}\""))).await;
    let responses = fixture("action.responses_signed");
    for (response, context, kind, verdict, message) in [
        (0, "action.authentication_context", ActionType::Authentication, ActionVerdict::Allow, ""),
        (1, "action.user_registration_context", ActionType::UserRegistration, ActionVerdict::Deny, message),
    ] {
        let response = &responses["responses"][response];
        let (at, payload) = response["signed_string"].as_str().unwrap().split_once('.').unwrap();
        let at: i64 = at.parse().unwrap();
        service.clock.set(Timestamp::from_unix_micros(at * 1_000));
        let answer = service.act(&Bytes::from(fixture_bytes(context))).await;
        let body = &response["response_body"];
        let (object, signature) = (body["object"].as_str().unwrap(), body["signature"].as_str().unwrap());
        let expected = format!(r#"{{"object":"{object}","payload":{payload},"signature":"{signature}"}}"#);
        assert_eq!((answer.status, answer.text.as_str()), (200, expected.as_str()));
        assert_eq!(answer.header("content-type"), "application/json");
        let now = UNIX_EPOCH + Duration::from_millis(at.try_into().unwrap());
        let official = ActionsHelper::new().with_clock(move || now);
        let signed = official.sign_response(kind, verdict, message, ACTION_SECRET).unwrap();
        assert_eq!(serde_json::to_string(&signed).unwrap(), answer.text);
        let ours: workos::ActionSignedResponse = serde_json::from_str(&answer.text).unwrap();
        let (header, again) = (format!("t={at}, v1={}", ours.signature), serde_json::to_string(&ours.payload).unwrap());
        official.verify_header(&again, &header, ACTION_SECRET).unwrap();
    }
    service.stop().await.unwrap();
}

proptest! {
    /// Any message for a person.
    #[test]
    fn any_message_is_signed_as_the_official_crate_signs_it(message in "\\PC{0,600}|.{0,20}", at in 0_i64..4_000_000_000_000) {
        let verdict = Verdict::deny(&message);
        let ours = answer(ActionKind::Authentication, &verdict, Timestamp::from_unix_micros(at * 1_000), &secrets()[0]);
        let now = UNIX_EPOCH + Duration::from_millis(at.try_into().unwrap());
        let official = ActionsHelper::new().with_clock(move || now);
        let told = verdict.message().unwrap_or_default();
        let whole = message.trim().replace('\0', "\u{FFFD}");
        prop_assert!(told.encode_utf16().count() <= 500 && whole.starts_with(told), "{}", told);
        let theirs = official.sign_response(ActionType::Authentication, ActionVerdict::Deny, told, ACTION_SECRET).unwrap();
        prop_assert_eq!(ours, serde_json::to_string(&theirs).unwrap());
    }

    /// People write rules manually, so any text can occur.
    #[test]
    fn every_text_of_rules_is_parsed_or_refused_without_a_panic(text in "((allow|deny|\\*|@|registration|\"|;|\n|é|\\PC{0,3}) ?){0,12}") {
        let _ = text.parse::<Rules>();
    }
}

#[tokio::test]
async fn a_request_the_official_crate_signs_is_answered_and_read_as_it_reads_it() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen_by = seen.clone();
    let service = Service::start_with(&pool, |builder| {
        builder.action_secrets(secrets()).on_action(move |action| {
            seen_by.lock().unwrap().push(action);
            async { Ok(None) }
        })
    })
    .await;
    for name in
        ["action.authentication_context", "action.user_registration_context", "action.authentication_context.minimal"]
    {
        let mut context = fixture(name);
        // The crate requires more fields of these two objects than WorkOS's own examples contain.
        context.as_object_mut().unwrap().retain(|name, _| name != "organization_membership" && name != "invitation");
        let body = Bytes::from(context.to_string());
        let t = service.clock.now().unix_millis().to_string();
        let v1 = compute_webhook_signature(ACTION_SECRET, &t, std::str::from_utf8(&body).unwrap());
        let header = format!("t={t},v1={v1}");
        assert_eq!(service.act_signed(&body, Some(&header)).await.status, 200, "{name}");
        let now = UNIX_EPOCH + Duration::from_millis(t.parse().unwrap());
        let official = ActionsHelper::new().with_clock(move || now);
        let theirs = official.construct_action(std::str::from_utf8(&body).unwrap(), &header, ACTION_SECRET).unwrap();
        let ours = seen.lock().unwrap().pop().unwrap();
        assert_eq!((ours.payload.clone(), &ours.id), (body, &theirs.id), "byte for byte");
        assert_eq!((&ours.ip_address, &ours.user_agent), (&theirs.ip_address, &theirs.user_agent));
        assert_eq!(ours.device_fingerprint, theirs.device_fingerprint);
        match &ours.context {
            ActionContext::Authentication { user_id, organization_id, issuer, .. } => {
                let user = theirs.user.unwrap();
                assert_eq!((user_id, &ours.email, &ours.first_name), (&user.id, &user.email, &user.first_name));
                assert_eq!(*organization_id, theirs.organization.map(|organization| organization.id));
                assert_eq!(*issuer, theirs.issuer);
            }
            ActionContext::UserRegistration { invitation } => {
                let person = theirs.user_data.unwrap();
                assert_eq!((&ours.email, &ours.name), (&person.email, &person.name));
                assert_eq!(ours.last_name.as_ref(), Some(&person.last_name));
                assert_eq!(*invitation, None);
                assert_eq!(ours.authentication_method.as_deref(), Some("GoogleOAuth"));
            }
        }
        assert!(!format!("{ours:?}").contains("example.test"), "{ours:?}");
    }
    for name in ["action.authentication_context", "action.user_registration_context"] {
        let mut context = fixture(name);
        context["id"] = json!(fresh());
        assert_eq!(service.act(&Bytes::from(context.to_string())).await.status, 200);
        match seen.lock().unwrap().pop().unwrap().context {
            ActionContext::Authentication { organization_membership_id, email_verified, .. } => {
                assert_eq!(json!(organization_membership_id), context["organization_membership"]["id"]);
                assert!(email_verified);
            }
            ActionContext::UserRegistration { invitation } => {
                let (ours, theirs) = (invitation.unwrap(), &context["invitation"]);
                assert_eq!(json!(ours.id), theirs["id"]);
                assert_eq!(json!(ours.organization_id), theirs["organization_id"]);
                assert_eq!(json!(ours.inviter_user_id), theirs["inviter_user_id"]);
            }
        }
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn what_workos_did_not_sign_just_now_with_the_action_secret_is_401() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, rules("deny * *")).await;
    let (body, now) = (registration("action_1", "eve@gmail.com"), service.clock.now());
    let old = Secret::new(ACTION_SECRET).sign(now.plus_seconds(-31), &body);
    let future = Secret::new(ACTION_SECRET).sign(now.plus_seconds(31), &body);
    let webhook = Secret::new(SECRET).sign(now, &body);
    for (header, says) in [
        (None, "missing"),
        (Some("t=1"), "malformed"),
        (Some(old.as_str()), "31 s old"),
        (Some(future.as_str()), "31 s in the future"),
        (Some(webhook.as_str()), "no configured secret"),
    ] {
        let answer = service.act_signed(&body, header).await;
        assert_eq!(answer.code(), (401, "signature_invalid".to_owned()), "{}", answer.text);
        assert!(answer.text.contains(says), "{} does not say {says}", answer.text);
    }
    let edge = Secret::new(ACTION_SECRET).sign(now.plus_seconds(-30), &body);
    assert_eq!(service.act_signed(&body, Some(&edge)).await.status, 200);
    // The reverse case: the webhook route refuses a body that was signed with an action secret.
    let event = Secret::new(ACTION_SECRET).sign(now, &body);
    assert_eq!(service.deliver_signed(&body, Some(&event)).await.status, 401);
    assert_eq!(service.get("/workos/action").await.status, 405);
    let huge = Bytes::from(vec![b' '; 1024 * 1024 + 1]);
    assert_eq!(service.act(&huge).await.code(), (413, "body_too_large".to_owned()));
    service.stop().await.unwrap();
    let without = Service::start(&pool).await;
    assert_eq!(without.act(&body).await.status, 404, "without a secret there is no such route");
    without.stop().await.unwrap();
}

#[tokio::test]
async fn an_unknown_object_is_400_and_never_a_registration() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, rules("allow * *")).await;
    let person = json!({"email": "eve@example.test"});
    for (body, code) in [
        (json!({"object": "future_action_context", "id": "a", "user_data": person}).to_string(), "unknown_action"),
        (json!({"object": "user_registration", "id": "a", "user_data": person}).to_string(), "unknown_action"),
        (json!({"object": 1, "id": "a", "user_data": person}).to_string(), "unknown_action"),
        (json!({"id": "a", "user_data": person}).to_string(), "unknown_action"),
        (json!({"object": "user_registration_action_context", "user_data": person}).to_string(), "not_an_action"),
        (
            json!({"object": "user_registration_action_context", "id": "", "user_data": person}).to_string(),
            "not_an_action",
        ),
        (json!({"object": "user_registration_action_context", "id": "a"}).to_string(), "not_an_action"),
        (
            json!({"object": "user_registration_action_context", "id": "a", "user_data": {"email": 7}}).to_string(),
            "not_an_action",
        ),
        (json!({"object": "authentication_action_context", "id": "a", "user": person}).to_string(), "not_an_action"),
        (format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)), "not_an_action"),
        ("[]".to_owned(), "not_an_action"),
        (String::new(), "not_an_action"),
    ] {
        let answer = service.act(&Bytes::from(body.clone())).await;
        assert_eq!(answer.code(), (400, code.to_owned()), "{body}");
        assert!(!answer.text.contains("eve@"), "{}", answer.text);
    }
    let stored: i64 = sqlx::query_scalar("select count(*) from workos.action_verdicts").fetch_one(&pool).await.unwrap();
    assert_eq!(stored, 0);
    let odd = json!({"object": "user_registration_action_context", "id": "a\u{0}", "ip_address": {}, "invitation": 7,
        "user_data": {"email": "eve\u{0}@example.test", "first_name": 42}, "more": [1]});
    assert_eq!(service.act(&Bytes::from(odd.to_string())).await.status, 200, "oddities elsewhere are normalised");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn rules_decide_and_nothing_else_is_allowed_or_denied_by_them() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, rules(GMAIL)).await;
    let no = denied("Please sign up with your work address.");
    assert_eq!(service.verdict(&registration(&fresh(), "Eve@GMail.com")).await, no);
    assert_eq!(service.verdict(&registration(&fresh(), "eve@example.com")).await, allowed());
    assert_eq!(service.verdict(&authentication(&fresh(), "user_1")).await, allowed());
    let page = service.metrics().await;
    for line in [
        r#"authkit_sync_actions_total{kind="user_registration",verdict="deny",decided_by="rule_1"} 1"#,
        r#"authkit_sync_actions_total{kind="user_registration",verdict="allow",decided_by="default"} 1"#,
        r#"authkit_sync_actions_total{kind="authentication",verdict="allow",decided_by="default"} 1"#,
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn a_handler_that_fails_panics_or_hangs_is_503_and_allows_no_sign_in() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let start = |deadline| {
        Service::start_with(&pool, move |builder| {
            let builder = builder.action_secrets(secrets()).action_deadline(deadline);
            builder.action_rules("allow * *".parse().unwrap()).on_action(|action| async move {
                match action.email.as_str() {
                    "fails@example.com" => Err("fails@example.com is not here".into()),
                    "panics@example.com" => panic!("a handler of the test panics"),
                    "hangs@example.com" => std::future::pending().await,
                    "denied@example.com" => Ok(Some(Verdict::deny(""))),
                    _ => Ok(None),
                }
            })
        })
    };
    let (service, hurried) = (start(Duration::from_secs(30)).await, start(Duration::from_secs(2)).await);
    for (service, email) in
        [(&service, "fails@example.com"), (&service, "panics@example.com"), (&hurried, "hangs@example.com")]
    {
        let answer = service.act(&registration(&fresh(), email)).await;
        assert_eq!(answer.code(), (503, "handler_failed".to_owned()));
        assert!(!answer.header("retry-after").is_empty() && !answer.text.contains("example.com"), "{}", answer.text);
    }
    assert_eq!(service.verdict(&registration(&fresh(), "denied@example.com")).await, ("Deny".to_owned(), None));
    assert_eq!(service.verdict(&registration(&fresh(), "other@example.com")).await, allowed());
    service.stop().await.unwrap();
    hurried.stop().await.unwrap();
}

#[tokio::test]
async fn without_the_database_there_is_no_verdict() {
    let database = TestDatabase::new().await;
    let (pool, blocker) = (as_the_run_wants(&database.pool(4).await), database.pool(1).await);
    let hurried =
        Service::start_with(&pool, |builder| rules("allow * *")(builder).action_deadline(Duration::from_millis(200)))
            .await;
    let service = Service::start_with(&pool, rules("allow * *")).await;
    assert_eq!(service.verdict(&registration(&fresh(), "a@example.com")).await, allowed());
    let mut open = blocker.acquire().await.unwrap();
    open.execute("begin; lock table workos.action_verdicts in access exclusive mode").await.unwrap();
    let answer = hurried.act(&registration(&fresh(), "a@example.com")).await;
    assert_eq!(answer.code(), (503, "database_unavailable".to_owned()), "{}", answer.text);
    open.execute("rollback").await.unwrap();
    assert_eq!(service.verdict(&registration(&fresh(), "a@example.com")).await, allowed(), "and it comes back");
    pool.close().await;
    let answer = service.act(&registration(&fresh(), "a@example.com")).await;
    assert_eq!(answer.code(), (503, "database_unavailable".to_owned()));
    assert!(!answer.header("retry-after").is_empty());
    service.stop().await.unwrap();
    hurried.stop().await.unwrap();
}

#[tokio::test]
async fn during_a_rotation_the_response_is_signed_with_the_secret_of_the_request() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let two = vec![Secret::new("actsec_new"), Secret::new("actsec_old")];
    let service = Service::start_with(&pool, |builder| builder.action_secrets(two.clone())).await;
    for secret in &two {
        let body = registration(&fresh(), "ada@example.com");
        let now = service.clock.now();
        let answer = service.act_signed(&body, Some(&secret.sign(now, &body))).await;
        let payload = format!(r#"{{"timestamp":{},"verdict":"Allow"}}"#, now.unix_millis());
        assert_eq!(answer.json()["signature"], secret.signature(now, payload.as_bytes()), "{}", answer.text);
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_library_refuses_an_incomplete_configuration() {
    let pool = sqlx::postgres::PgPoolOptions::new().connect_lazy("postgres://localhost/none").unwrap();
    let refused = |change: &dyn Fn(Builder) -> Builder| {
        let builder = AuthKit::builder(pool.clone(), CLIENT_ID).webhook_secrets(vec![Secret::new(SECRET)]);
        change(builder).build().unwrap_err().to_string()
    };
    assert!(refused(&|it| it.action_secrets(vec![Secret::new(SECRET)])).contains("also a webhook secret"));
    assert!(refused(&|it| it.on_action(|_| async { Ok(None) })).contains("without an action secret"));
    assert!(refused(&|it| it.action_secrets(secrets()).webhook_path("/workos/action")).contains("webhook path"));
}

/// The simulated WorkOS accepts only valid responses. Any failure is a denial, as by default at WorkOS.
#[tokio::test]
async fn the_simulated_workos_accepts_only_signed_answers() {
    let lab = Lab::new().await;
    let user = lab.create_user("Ada");
    let secret = vec![Secret::new(lab.workos.action_secret())];
    let clock = lab.clock.clone();
    let service = Service::start_with(&lab.pool, |builder| {
        builder.action_secrets(secret).action_rules(GMAIL.parse().unwrap()).clock(clock)
    })
    .await;
    let sign_up = |email: &str| ActionAttempt { email: Some(email.to_owned()), ..ActionAttempt::default() };
    assert!(lab.workos.attempt(sign_up("eve@gmail.com")).await.is_err(), "there is no decision endpoint");
    lab.workos.set_action_endpoint(&service.url("/workos/action"));
    let judged = lab.workos.attempt(sign_up("eve@gmail.com")).await.unwrap();
    assert_eq!((judged.verdict.as_str(), judged.failure), ("Deny", None));
    assert_eq!(judged.error_message.as_deref(), Some("Please sign up with your work address."));
    let of_the_same_id = |email: &str| ActionAttempt { id: Some(judged.id.clone()), ..sign_up(email) };
    assert_eq!(lab.workos.attempt(of_the_same_id("eve@gmail.com")).await.unwrap().verdict, "Deny");
    assert_eq!(lab.workos.attempt(of_the_same_id("ada@example.com")).await.unwrap().verdict, "Allow", "another person");
    let over_http = lab.workos.base_url().to_owned() + "/_simulate/actions";
    let answer = service.client.post(over_http).json(&json!({"user_id": user})).send().await.unwrap();
    let judged: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&judged["verdict"], &judged["failure"]), (&json!("Allow"), &json!(null)));
    let other = lab.workos.attempt(ActionAttempt { user_id: Some("user_nobody".into()), ..ActionAttempt::default() });
    assert!(other.await.is_err());
    lab.workos.set_action_endpoint(&service.url("/healthz"));
    let judged = lab.workos.attempt(sign_up("ada@example.com")).await.unwrap();
    assert_eq!((judged.verdict.as_str(), judged.failure.is_some()), ("Deny", true));
    service.stop().await.unwrap();
}

/// The real binary counts and logs a denial by rule, without personal data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_counted_and_logged_by_rule_without_personal_data() {
    let database = TestDatabase::new().await;
    let mut served = Served::start(
        &database.url(),
        free_address(),
        &[
            ("RUST_LOG", "trace"),
            ("WORKOS_ACTION_SECRET", ACTION_SECRET),
            (
                "AUTHKIT_SYNC_ACTION_RULES",
                "allow * boss.personal@gmail.com; deny registration @gmail.com \"Personal word\"",
            ),
        ],
    );
    let client = authkit_sync::workos::http::http_client().unwrap();
    for email in ["eve.personal@gmail.com", "boss.personal@gmail.com"] {
        let body = registration(&fresh(), email);
        let header = Secret::new(ACTION_SECRET).sign(Clock::system().now(), &body);
        let request = client.post(served.url("/workos/action")).header("workos-signature", header).body(body);
        assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
    }
    let page = crate::support::service::http_ok(&format!("http://{}/metrics", served.ops)).await;
    let counted = r#"authkit_sync_actions_total{kind="user_registration",verdict="deny",decided_by="rule_2"} 1"#;
    assert!(page.contains(counted), "{page}");
    until("the log has both", async || served.log().matches("action.verdict").count() == 2).await;
    assert!(served.terminate().success());
    let log = served.log();
    let line = log.lines().find(|line| line.contains("action.verdict=\"deny\"")).unwrap_or_else(|| panic!("{log}"));
    for part in ["action.id=\"action_", "action.kind=\"user_registration\"", "action.decided_by=\"rule_2\""] {
        assert!(line.contains(part), "{line}");
    }
    for (place, text) in [("the log", &log), ("a metric", &page)] {
        for word in ["ersonal", "gmail", "203.0.113.9", ACTION_SECRET] {
            let line = text.lines().find(|line| line.contains(word) && !line.starts_with("# HELP"));
            assert!(line.is_none(), "{place} holds {word}: {line:?}");
        }
    }
}
