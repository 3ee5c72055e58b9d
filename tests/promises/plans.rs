//! The hot statements go by index, whatever the table's size.

use sqlx::{AssertSqlSafe, Executor};

use crate::support::database::TestDatabase;

/// A statement as it is sent, with literals for its parameters.
async fn plan(connection: &mut sqlx::PgConnection, sql: &str) -> String {
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("explain {sql}"))).fetch_all(connection).await.unwrap();
    lines.join("\n")
}

/// The text of every statement under src/store is in .sqlx; these are the ones whose cost grows with a table, and the index
/// each goes by.
const STATEMENTS: &[(&str, &str)] = &[
    ("select * from workos.user_records where id = 'user_7'", "user_records_pkey"),
    ("select * from workos.get_auth_user('user_7')", "user_records_pkey"),
    ("select * from workos.users where external_id = 'crm-7'", "user_records_external_id"),
    (
        "select * from workos.users where lower(email collate \"C\") = lower('U7@example.test' collate \"C\")",
        "user_records_email",
    ),
    (
        "select id from workos.user_records where id > 'user_4' and email is not null and not synced_deleted
            order by id limit 11",
        "user_records_pkey",
    ),
    (
        "select id from workos.user_records where id < 'user_4' and email is not null and not synced_deleted
            order by id desc limit 11",
        "user_records_pkey",
    ),
    (
        "with matching as materialized (
            select * from workos.user_records
            where lower(email collate \"C\") = lower('U7@example.test' collate \"C\") and email is not null
        )
        select id from matching where case when true then id > '' else id < '' end
        order by case when true then id end, id desc limit 11",
        "user_records_email",
    ),
    (
        "select id from workos.user_records where external_id = 'crm-7'
            order by updated_at desc, synced_observed_at desc, synced_observation_id desc limit 1",
        "user_records_external_id",
    ),
    (
        "select * from workos.user_records where id = any(array['user_1', 'user_2']) order by id for no key update",
        "user_records_pkey",
    ),
    (
        "update workos.user_records as stored set email = seen.email
        from unnest(array['user_1', 'user_2'], array['a', 'b']) as seen (id, email) where stored.id = seen.id",
        "user_records_pkey",
    ),
    (
        "select position, kind from workos.changes where position > 40000 and position <= 49000
            order by position limit 100",
        "changes_pkey",
    ),
    (
        "select id, exists (
            select from workos.changes where user_id = live.id and position > 9
                and kind = 'created' and event_type is distinct from kind
        ) from (
            select id from workos.user_records where id > 'user_4' and not synced_deleted and email is not null
            order by id limit 100
        ) as live order by id",
        "changes_user_id",
    ),
    (
        "select position from (
            (
                select distinct on (user_id) position, user_id, due_at from workos.handler_backlog
                where handler = 'h' and due_at is not null and user_id <> '' order by user_id, position
            )
            union all
            select position, user_id, due_at from workos.handler_backlog
            where handler = 'h' and due_at is not null and user_id = ''
        ) as first where due_at <= now() order by due_at, position limit 100",
        "handler_backlog_waiting",
    ),
    (
        "update workos.handler_backlog set message = null where user_id = any(array['user_1']) and message is not null",
        "handler_backlog_messages",
    ),
    (
        "delete from workos.user_records where id = any(array['user_1']) and email is null and not synced_deleted",
        "user_records_pkey",
    ),
    (
        "update workos.events set payload = null where user_id = any(array['user_1', 'user_2']) and payload is not null",
        "events_payloads_by_user",
    ),
    ("select * from workos.events where outcome = 'quarantined' order by received_at", "events_quarantined"),
    (
        "select exists (select from workos.events where id = any(array['event_1', 'event_2']) and catch_up_at is not null)",
        "events_pkey",
    ),
    (
        "select id from workos.user_records
        where id > 'user_4' and not synced_deleted and email is not null and coalesce(created_at, updated_at) < now()
        order by id limit 1000",
        "user_records_pkey",
    ),
    (
        "select id from workos.events where received_at < now() - interval '90 days' and (outcome <> 'quarantined' or type = 'snapshot')
        order by received_at limit 1000 for update skip locked",
        "events_received_at",
    ),
    (
        "select * from workos.events where payload is not null and (received_at, id) > (now(), '')
        order by received_at, id limit 100",
        "events_received_at",
    ),
    (
        "select count(*) from workos.events
        where (webhook_at is null) <> (catch_up_at is null) and webhook_at is null and received_at >= now() - interval '1 day'",
        "events_one_channel",
    ),
    (
        "select * from workos.action_verdicts
        where id = 'action_7' and kind = 'authentication' and payload_hash = sha256('')",
        "action_verdicts_pkey",
    ),
    (
        "delete from workos.action_verdicts where (id, kind, payload_hash) in (
            select id, kind, payload_hash from workos.action_verdicts where decided_at < now() - interval '5 minutes'
            order by decided_at limit 1000 for update skip locked
        )",
        "action_verdicts_decided_at",
    ),
];

#[tokio::test]
async fn lookups_locks_writes_and_erasure_never_scan_a_table() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    pool.execute(
        "insert into workos.user_records
            (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at, external_id)
        select 'user_' || n, 'u' || n || '@example.test', true, '{}', now(), '{}', now(), 'event_' || n, now(), 'crm-' || n
        from generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute(
        "insert into workos.events (id, type, user_id, outcome, payload)
        select 'event_' || n, 'user.created', 'user_' || n, 'applied', ''
        from generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute(
        "insert into workos.changes (position, kind, user_id, changed, event_id, event_type, origin)
        select n, 'created', 'user_' || n, '[]', 'event_' || n, 'user.created', 'webhook'
        from generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute(
        "with handler as (
            insert into workos.handlers (name, types, position, start_position) values ('h', '{*}', 0, 0) returning name
        )
        insert into workos.handler_backlog (handler, position, user_id, from_start, attempts, due_at, message)
        select name, n, 'user_' || n % 5000, false, 1, now(), 'why' from handler, generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute("analyze workos.changes").await.unwrap();
    pool.execute("analyze workos.handler_backlog").await.unwrap();
    pool.execute(
        "insert into workos.action_verdicts (id, kind, payload_hash, verdict, decided_by)
        select 'action_' || n, 'authentication', sha256(''), 'allow', 'default'
        from generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute("analyze workos.action_verdicts").await.unwrap();
    pool.execute("analyze workos.user_records").await.unwrap();
    pool.execute("analyze workos.events").await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    for (sql, index) in STATEMENTS {
        let plan = plan(&mut connection, sql).await;
        assert!(
            plan.contains(index)
                && !["user_records", "events", "changes", "handler_backlog"]
                    .iter()
                    .any(|it| plan.contains(&format!("Seq Scan on {it}"))),
            "{sql}\n{plan}"
        );
    }
}

/// Every statement the program sends.
const NAMES: &[&str] = &[
    "action_verdicts.by_key",
    "action_verdicts.expire",
    "action_verdicts.store",
    "catch_up.advance",
    "catch_up.begin",
    "catch_up.forget",
    "catch_up.has_read",
    "catch_up.progress",
    "catch_up.restart",
    "catch_up.state",
    "changes.expire",
    "changes.expired_through",
    "changes.expired_through_now",
    "changes.head",
    "changes.page",
    "changes.record",
    "changes.renew_epoch",
    "changes.renew_foreign_epoch",
    "contract.version",
    "environment.accept_deletions",
    "environment.bind",
    "environment.client_id",
    "environment.deletions_accepted",
    "environment.lock",
    "environment.ping",
    "environment.quarantine_retried_by",
    "environment.rebind",
    "environment.rebind_from",
    "environment.set_quarantine_retried_by",
    "erasure.complete",
    "erasure.defer",
    "erasure.due",
    "erasure.messages",
    "erasure.payloads",
    "erasure.pending",
    "erasure.sign_ins",
    "events.expire_payloads",
    "events.expire_rows",
    "events.missed_by_catch_up",
    "events.missed_by_webhooks",
    "events.now",
    "events.payload",
    "events.payloads",
    "events.record",
    "events.record_retry",
    "events.stored_payloads",
    "events.summaries",
    "events.summary",
    "handlers.add",
    "handlers.all",
    "handlers.become",
    "handlers.call",
    "handlers.callee",
    "handlers.check",
    "handlers.check_client",
    "handlers.due",
    "handlers.end_initial_users",
    "handlers.finish_backlog_change",
    "handlers.initial_users",
    "handlers.lags",
    "handlers.lock_user",
    "handlers.move",
    "handlers.move_initial_users",
    "handlers.pause",
    "handlers.postpone",
    "handlers.redrive",
    "handlers.register",
    "handlers.remove",
    "handlers.reset_role",
    "handlers.rights",
    "handlers.set_problem",
    "handlers.statuses",
    "handlers.waiting_users",
    "leases.hold",
    "leases.pause",
    "leases.release",
    "migrations.applied",
    "migrations.create_schema",
    "migrations.invalid_indexes",
    "migrations.lock",
    "migrations.present",
    "migrations.schema",
    "roles.present",
    "scans.advance",
    "scans.begin",
    "scans.confirm",
    "scans.confirmation",
    "scans.due",
    "scans.forget",
    "scans.reconciled",
    "scans.reset_deletions_accepted",
    "scans.save_result",
    "scans.state",
    "sign_ins.record",
    "users.by_external_id",
    "users.by_id",
    "users.by_ids",
    "users.delete_placeholders",
    "users.insert_placeholders",
    "users.lock",
    "users.page_by_email",
    "users.page_down",
    "users.page_up",
    "users.rows_after",
    "users.sample_live",
    "users.unwritten_since",
    "users.write_live",
    "users.write_tombstones",
];

/// The statements above are the ones that are sent: each is one of the prepared queries, up to its parameters.
#[test]
fn the_store_holds_no_hot_statement_that_is_not_explained_here() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let query: serde_json::Value = serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let query = query["query"].as_str().unwrap();
        let name = query.lines().next().unwrap().strip_prefix("-- ").unwrap_or_else(|| panic!("unnamed: {query}"));
        names.push(name.to_owned());
    }
    names.sort();
    names.dedup();
    assert_eq!(
        names, NAMES,
        "a new statement: explain it above if its cost grows with a table, then add its name here"
    );
}
