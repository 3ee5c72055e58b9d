//! Promise 2: secrets of WorkOS are set to null before anything is stored, and in the payloads that an earlier release stored.

use std::time::Duration;

use authkit_sync::domain::event::Origin;
use authkit_sync::sync::apply;
use authkit_sync::sync::catch_up::CatchUp;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::runner::BackgroundLoop;
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};

use crate::support::database::TestDatabase;
use crate::support::events::{body, observed, unique, user};
use crate::support::fixture;
use crate::support::lab::Lab;
use crate::support::service::Service;

/// Every secret of these tests contains this text.
const MARK: &str = "Zx8q";

/// Types and data of the events that contain secrets, from the fixtures.
fn events() -> Vec<(String, Value)> {
    let fixtures = [
        "event.organization.created",
        "event.organization.updated",
        "event.organization.deleted",
        "event.organization_domain.created",
        "event.organization_domain.verified",
        "event.organization_domain.verification_failed",
        "event.session.created",
        "event.session.revoked",
        "event.invitation.created",
    ];
    let events = fixtures.map(|name| {
        let mut event = fixture(name);
        if name.contains("invitation") {
            // The simulator that WorkOS publishes sends both.
            event["data"]["token"] = json!("Zx8q-invitation");
            event["data"]["accept_invitation_url"] = json!("https://example.test/invitation?token=Zx8q-invitation");
        }
        let text = event.to_string();
        let text =
            text.replace("tok4Yq", "Zx8q-domain").replace("203.0.113.9", "Zx8q-ip").replace("Mozilla", "Zx8q-agent");
        assert!(text.contains(MARK), "{name} contains a secret");
        let event: Value = serde_json::from_str(&text).unwrap();
        (event["event"].as_str().unwrap().to_owned(), event["data"].clone())
    });
    events.into()
}

/// Counts the rows of all tables that contain a secret.
async fn rows_with_secrets(pool: &PgPool) -> i64 {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables
        where schemaname = 'workos' and tablename <> 'migrations'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut rows = 0;
    for table in tables {
        let sql = format!(
            "select count(*) from {table} as row_of_it where row_of_it::text like '%{MARK}%'
                or row_of_it::text like '%' || encode('{MARK}', 'hex') || '%'"
        );
        rows += sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.unwrap();
    }
    rows
}

#[tokio::test]
async fn no_secret_is_stored_whether_an_event_is_applied_or_quarantined() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let service = Service::start(&pool).await;
    for (event_type, data) in events() {
        let deep: Value = (0..130).fold(data.clone(), |inner, _| json!([inner]));
        for data in [data.clone(), json!([data]), json!({"id": data["id"], "x": deep})] {
            let answer = service.deliver(&body(&unique("event"), &event_type, 0, &data)).await;
            assert_eq!(answer.status, 200, "{event_type}: {}", answer.text);
        }
    }
    // PostgreSQL rejects the number, so the event is quarantined after it was parsed.
    let (event_type, mut data) = events().swap_remove(1);
    data["id"] = json!("org_refused");
    let refused = body(&unique("event"), &event_type, 9, &data);
    let refused = std::str::from_utf8(&refused).unwrap().replacen("\"data\":{", "\"data\":{\"n\":1e200000,", 1);
    let answer = service.deliver(&refused.into()).await;
    assert_eq!(answer.json()["outcome"], json!("quarantined"), "{}", answer.text);
    service.stop().await.unwrap();
    let kept: i64 =
        sqlx::query_scalar("select count(*) from workos.events where outcome = 'quarantined' and payload is not null")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert!(kept > 16, "{kept}");
    assert_eq!(rows_with_secrets(&pool).await, 0);
}

#[tokio::test]
async fn catch_up_stores_no_secret() {
    let lab = Lab::new().await;
    let types = events().into_iter().map(|(event_type, _)| event_type).collect();
    let catch_up = CatchUp::new(lab.context(), types, Duration::ZERO);
    let stored = async || lab.count("select count(*) from workos.events").await;
    for (event_type, data) in events() {
        let _ = lab.workos.emit(&event_type, data.clone());
        let _ = lab.workos.emit(&event_type, json!([data]));
    }
    for _ in 0..20 {
        catch_up.tick().await;
        if stored().await == 18 {
            break;
        }
    }
    assert_eq!(stored().await, 18);
    assert_eq!(rows_with_secrets(&lab.pool).await, 0);
}

/// What an earlier release has stored: events of users, sessions and invitations in turn.
const OLD_EVENTS: &str = r#"insert into workos.events (id, type, user_id, outcome, payload, received_at)
    select
        'event_' || n,
        (array['user.updated', 'session.created', 'invitation.created'])[n % 3 + 1],
        null,
        (array['applied', 'ignored', 'quarantined'])[n % 3 + 1],
        convert_to(
            (array[
                '{ "event":"user.updated", "token":1}',
                '{"id":"e","event":"session.created","data":{"ip_address" : "Zx8q","n":1.0}}',
                '{"id":"e","event":"invitation.created","data":{"\u0074oken":"Zx8q"}}'
            ])[n % 3 + 1],
            'UTF8'
        ),
        now() - interval '2 days' + n * interval '1 ms'
    from generate_series(1, 600) as n"#;

#[tokio::test]
async fn payloads_of_an_earlier_release_are_cleaned_once_in_batches() {
    let lab = Lab::new().await;
    let bound = observed("user.created", 0, &user(&unique("user"), "Ada", 0));
    apply(&lab.context().store, Origin::Webhook, &[bound]).await.unwrap();
    lab.pool.execute(OLD_EVENTS).await.unwrap();
    // One was erased, and one cannot be parsed.
    lab.pool.execute("update workos.events set payload = null where id = 'event_1'").await.unwrap();
    lab.pool
        .execute("update workos.events set payload = 'Zx8q \"', type = 'organization.created' where id = 'event_3'")
        .await
        .unwrap();
    // As during the upgrade.
    lab.pool.execute("drop table workos.redaction").await.unwrap();
    lab.pool.execute(include_str!("../../migrations/0010_redaction.sql")).await.unwrap();
    let tick = async || {
        // Another process runs each step.
        lab.free_leases().await;
        Housekeeping::new(lab.context(), Duration::from_secs(90 * 86_400), None).tick().await
    };
    let left = async || rows_with_secrets(&lab.pool).await;
    assert_eq!(left().await, 400);
    let mut ticks = 0;
    while tick().await < Duration::from_secs(1) {
        ticks += 1;
        assert!(ticks > 1 || left().await > 200, "one batch does not read everything");
    }
    assert_eq!((left().await, ticks), (1, 3), "only what cannot be parsed is kept whole");
    let kept = lab.count(
        r#"select count(*) from workos.events where payload in (
            '{ "event":"user.updated", "token":1}',
            '{"id":"e","event":"session.created","data":{"ip_address" : null,"n":1.0}}',
            convert_to('{"id":"e","event":"invitation.created","data":{"\u0074oken":null}}', 'UTF8')
        )"#,
    );
    assert_eq!(kept.await, 598, "every other byte is what it was");
    // An older process still writes.
    let old =
        "update workos.events set received_at = now() - $1 * interval '1 minute', payload = $2 where id = 'event_4'";
    let dirty = br#"{"id":"e","event":"session.created","data":{"ip_address":"Zx8q"}}"#;
    for (minutes, expected) in [(1.0, 2), (10.0, 1)] {
        sqlx::query(old).bind(minutes).bind(&dirty[..]).execute(&lab.pool).await.unwrap();
        tick().await;
        assert_eq!(left().await, expected, "what transactions may still store is checked later");
    }
    lab.pool.execute("update workos.redaction set received_before = now() - interval '6 minutes'").await.unwrap();
    tick().await;
    assert_eq!(lab.count("select count(*) from workos.redaction").await, 0);
    sqlx::query(old).bind(8.0).bind(&dirty[..]).execute(&lab.pool).await.unwrap();
    tick().await;
    assert_eq!(left().await, 2, "it is done once");
}
