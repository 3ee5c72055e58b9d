//! The hot statements go by index, whatever the table's size.

use sqlx::{AssertSqlSafe, Executor};

use crate::support::database::TestDatabase;

/// A statement as it is sent, with literals for its parameters.
async fn plan(connection: &mut sqlx::PgConnection, sql: &str) -> String {
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("explain {sql}"))).fetch_all(connection).await.unwrap();
    lines.join("\n")
}

#[tokio::test]
async fn lookups_locks_writes_and_erasure_never_scan_a_table() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    pool.execute(
        "insert into workos.user_records
            (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation, synced_at, external_id)
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
    pool.execute("analyze workos.user_records").await.unwrap();
    pool.execute("analyze workos.events").await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    // The text of every statement under src/store is in .sqlx; these are the ones whose cost grows with a table.
    for (sql, index) in [
        ("select * from workos.user_records where id = 'user_7'", "user_records_pkey"),
        ("select * from workos.get_auth_user('user_7')", "user_records_pkey"),
        ("select * from workos.users where external_id = 'crm-7'", "user_records_external_id"),
        (
            "select * from workos.users where lower(email collate \"C\") = lower('U7@example.test' collate \"C\")",
            "user_records_email",
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
            "delete from workos.user_records where id = any(array['user_1']) and email is null and not synced_deleted",
            "user_records_pkey",
        ),
        (
            "update workos.events set payload = null where user_id = any(array['user_1', 'user_2']) and payload is not null",
            "events_user_id",
        ),
        ("select * from workos.events where outcome = 'quarantined' order by received_at", "events_quarantined"),
    ] {
        let plan = plan(&mut connection, sql).await;
        assert!(
            plan.contains(index) && !plan.contains("Seq Scan on user_records") && !plan.contains("Seq Scan on events"),
            "{sql}\n{plan}"
        );
    }
}

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
        names,
        [
            "contract.version",
            "environment.claim",
            "environment.client_id",
            "environment.ping",
            "events.erase",
            "events.record",
            "migrations.applied",
            "migrations.create_schema",
            "migrations.lock",
            "migrations.present",
            "migrations.schema",
            "users.by_id",
            "users.hold_places",
            "users.lock",
            "users.release_places",
            "users.write_live",
            "users.write_tombstones",
        ],
        "a new statement: explain it above if its cost grows with a table, then add its name here"
    );
}
