//! Maintenance at a million rows: every statement uses an index or reads a bounded range, for all parameters.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use crate::support::database::TestDatabase;

/// Statements whose cost would grow with a table, and the indexes that each one uses. The service sends exactly these texts.
const STATEMENTS: &[(&str, &[&str])] = &[
    ("events.expire_rows", &["events_row_expiry", "events_payload_expiry"]),
    ("events.expire_payloads", &["events_payload_expiry"]),
    ("events.missed_by_webhooks", &["events_one_channel", "events_webhook_types"]),
    ("events.missed_by_catch_up", &["events_one_channel"]),
    ("catch_up.progress", &["events_quarantined"]),
    ("erasure.payloads", &["events_payloads_by_user"]),
    ("erasure.messages", &["handler_backlog_messages"]),
    ("erasure.add_pending", &["events_payloads_by_user", "handler_backlog_messages"]),
    ("erasure.remove_completed", &["events_payloads_by_user", "handler_backlog_messages"]),
    ("erasure.lock_pending", &["user_records_pkey"]),
    ("changes.expire", &["changes_pkey", "handler_backlog_pkey"]),
    ("users.lock", &["user_records_pkey"]),
    ("users.rows_after", &["user_records_pkey"]),
    ("users.unwritten_since", &["user_records_pkey"]),
    ("users.by_ids", &["user_records_pkey"]),
];

/// Tables that no maintenance may read as a whole.
const LARGE: &[&str] = &["events", "user_records", "changes", "handler_backlog", "sign_ins"];

const SEED: &str = "
    insert into workos.user_records
        (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
    select 'user_' || n, 'u', true, '{}', now(), '{}', now(), 'event_' || n, now() from generate_series(1, 1000000) as n;
    insert into workos.events (id, type, user_id, outcome, payload, received_at, webhook_at, catch_up_at)
    select
        'event_' || n, 'user.created', 'user_' || n % 200000, case when n % 10 = 0 then 'quarantined' else 'applied' end,
        case when n % 3 > 0 then 'x'::bytea end, now() - n * interval '10 seconds', now(), case when n % 50 > 0 then now() end
    from generate_series(1, 1000000) as n;
    insert into workos.changes (position, kind, user_id, changed, origin)
    select n, 'created', 'user_' || n, '[]', 'webhook' from generate_series(1, 200000) as n;
    insert into workos.handlers (name, types, position, start_position) values ('h', '{*}', 0, 0);
    insert into workos.handler_backlog (handler, position, user_id, from_start, attempts, message)
    select 'h', n, 'user_' || n, false, 1, 'x' from generate_series(1, 200000) as n;
    insert into workos.sign_ins (user_id, signed_in_at) select 'user_' || n, now() from generate_series(1, 200000) as n";

/// Fills the tables without their indexes, which are built afterwards: this takes a fraction of the time.
async fn seed(pool: &PgPool) {
    let indexes: Vec<(String, String)> = sqlx::query_as(
        "select indexname::text, indexdef from pg_indexes
        where schemaname = 'workos' and tablename in ('events', 'user_records', 'changes') and indexname not like '%_pkey'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (name, _) in &indexes {
        pool.execute(AssertSqlSafe(format!("drop index workos.{name}"))).await.unwrap();
    }
    sqlx::raw_sql(SEED).execute(pool).await.unwrap();
    for (_, definition) in indexes {
        pool.execute(AssertSqlSafe(definition)).await.unwrap();
    }
    for table in LARGE {
        pool.execute(AssertSqlSafe(format!("analyze workos.{table}"))).await.unwrap();
    }
}

/// Every statement of the program by its name, with the number of its parameters.
pub(crate) fn statements() -> BTreeMap<String, (String, usize)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let mut statements = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let file: Value = serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let text = file["query"].as_str().unwrap().to_owned();
        let name = text.lines().next().unwrap().trim_start_matches("-- ").to_owned();
        let parameters = file["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        statements.insert(name, (text, parameters));
    }
    statements
}

/// Returns the generic plan, which PostgreSQL uses for a statement that is sent many times.
pub(crate) async fn generic_plan(connection: &mut PgConnection, text: &str, parameters: usize) -> String {
    explain(connection, text, &vec!["null"; parameters].join(", ")).await
}

/// The plan of a prepared statement for these values of its parameters.
pub(crate) async fn explain(connection: &mut PgConnection, text: &str, values: &str) -> String {
    sqlx::raw_sql(AssertSqlSafe(format!("prepare explained as {text}"))).execute(&mut *connection).await.unwrap();
    let call = if values.is_empty() { "explained".to_owned() } else { format!("explained({values})") };
    let explain = AssertSqlSafe(format!("explain execute {call}"));
    let rows = sqlx::raw_sql(explain).fetch_all(&mut *connection).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, 0)).collect();
    sqlx::raw_sql("deallocate explained").execute(connection).await.unwrap();
    lines.join("\n")
}

/// Returns the tables of which a plan reads every row: by a scan of the table, or by an index without a condition. A node below a
/// limit reads a bounded number of rows.
pub(crate) fn whole_tables<'a>(plan: &str, tables: &[&'a str]) -> Vec<&'a str> {
    let lines: Vec<&str> = plan.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let is_node = |line: &str| line.trim_start().starts_with("->") || depth(line) == 0;
    let is_bounded = |at: usize| {
        let inside = depth(lines[at]);
        let mut details = lines[at + 1..].iter().take_while(|line| depth(line) > inside && !is_node(line));
        let has_condition = details.any(|line| line.contains("Index Cond") || line.contains("TID Cond"));
        let mut around = inside;
        let mut parents = lines[..at].iter().rev().filter(|line| {
            let is_parent = is_node(line) && depth(line) < around;
            around = if is_parent { depth(line) } else { around };
            is_parent
        });
        has_condition
            || parents.any(|line| line.trim_start().trim_start_matches("->").trim_start().starts_with("Limit"))
    };
    let reads = |at: usize, table: &str| {
        let line = lines[at];
        line.contains("Scan") && !line.contains("Bitmap Heap") && line.contains(&format!(" on {table} "))
    };
    let is_whole = |table: &&&str| (0..lines.len()).any(|at| reads(at, table) && !is_bounded(at));
    tables.iter().filter(is_whole).copied().collect()
}

#[tokio::test]
async fn maintenance_never_reads_a_whole_table_at_a_million_rows() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    seed(&pool).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.execute("set plan_cache_mode = force_generic_plan").await.unwrap();
    let statements = statements();
    let mut wrong = Vec::new();
    for (name, indexes) in STATEMENTS {
        let (text, parameters) = &statements[*name];
        let plan = generic_plan(&mut connection, text, *parameters).await;
        if !whole_tables(&plan, LARGE).is_empty() || !indexes.iter().all(|index| plan.contains(index)) {
            wrong.push(format!("{name}\n{plan}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
