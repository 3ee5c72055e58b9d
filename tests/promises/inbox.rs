//! The inbox as an operator's tool, and what is kept for how long.

use std::time::Duration;

use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::sync::apply;
use authkit_sync::sync::driver::Driver;
use authkit_sync::sync::housekeeping::Housekeeping;
use serde_json::{Value, json};

use crate::support::events::{body, event, observed, unique, user};
use crate::support::lab::Lab;

/// An update without an e-mail, which only a later release could apply.
fn poisoned(user_id: &str) -> (String, Observation) {
    let id = unique("event");
    let data = json!({"id": user_id, "email_verified": true, "updated_at": "2026-09-01T08:00:00Z"});
    (id.clone(), Observation::Event(event(&body(&id, "user.updated", 5, &data))))
}

#[tokio::test]
async fn one_user_is_explained_from_first_to_last() {
    let lab = Lab::new().await;
    let id = unique("user");
    let store = lab.context().store;
    let updated = observed("user.updated", 20, &user(&id, "Grace", 20));
    apply(&store, Origin::Webhook, std::slice::from_ref(&updated)).await.unwrap();
    apply(&store, Origin::CatchUp, &[observed("user.created", 0, &user(&id, "Ada", 0)), updated.clone()])
        .await
        .unwrap();
    let (poison, observation) = poisoned(&id);
    apply(&store, Origin::Webhook, &[observation]).await.unwrap();
    let (code, out, err) = lab.run(&["user", &id]).await;
    assert_eq!(code, 0, "{err}");
    let Observation::Event(last) = &updated else { unreachable!() };
    assert!(out.starts_with(&format!("live, from {}", last.id)), "{out}");
    assert!(out.contains("\"first_name\": \"Grace\""), "{out}");
    let lines: Vec<&str> =
        out.lines().filter(|line| line.contains("user.")).filter(|line| line.contains(&id)).collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].contains("applied") && lines[0].contains("webhook+catch_up"), "{out}");
    assert!(lines[1].contains("stale") && lines[1].contains("later one"), "{out}");
    assert!(lines[2].contains("quarantined") && lines[2].contains("email"), "{out}");
    let (_, out, _) = lab.run(&["user", &id, "--json"]).await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["stands"]["state"], &json["received"][2]["id"]), (&json!("alive"), &json!(poison)));
    let (code, _, err) = lab.run(&["user", &id, "--erase"]).await;
    assert_eq!((code, err.contains("delete the user at WorkOS first")), (1, true), "{err}");
    apply(&store, Origin::Webhook, &[observed("user.deleted", 30, &json!({"id": id}))]).await.unwrap();
    // Something slipped in, as a bug of ours might let it.
    sqlx::query("update workos.events set payload = 'x' where id = $1").bind(&poison).execute(&lab.pool).await.unwrap();
    let (code, out, _) = lab.run(&["user", &id, "--erase", "--json"]).await;
    assert_eq!((code, out.trim()), (0, "{\"payloads_erased\":1}"));
    let (code, out, _) = lab.run(&["user", &id]).await;
    assert_eq!(code, 0);
    assert!(out.starts_with("deleted at ") && !out.contains("Grace") && out.contains("[payload erased]"), "{out}");
    let (code, _, err) = lab.run(&["user", "user_nobody"]).await;
    assert_eq!((code, err.contains("no event and no row")), (1, true), "{err}");
}

#[tokio::test]
async fn the_quarantine_is_listed_shown_retried_and_left_when_nothing_helped() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let id = unique("user");
    let (poison, observation) = poisoned(&id);
    let fine = observed("user.created", 0, &user(&id, "Ada", 0));
    apply(&store, Origin::Webhook, &[observation, fine.clone()]).await.unwrap();
    let (code, out, _) = lab.run(&["events", "list", "--outcome", "quarantined"]).await;
    assert_eq!((code, out.lines().count(), out.contains(&poison)), (0, 1, true), "{out}");
    let (_, out, _) = lab.run(&["events", "list", "--json", "--user", &id, "--since", "1h", "--limit", "1"]).await;
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap().as_array().unwrap().len(), 1);
    let (_, out, _) = lab.run(&["events", "list", "--type", "user.created", "--until", "1h"]).await;
    assert_eq!(out, "", "none of an hour ago");
    let (code, _, err) = lab.run(&["events", "list", "--since", "tomorrow"]).await;
    assert_eq!((code, err.contains("an age like 90s")), (64, true), "{err}");
    let (code, out, _) = lab.run(&["events", "show", &poison, "--json"]).await;
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &shown["payload"]["event"]), (0, &json!("user.updated")));
    assert_eq!(lab.run(&["events", "show", "event_none"]).await.0, 1);
    let (code, out, _) = lab.run(&["events", "retry"]).await;
    assert_eq!((code, out.contains(&poison)), (1, true), "it stays: {out}");
    // As if a later release could read it.
    let Observation::Event(fine) = &fine else { unreachable!() };
    let mend = "update workos.events set payload = $2 where id = $1";
    sqlx::query(mend)
        .bind(&poison)
        .bind(&body(&poison, "user.updated", 9, &user(&id, "Grace", 9))[..])
        .execute(&lab.pool)
        .await
        .unwrap();
    let (code, out, err) = lab.run(&["events", "retry", &poison]).await;
    assert_eq!((code, out.trim()), (0, "1 applied"), "{err}");
    let row: (String, Option<String>) = sqlx::query_as("select outcome, reason from workos.events where id = $1")
        .bind(&poison)
        .fetch_one(&lab.pool)
        .await
        .unwrap();
    assert_eq!(row, ("applied".to_owned(), None));
    assert_eq!(lab.run(&["events", "retry"]).await.1.trim(), "nothing to do: no event matches");
    assert_eq!(lab.run(&["events", "retry", "event_none"]).await.0, 1);
    // A lost table comes back from the inbox; where it is right, a replay changes nothing.
    sqlx::query("delete from workos.user_records").execute(&lab.pool).await.unwrap();
    for _ in 0..2 {
        let (code, out, err) = lab.run(&["events", "replay", "--since", "1h"]).await;
        assert_eq!(code, 0, "{out}{err}");
    }
    assert_eq!(lab.count("select count(*) from workos.users where first_name = 'Grace'").await, 1);
    let outcome: String = sqlx::query_scalar("select outcome from workos.events where id = $1")
        .bind(&fine.id)
        .fetch_one(&lab.pool)
        .await
        .unwrap();
    assert_eq!(outcome, "applied", "a replay leaves the first outcome");
}

#[tokio::test]
async fn a_release_tries_the_quarantine_of_another_once() {
    let lab = Lab::new().await;
    let context = lab.context();
    let id = unique("user");
    let (poison, observation) = poisoned(&id);
    apply(&context.store, Origin::Webhook, &[observation]).await.unwrap();
    let housekeeping = Housekeeping::new(context, Duration::from_secs(90 * 86_400), None);
    housekeeping.tick().await;
    let mend = "update workos.events set payload = $2 where id = $1";
    sqlx::query(mend)
        .bind(&poison)
        .bind(&body(&poison, "user.updated", 9, &user(&id, "Ada", 9))[..])
        .execute(&lab.pool)
        .await
        .unwrap();
    housekeeping.tick().await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 0, "this release has tried already");
    sqlx::query("update workos.environment set retried_by = '0.0.1'").execute(&lab.pool).await.unwrap();
    housekeeping.tick().await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 1);
}

#[tokio::test]
async fn retention_drops_in_batches_and_spares_quarantine_cursor_and_tombstones() {
    for (days, rows_left, payloads_left) in [(90, 1, 1), (7, 2_501, 1)] {
        let lab = Lab::new().await;
        let context = lab.context();
        let gone = unique("user");
        apply(&context.store, Origin::Webhook, &[observed("user.deleted", 0, &json!({"id": gone}))]).await.unwrap();
        context.store.begin_catch_up(lab.clock.now()).await.unwrap();
        sqlx::query("delete from workos.events").execute(&lab.pool).await.unwrap();
        sqlx::query(
            "insert into workos.events (id, type, outcome, payload, received_at)
            select 'event_' || n, 'user.updated', case when n = 0 then 'quarantined' else 'applied' end, 'x'::bytea, now()
            from generate_series(0, 2499) as n
            union all select 'snapshot:1', 'snapshot', 'quarantined', 'x'::bytea, now()",
        )
        .execute(&lab.pool)
        .await
        .unwrap();
        let housekeeping = Housekeeping::new(context, Duration::from_secs(days * 86_400), None);
        housekeeping.tick().await;
        assert_eq!(lab.count("select count(*) from workos.events where payload is not null").await, 2_501);
        // Under 35 days only payloads go; the rest of a row stays that long.
        let later = i64::try_from(days).unwrap() + 1;
        lab.clock.set(lab.clock.now().plus_seconds(later * 86_400));
        let mut batches = 0;
        while housekeeping.tick().await < Duration::from_secs(1) {
            batches += 1;
        }
        assert_eq!(batches, 3, "no more than a thousand at once");
        assert_eq!(lab.count("select count(*) from workos.events").await, rows_left, "{days} days");
        assert_eq!(lab.count("select count(*) from workos.events where payload is not null").await, payloads_left);
        lab.clock.set(lab.clock.now().plus_seconds(36 * 86_400));
        while housekeeping.tick().await < Duration::from_secs(1) {}
        assert_eq!(lab.count("select count(*) from workos.events").await, 1, "what is in quarantine stays");
        assert_eq!(lab.count("select count(*) from workos.user_records where synced_deleted").await, 1);
        assert_eq!(lab.count("select count(*) from workos.catch_up").await, 1);
    }
}
