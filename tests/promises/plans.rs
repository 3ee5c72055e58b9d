//! Frequent statements use an index, for all sizes of the table.

use authkit_sync::store::{Pool, Store};
use sqlx::{AssertSqlSafe, Executor};

use crate::plans_at_scale::{generic_plan, statements, whole_tables};
use crate::support::database::TestDatabase;
use crate::support::service::CLIENT_ID;

/// The statements whose cost grows with a table, and the index that each one uses. The service sends exactly these texts.
const STATEMENTS: &[(&str, &str)] = &[
    ("users.by_id", "user_records_pkey"),
    ("users.by_ids", "user_records_pkey"),
    ("users.page_up", "user_records_pkey"),
    ("users.page_down", "user_records_pkey"),
    ("users.page_by_email", "user_records_email"),
    ("users.by_external_id", "user_records_external_id"),
    ("users.find", "user_records_pkey"),
    ("users.lock", "user_records_pkey"),
    ("users.locked", "user_records_pkey"),
    ("batch.write", "user_records_pkey"),
    ("users.write_tombstones", "user_records_pkey"),
    ("users.delete_placeholders", "user_records_pkey"),
    ("users.rows_after", "user_records_pkey"),
    ("organizations.by_ids", "organization_records_pkey"),
    ("organizations.by_external_id", "organization_records_external_id"),
    ("organizations.page_up", "organization_records_pkey"),
    ("organizations.page_down", "organization_records_pkey"),
    ("organizations.page_by_domain", "organization_records_domains"),
    ("organizations.page_by_name", "organization_records_name_words"),
    ("organizations.lock", "organization_records_pkey"),
    ("organizations.locked", "organization_records_pkey"),
    ("organizations.write", "organization_records_pkey"),
    ("organizations.write_tombstones", "organization_records_pkey"),
    ("organizations.delete_placeholders", "organization_records_pkey"),
    ("lookups.callers", "user_records_pkey"),
    ("lookups.callers", "revoked_sessions_pkey"),
    ("lookups.members", "organization_membership_records_user_id"),
    ("lookups.members", "organization_records_pkey"),
    ("lookups.members", "revoked_sessions_pkey"),
    ("lookups.members", "role_records_pkey"),
    ("lookups.members", "organization_role_records_pkey"),
    ("organizations.live", "organization_records_pkey"),
    ("refreshes.due", "refreshes_due_at"),
    ("memberships.of_user", "organization_membership_records_user_id"),
    ("memberships.exists", "organization_membership_records_user_id"),
    ("memberships.by_ids", "organization_membership_records_pkey"),
    ("memberships.page_of_organization_up", "organization_membership_records_status"),
    ("memberships.page_of_organization_down", "organization_membership_records_status"),
    ("memberships.page_of_user", "organization_membership_records_user_id"),
    ("authorization.permissions_up", "permission_records_id"),
    ("authorization.permissions_down", "permission_records_id"),
    ("authorization.permission", "permission_records_pkey"),
    ("authorization.environment_role", "role_records_pkey"),
    ("authorization.organization_role", "organization_role_records_pkey"),
    ("authorization.organization_roles", "organization_role_records_pkey"),
    ("authorization.has_roles", "role_lists_pkey"),
    ("memberships.lock", "organization_membership_records_pkey"),
    ("memberships.locked", "organization_membership_records_pkey"),
    ("memberships.write", "organization_membership_records_pkey"),
    ("memberships.write_tombstones", "organization_membership_records_pkey"),
    ("memberships.delete_placeholders", "organization_membership_records_pkey"),
    ("memberships.end_of_users", "organization_membership_records_user_id"),
    ("sessions.expire", "revoked_sessions_revoked_at"),
    ("sessions.delete_of_users", "revoked_sessions_user_id"),
    ("changes.page", "changes_pkey"),
    ("handlers.due", "handler_backlog_waiting"),
    ("handlers.initial_users", "changes_user_id"),
    ("erasure.messages", "handler_backlog_messages"),
    ("erasure.payloads", "events_payloads_by_user"),
    ("catch_up.progress", "events_quarantined"),
    ("catch_up.has_read", "events_pkey"),
    ("events.payload", "events_pkey"),
    ("events.naming", "events_received_at"),
    ("events.stored_payloads", "events_received_at"),
    ("events.expire_payloads", "events_payload_expiry"),
    ("events.to_redact", "events_received_at"),
    ("events.replace_payloads", "events_pkey"),
    ("events.missed_by_catch_up", "events_one_channel"),
    ("inspection.webhooks", "events_one_channel"),
    ("action_verdicts.by_key", "action_verdicts_pkey"),
    ("action_verdicts.expire", "action_verdicts_decided_at"),
];

/// Tables that no statement scans.
const LARGE: [&str; 7] = [
    "user_records",
    "events",
    "changes",
    "handler_backlog",
    "organization_records",
    "organization_membership_records",
    "revoked_sessions",
];

/// Statements that applications send.
const APPLICATIONS: &[(&str, &str)] = &[
    ("select * from workos.get_auth_user('user_7')", "user_records_pkey"),
    ("select * from workos.users where external_id = 'crm-7'", "user_records_external_id"),
    (
        "select * from workos.users where lower(email collate \"C\") = lower('U7@example.test' collate \"C\")",
        "user_records_email",
    ),
];

#[tokio::test]
async fn lookups_locks_writes_and_erasure_never_scan_a_table() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    fill_users(&pool, 50_000).await;
    pool.execute(
        "with handler as (
            insert into workos.handlers (name, types, position, start_position) values ('h', '{*}', 0, 0) returning name
        )
        insert into workos.handler_backlog (handler, position, user_id, from_start, attempts, due_at, message)
        select name, n, 'user_' || n % 5000, false, 1, now(), 'why' from handler, generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute("analyze workos.handler_backlog").await.unwrap();
    pool.execute(
        "insert into workos.action_verdicts (id, kind, payload_hash, verdict, decided_by)
        select 'action_' || n, 'authentication', sha256(''), 'allow', 'default'
        from generate_series(1, 50000) as n",
    )
    .await
    .unwrap();
    pool.execute("analyze workos.action_verdicts").await.unwrap();
    fill_organizations(&pool, 50_000).await;
    let mut connection = pool.acquire().await.unwrap();
    let sent = statements();
    let sent = STATEMENTS.iter().map(|(name, index)| (&*sent[*name].0, sent[*name].1, *index));
    let mut wrong = Vec::new();
    connection.execute("set plan_cache_mode = force_generic_plan").await.unwrap();
    for (text, parameters, index) in sent.chain(APPLICATIONS.iter().map(|(text, index)| (*text, 0, *index))) {
        let plan = generic_plan(&mut connection, text, parameters).await;
        if !plan.contains(index) || !whole_tables(&plan, &LARGE).is_empty() {
            wrong.push(format!("{text}\n{plan}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Fills the tables of users, events and changes up to this number of rows.
async fn fill_users(pool: &sqlx::PgPool, rows: u32) {
    let fill = format!(
        "insert into workos.user_records
            (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at, external_id)
        select 'user_' || n, 'u' || n || '@example.test', true, '{{}}', now(), '{{}}', now(), 'event_' || n, now(), 'crm-' || n
        from generate_series(1, {rows}) as n
        on conflict do nothing;
        insert into workos.events (id, type, user_id, outcome, payload)
        select 'event_' || n, 'user.created', 'user_' || n, 'applied', ''
        from generate_series(1, {rows}) as n
        on conflict do nothing;
        insert into workos.changes (position, kind, user_id, changed, event_id, event_type, origin)
        select n, 'created', 'user_' || n, '[]', 'event_' || n, 'user.created', 'webhook'
        from generate_series(1, {rows}) as n
        on conflict do nothing;
        analyze workos.user_records;
        analyze workos.events;
        analyze workos.changes"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(pool).await.unwrap();
}

/// Fills the tables of organizations, memberships and sessions up to this number of rows.
async fn fill_organizations(pool: &sqlx::PgPool, rows: u32) {
    let fill = format!(
        "insert into workos.organization_records
            (id, name, domains, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
        select 'org_' || n, 'Acme', '[]', '{{}}', now(), '{{}}', now(), 'event_' || n, now()
        from generate_series(1, {rows}) as n
        on conflict do nothing;
        insert into workos.organization_membership_records (
            id, user_id, organization_id, status, roles, custom_attributes, directory_managed, updated_at, synced_extra,
            synced_observed_at, synced_observation_id, synced_at
        )
        select
            'om_' || n, 'user_' || n, 'org_' || n % 100, 'active', '{{}}', '{{}}', false, now(), '{{}}', now(), 'event_' || n, now()
        from generate_series(1, {rows}) as n
        on conflict do nothing;
        insert into workos.revoked_sessions (id, user_id)
        select 'session_' || n, 'user_' || n from generate_series(1, {rows}) as n
        on conflict do nothing;
        analyze workos.organization_records;
        analyze workos.organization_membership_records;
        analyze workos.revoked_sessions"
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(pool).await.unwrap();
}

/// A session keeps its plans. It may make them right after the first migration or while the tables are small, and the tables grow
/// afterwards.
#[tokio::test]
async fn plans_made_while_the_tables_are_empty_or_small_use_the_indexes() {
    let database = TestDatabase::new().await;
    let filler = database.pool(1).await;
    let timeout = std::time::Duration::from_secs(30);
    let pool = Pool::connect(database.options(), 1, timeout);
    // Sessions get their settings once it is known that there is no pooler.
    Store::new(pool.clone(), pool.clone(), CLIENT_ID, timeout).check().await.unwrap();
    let mut connection = pool.connections().acquire().await.unwrap();
    let sent = statements();
    let mut wrong = Vec::new();
    for rows in [0, 20, 2_000] {
        if rows > 0 {
            fill_users(&filler, rows).await;
            fill_organizations(&filler, rows).await;
        }
        for (name, index) in STATEMENTS {
            let (text, parameters) = &sent[*name];
            let plan = generic_plan(&mut connection, text, *parameters).await;
            // The index has the order in which a lookup chooses among memberships.
            let sorts = *name == "lookups.members" && plan.contains("Sort");
            if !plan.contains(index) || sorts || !whole_tables(&plan, &LARGE).is_empty() {
                wrong.push(format!("{name} with {rows} rows\n{plan}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Every statement the program sends.
const NAMES: &[&str] = &[
    "action_verdicts.by_key",
    "action_verdicts.expire",
    "action_verdicts.store",
    "authorization.environment_role",
    "authorization.environment_roles",
    "authorization.has_roles",
    "authorization.organization_role",
    "authorization.organization_roles",
    "authorization.permission",
    "authorization.permissions_down",
    "authorization.permissions_up",
    "batch.write",
    "catch_up.advance",
    "catch_up.begin",
    "catch_up.has_read",
    "catch_up.progress",
    "catch_up.reset",
    "catch_up.restart",
    "catch_up.state",
    "changes.expire",
    "changes.expired_through",
    "changes.expired_through_now",
    "changes.head",
    "changes.page",
    "changes.renew_epoch",
    "changes.renew_foreign_epoch",
    "contract.version",
    "dismissals.add",
    "dismissals.expire",
    "environment.accept_deletions",
    "environment.bind",
    "environment.client_id",
    "environment.deletions_accepted",
    "environment.lock",
    "environment.organization_deletions_accepted",
    "environment.ping",
    "environment.quarantine_retried_by",
    "environment.rebind",
    "environment.rebind_from",
    "environment.set_quarantine_retried_by",
    "environment_roles.delete",
    "environment_roles.slugs",
    "environment_roles.stored",
    "environment_roles.write",
    "erasure.add_pending",
    "erasure.lock_pending",
    "erasure.messages",
    "erasure.payloads",
    "erasure.pending",
    "erasure.remove_completed",
    "erasure.sign_ins",
    "events.advance_redaction",
    "events.expire_payloads",
    "events.expire_rows",
    "events.finish_redaction",
    "events.lock_redaction",
    "events.missed_by_catch_up",
    "events.missed_by_webhooks",
    "events.naming",
    "events.now",
    "events.payload",
    "events.payloads",
    "events.record_retry",
    "events.replace_payloads",
    "events.stored_payloads",
    "events.summaries",
    "events.summary",
    "events.to_redact",
    "handlers.add",
    "handlers.all",
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
    "handlers.of_function",
    "handlers.pause",
    "handlers.postpone",
    "handlers.redrive",
    "handlers.register",
    "handlers.remove",
    "handlers.reset_role",
    "handlers.rights",
    "handlers.set_problem",
    "handlers.set_role",
    "handlers.statuses",
    "handlers.waiting_users",
    "inspection.inbox",
    "inspection.leases",
    "inspection.missing_grants",
    "inspection.scans",
    "inspection.server",
    "inspection.webhooks",
    "leases.hold",
    "leases.pause",
    "leases.release",
    "lookups.callers",
    "lookups.members",
    "memberships.by_ids",
    "memberships.delete_placeholders",
    "memberships.end_of_users",
    "memberships.exists",
    "memberships.insert_placeholders",
    "memberships.live",
    "memberships.lock",
    "memberships.locked",
    "memberships.of_user",
    "memberships.page_of_organization_down",
    "memberships.page_of_organization_up",
    "memberships.page_of_user",
    "memberships.write",
    "memberships.write_tombstones",
    "migrations.applied",
    "migrations.create_schema",
    "migrations.create_table",
    "migrations.invalid_indexes",
    "migrations.lock",
    "migrations.login",
    "migrations.present",
    "migrations.record",
    "migrations.recorded",
    "migrations.schema",
    "organization_roles.delete",
    "organization_roles.slugs",
    "organization_roles.stored",
    "organization_roles.write",
    "organizations.by_external_id",
    "organizations.by_ids",
    "organizations.delete_placeholders",
    "organizations.insert_placeholders",
    "organizations.live",
    "organizations.live_after",
    "organizations.live_ids",
    "organizations.lock",
    "organizations.locked",
    "organizations.page_by_domain",
    "organizations.page_by_name",
    "organizations.page_down",
    "organizations.page_up",
    "organizations.write",
    "organizations.write_tombstones",
    "permissions.delete",
    "permissions.slugs",
    "permissions.stored",
    "permissions.write",
    "refreshes.due",
    "refreshes.finish",
    "refreshes.postpone",
    "refreshes.request",
    "refreshes.request_absent_organizations",
    "refreshes.request_rest",
    "replicas.note",
    "replicas.remove",
    "replicas.running",
    "role_lists.age",
    "role_lists.claim",
    "roles.present",
    "scans.advance",
    "scans.begin",
    "scans.confirm",
    "scans.confirmation",
    "scans.due",
    "scans.kinds_progress",
    "scans.reconciled",
    "scans.reconciled_organizations",
    "scans.reset",
    "scans.reset_deletions_accepted",
    "scans.reset_organization_deletions_accepted",
    "scans.save_result",
    "scans.state",
    "sessions.delete_of_users",
    "sessions.expire",
    "sessions.revoke",
    "sign_ins.record",
    "sizes.tables",
    "standby.has_mark",
    "standby.mark",
    "standby.write_mark",
    "users.by_external_id",
    "users.by_id",
    "users.by_ids",
    "users.delete_placeholders",
    "users.find",
    "users.insert_placeholders",
    "users.lock",
    "users.locked",
    "users.page_by_email",
    "users.page_down",
    "users.page_up",
    "users.rows_after",
    "users.sample_live",
    "users.unwritten_since",
    "users.write_tombstones",
];

/// The service sends the statements above: each is one of the prepared queries, except for its parameters.
#[test]
fn every_statement_of_the_store_is_listed_and_frequent_ones_have_a_plan() {
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
