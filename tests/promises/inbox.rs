//! The inbox: the commands of operators, and retention.

use std::time::Duration;

use authkit_sync::domain::event::{Observation, Origin};
use authkit_sync::sync::apply;
use authkit_sync::sync::housekeeping::Housekeeping;
use authkit_sync::sync::reconcile::{Mode, Reconcile};
use authkit_sync::sync::runner::BackgroundLoop;
use serde_json::{Value, json};

use crate::support::events::{body, event, observed, unique, user};
use crate::support::lab::Lab;

/// An update without an email address, which only a later release could apply.
fn poisoned(user_id: &str) -> (String, Observation) {
    let id = unique("event");
    let data = json!({"id": user_id, "email_verified": true, "updated_at": "2026-09-01T08:00:00Z"});
    (id.clone(), Observation::Event(event(&body(&id, "user.updated", 5, &data))))
}

#[tokio::test]
async fn the_command_user_shows_every_event_of_a_user() {
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
    // The same by email address and external ID.
    for named in [format!("{}@EXAMPLE.test", id), "crm-9".to_owned()] {
        let row = "update workos.user_records set external_id = 'crm-9' where id = $1";
        sqlx::query(row).bind(&id).execute(&lab.pool).await.unwrap();
        assert!(lab.run(&["user", &named]).await.1.contains(&id), "{named}");
    }
    let another = observed(
        "user.created",
        0,
        &json!({"id": "user_2", "email": format!("{id}@example.test"), "email_verified": true}),
    );
    apply(&store, Origin::Webhook, &[another]).await.unwrap();
    let (code, _, err) = lab.run(&["user", &format!("{id}@example.test")]).await;
    assert!(code == 1 && err.contains("several users") && err.contains("user_2"), "{err}");
    let (_, out, _) = lab.run(&["user", &id, "--json"]).await;
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["state"], &json["events"][2]["id"]), (&json!("live"), &json!(poison)));
    let (code, _, err) = lab.run(&["user", &id, "--erase"]).await;
    assert_eq!((code, err.contains("delete the user at WorkOS first")), (1, true), "{err}");
    apply(&store, Origin::Webhook, &[observed("user.deleted", 30, &json!({"id": id}))]).await.unwrap();
    // A payload that cannot be parsed, as after a defect of the service.
    sqlx::query("update workos.events set payload = 'x' where id = $1").bind(&poison).execute(&lab.pool).await.unwrap();
    let (code, out, _) = lab.run(&["user", &id, "--erase", "--json"]).await;
    assert_eq!((code, out.trim()), (0, "{\"complete\":true,\"payloads_erased\":1}"));
    let (code, out, _) = lab.run(&["user", &id]).await;
    assert_eq!(code, 0);
    assert!(out.starts_with("deleted at ") && !out.contains("Grace") && out.contains("[payload erased]"), "{out}");
    let (code, _, err) = lab.run(&["user", "user_nobody"]).await;
    assert_eq!((code, err.contains("no event and no row")), (1, true), "{err}");
}

/// WorkOS's IDs are in the payloads, so an event that was not applied is found, too.
#[tokio::test]
async fn the_commands_user_and_events_show_what_belongs_to_an_organization() {
    let lab = Lab::new().await;
    let (user, organization) = (lab.create_user("Ada"), lab.create_organization("Acme"));
    let membership = lab.add_member(&user, &organization);
    let another = lab.create_organization("Acme Two");
    lab.pass(60);
    let catch_up = lab.catch_up_of_all_kinds();
    for _ in 0..3 {
        catch_up.step().await.unwrap();
    }
    let (code, out, err) = lab.run(&["user", &user]).await;
    assert_eq!(code, 0, "{err}");
    let line = out.lines().find(|line| line.starts_with(&organization)).unwrap_or_else(|| panic!("{out}"));
    assert!(line.contains("  Acme  active  roles: member  ") && line.ends_with(&membership), "{line}");
    assert!(out.contains("\n1 membership\n"), "{out}");
    let (_, out, _) = lab.run(&["user", &user, "--json"]).await;
    let shown = serde_json::from_str::<Value>(&out).unwrap()["memberships"].take();
    assert_eq!(
        shown,
        json!([{"id": membership, "organization_id": organization, "organization_name": "Acme", "status": "active", "roles": ["member"]}])
    );
    let listed = async |more: &[&str]| -> Vec<String> {
        let arguments = [&["events", "list", "--json", "--organization", &organization], more].concat();
        let (code, out, err) = lab.run(&arguments).await;
        assert_eq!(code, 0, "{err}");
        let events: Vec<Value> = serde_json::from_str(&out).unwrap();
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    let mut types = listed(&[]).await;
    types.sort();
    assert_eq!(types, ["organization.created", "organization_membership.created"]);
    assert_eq!(listed(&["--type", "organization.created", "--limit", "1"]).await, ["organization.created"]);
    assert_eq!(listed(&["--until", "1h"]).await, [""; 0]);
    // An ID that begins with another one is another ID.
    let mut beginning = another;
    beginning.pop();
    let (_, out, _) = lab.run(&["events", "list", "--organization", &beginning]).await;
    assert_eq!(out, "");
}

#[tokio::test]
async fn quarantined_events_are_listed_shown_and_retried_and_stay_if_the_retry_fails() {
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
    // Simulates a later release that can apply the event.
    let Observation::Event(fine) = &fine else { unreachable!() };
    let correct = "update workos.events set payload = $2 where id = $1";
    sqlx::query(correct)
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
    // A replay restores a lost table from the inbox. It does not change rows that are already correct.
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
async fn a_dismissed_event_is_no_longer_counted_or_retried_and_expires() {
    let lab = Lab::new().await;
    let context = lab.context();
    let store = &context.store;
    let (poison, observation) = poisoned(&unique("user"));
    apply(store, Origin::Webhook, &[observation, observed("user.created", 0, &user("user_1", "Ada", 0))])
        .await
        .unwrap();
    assert_eq!(store.progress().await.unwrap().quarantined, 1);
    let (code, _, err) = lab.run(&["events", "dismiss", &poison, "--reason", " "]).await;
    assert_eq!((code, err.contains("--reason must have 1 to 500 bytes")), (64, true), "{err}");
    assert_eq!(lab.run(&["events", "dismiss", "event_none", "--reason", "x"]).await.0, 1);
    let applied: String = sqlx::query_scalar("select id from workos.events where outcome = 'applied'")
        .fetch_one(&lab.pool)
        .await
        .unwrap();
    let (code, _, err) = lab.run(&["events", "dismiss", &applied, "--reason", "x"]).await;
    assert_eq!((code, err.contains("it is not in quarantine")), (1, true), "{err}");
    assert_eq!(lab.run(&["events", "dismiss", &poison, "--reason", "sent by a test"]).await.0, 0);
    let (code, _, err) = lab.run(&["events", "dismiss", &poison, "--reason", "again"]).await;
    assert_eq!((code, err.contains("it was dismissed before")), (1, true), "{err}");
    assert_eq!(store.progress().await.unwrap().quarantined, 0);
    assert_eq!(lab.run(&["events", "list", "--outcome", "quarantined"]).await.1, "");
    let (_, out, _) = lab.run(&["events", "list", "--outcome", "dismissed"]).await;
    assert!(out.contains(&poison) && out.contains("[dismissed: sent by a test]"), "{out}");
    assert_eq!(lab.run(&["events", "retry"]).await.1.trim(), "nothing to do: no event matches");
    assert_eq!(lab.run(&["events", "retry", &poison]).await.0, 1, "by its ID it is still retried");
    let housekeeping = Housekeeping::new(context.clone(), Duration::from_secs(86_400), None);
    sqlx::query("update workos.dismissals set dismissed_at = now() - interval '25 hours'")
        .execute(&lab.pool)
        .await
        .unwrap();
    housekeeping.tick().await;
    assert_eq!(lab.count("select count(*) from workos.events").await, 1, "the other event stays");
    assert_eq!(lab.count("select count(*) from workos.dismissals").await, 0);
}

#[tokio::test]
async fn a_new_release_retries_the_quarantine_of_another_one_once() {
    let lab = Lab::new().await;
    let context = lab.context();
    let id = unique("user");
    let (poison, observation) = poisoned(&id);
    apply(&context.store, Origin::Webhook, &[observation]).await.unwrap();
    let housekeeping = Housekeeping::new(context, Duration::from_secs(90 * 86_400), None);
    housekeeping.tick().await;
    let correct = "update workos.events set payload = $2 where id = $1";
    sqlx::query(correct)
        .bind(&poison)
        .bind(&body(&poison, "user.updated", 9, &user(&id, "Ada", 9))[..])
        .execute(&lab.pool)
        .await
        .unwrap();
    housekeeping.tick().await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 0, "this release has tried already");
    sqlx::query("update workos.environment set quarantine_retried_by = '0.0.1'").execute(&lab.pool).await.unwrap();
    housekeeping.tick().await;
    assert_eq!(lab.count("select count(*) from workos.users").await, 1);
}

#[tokio::test]
async fn retention_deletes_in_batches_and_keeps_quarantine_cursor_and_tombstones() {
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
        // With a retention below 35 days, only payloads are deleted earlier. The rest of a row stays for 35 days.
        let age = async |days: i64| {
            let age = "update workos.events set received_at = received_at - make_interval(days => $1::int)";
            sqlx::query(age).bind(i32::try_from(days).unwrap()).execute(&lab.pool).await.unwrap();
        };
        age(i64::try_from(days).unwrap() + 1).await;
        let mut batches = 0;
        while housekeeping.tick().await < Duration::from_secs(1) {
            batches += 1;
        }
        assert_eq!(batches, 3, "no more than a thousand at once");
        assert_eq!(lab.count("select count(*) from workos.events").await, rows_left, "{days} days");
        assert_eq!(lab.count("select count(*) from workos.events where payload is not null").await, payloads_left);
        age(36).await;
        while housekeeping.tick().await < Duration::from_secs(1) {}
        assert_eq!(lab.count("select count(*) from workos.events").await, 1, "what is in quarantine stays");
        assert_eq!(lab.count("select count(*) from workos.user_records where synced_deleted").await, 1);
        assert_eq!(lab.count("select count(*) from workos.catch_up").await, 1);
    }
}

/// The database's clock decides what has expired, and when a reconcile is due. A replica with a wrong clock loses nothing.
#[tokio::test]
async fn a_replica_whose_clock_is_far_ahead_deletes_nothing_early() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let id = lab.create_user("Ada");
    lab.backfill().await;
    apply(&store, Origin::Webhook, &[observed("user.updated", 20, &user(&id, "Grace", 20))]).await.unwrap();
    let day = Duration::from_secs(86_400);
    let kept = async || {
        let payloads = lab.count("select count(*) from workos.events where payload is not null").await;
        (payloads, lab.count("select count(*) from workos.changes").await)
    };
    let before = kept().await;
    assert_eq!(before, (1, 1));
    lab.clock.set(lab.clock.now().plus_seconds(40 * 86_400));
    let housekeeping = Housekeeping::new(lab.context(), 30 * day, Some(vec!["user.updated".to_owned()]));
    let reconcile = Reconcile::new(lab.context(), Mode::Repair, Some(day));
    for _ in 0..3 {
        housekeeping.tick().await;
        reconcile.tick().await;
    }
    assert_eq!(kept().await, before);
    assert_eq!(lab.count("select count(*) from workos.scans where kind = 'reconcile'").await, 0, "none is due");
    // By the database's clock, the reconcile is due.
    lab.clock.set(lab.clock.now().plus_seconds(-40 * 86_400));
    let age = "update workos.scans set completed_at = completed_at - interval '2 days'";
    sqlx::query(age).execute(&lab.pool).await.unwrap();
    for _ in 0..5 {
        reconcile.tick().await;
    }
    assert_eq!(lab.count("select count(*) from workos.scans where kind = 'reconcile'").await, 1);
    let age = "update workos.events set received_at = received_at - interval '31 days'";
    sqlx::query(age).execute(&lab.pool).await.unwrap();
    housekeeping.tick().await;
    assert_eq!(kept().await.0, 0);
}

/// Each step of housekeeping has its own transaction: a failing one does not prevent the others.
#[tokio::test]
async fn a_step_of_housekeeping_that_fails_prevents_no_other() {
    let day = Duration::from_secs(86_400);
    for broken in [
        "alter table workos.erasures rename column requested_at to missing",
        "alter table workos.action_verdicts rename column decided_at to missing",
        "create function stop() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
        create trigger stop before delete on workos.events execute function stop()",
        "create function stop() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
        create trigger stop before update on workos.events execute function stop()",
        "alter table workos.feed rename column expired_through to missing",
        "alter table workos.catch_up rename column range_start to missing",
        "alter table workos.environment rename column quarantine_retried_by to missing",
    ] {
        let lab = Lab::new().await;
        let context = lab.context();
        context.store.check().await.unwrap();
        let fill = "insert into workos.events (id, type, outcome, payload, received_at) values
                ('old', 'x', 'applied', 'x', now() - interval '40 days'), ('new', 'x', 'applied', 'x', now() - interval '20 days');
            insert into workos.changes (position, kind, changed, origin, at) values (1, 'x', '[]', 'webhook', now() - interval '99 days');
            insert into workos.action_verdicts (id, kind, payload_hash, verdict, decided_by, decided_at)
            values ('a', 'authentication', sha256('x'), 'allow', 'x', now() - interval '1 day');
            insert into workos.user_records (id, synced_deleted) values ('user_1', true);
            insert into workos.events (id, type, outcome, payload, user_id) values ('erase', 'x', 'applied', 'x', 'user_1');
            insert into workos.erasures (user_id) values ('user_1')";
        sqlx::raw_sql(fill).execute(&lab.pool).await.unwrap();
        sqlx::raw_sql(broken).execute(&lab.pool).await.unwrap();
        let housekeeping = Housekeeping::new(context.clone(), 10 * day, Some(vec!["x".to_owned()]));
        housekeeping.tick().await;
        assert_eq!(context.jobs.current()["housekeeping"].state, "failing", "{broken}");
        let left = [
            lab.count("select count(*) from workos.erasures").await,
            lab.count("select count(*) from workos.action_verdicts").await,
            lab.count("select count(*) from workos.events where id = 'old'").await,
            lab.count("select count(*) from workos.events where id = 'new' and payload is not null").await,
            lab.count("select count(*) from workos.changes").await,
        ];
        let undone: i64 = left.iter().sum();
        let steps = if broken.contains("update on workos.events") { 2 } else { 1 };
        assert!(undone <= steps, "{broken}: {left:?}");
    }
}
