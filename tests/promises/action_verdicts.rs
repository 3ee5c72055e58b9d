//! Stored verdicts: a repeated request for the same action gets the same verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use authkit_sync::domain::action::Verdict;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::runner::BackgroundLoop;
use sqlx::Executor;
use tokio::sync::Barrier;

use crate::support::actions::{GMAIL, allowed, authentication, denied, registration, rules, secrets};
use crate::support::database::TestDatabase;
use crate::support::lab::Lab;
use crate::support::service::Service;

/// This also holds if the rules have changed meanwhile.
#[tokio::test]
async fn every_replica_gives_the_same_verdict_on_an_action_until_its_signature_expires() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let one = Service::start_with(&pool, rules("deny * @gmail.com \"First.\"")).await;
    let other = Service::start_with(&pool, rules("allow * *")).await;
    assert_eq!(one.verdict(&registration("action_1", "eve@gmail.com")).await, denied("First."));
    assert_eq!(other.verdict(&registration("action_1", "eve@gmail.com")).await, denied("First."));
    let first = one.act(&registration("action_1", "eve@gmail.com")).await.json();
    one.clock.set(one.clock.now().plus_seconds(20));
    let later = one.act(&registration("action_1", "eve@gmail.com")).await.json();
    let span = later["payload"]["timestamp"].as_i64().unwrap() - first["payload"]["timestamp"].as_i64().unwrap();
    assert_eq!(span, 20_000, "each answer is signed at its own time");
    assert!(one.metrics().await.contains(r#"decided_by="rule_1"} 1"#), "a verdict is counted when it is made");
    one.stop().await.unwrap();
    other.stop().await.unwrap();
    let kept: Vec<String> =
        sqlx::query_scalar("select to_jsonb(v)::text from workos.action_verdicts as v").fetch_all(&pool).await.unwrap();
    assert!(kept.len() == 1 && !kept[0].contains("gmail"), "{kept:?}");
}

/// An ID alone is not enough: each kind of action, and each content, gets its own verdict.
#[tokio::test]
async fn a_verdict_applies_only_to_its_kind_id_and_content() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start_with(&pool, rules("allow registration *; deny authentication * \"No.\"")).await;
    assert_eq!(service.verdict(&registration("action_1", "eve@example.com")).await, allowed());
    assert_eq!(service.verdict(&authentication("action_1", "user_1")).await, denied("No."), "another kind");
    service.stop().await.unwrap();
    let service = Service::start_with(&pool, rules(GMAIL)).await;
    assert_eq!(service.verdict(&registration("action_2", "eve@example.com")).await, allowed());
    let no = denied("Please sign up with your work address.");
    assert_eq!(service.verdict(&registration("action_2", "eve@gmail.com")).await, no, "another person");
    assert_eq!(service.verdict(&registration("action_2", "eve@example.com")).await, allowed(), "the first again");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn housekeeping_deletes_expired_verdicts() {
    let lab = Lab::new().await;
    lab.pool
        .execute(
            "insert into workos.action_verdicts (id, kind, payload_hash, verdict, decided_by, decided_at)
            select id, 'authentication', sha256(convert_to(id, 'utf8')), 'allow', 'default', now() - age
            from (values ('old', interval '6 minutes'), ('new', interval '4 minutes')) as verdicts (id, age)",
        )
        .await
        .unwrap();
    Housekeeping::new(lab.context(), Duration::from_secs(86_400), None).tick().await;
    let left: Vec<String> =
        sqlx::query_scalar("select id from workos.action_verdicts").fetch_all(&lab.pool).await.unwrap();
    assert_eq!(left, ["new"]);
}

/// Every replica has made another decision before any of them stores it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_concurrent_verdicts_the_first_stored_one_applies() {
    const REPLICAS: usize = 8;
    let database = TestDatabase::new().await;
    let pool = database.pool(12).await;
    let (all_there, calls) = (Arc::new(Barrier::new(REPLICAS)), Arc::new(AtomicUsize::new(0)));
    let (barrier, counted) = (all_there.clone(), calls.clone());
    let service = Service::start_with(&pool, |builder| {
        builder.action_secrets(secrets()).action_deadline(Duration::from_secs(30)).on_action(move |_| {
            let (barrier, number) = (barrier.clone(), counted.fetch_add(1, Ordering::SeqCst));
            async move {
                barrier.wait().await;
                Ok(Some(Verdict::deny(format!("number {number}"))))
            }
        })
    })
    .await;
    let body = registration("action_1", "eve@example.com");
    let verdicts = futures_util::future::join_all((0..REPLICAS).map(|_| service.verdict(&body))).await;
    assert_eq!(calls.load(Ordering::SeqCst), REPLICAS, "all of them decided");
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
    assert_eq!(service.verdict(&body).await, verdicts[0]);
    assert_eq!(calls.load(Ordering::SeqCst), REPLICAS, "who asks later is told without another decision");
    assert!(service.metrics().await.contains(r#"decided_by="handler"} 1"#), "one of them counts");
    service.stop().await.unwrap();
}
