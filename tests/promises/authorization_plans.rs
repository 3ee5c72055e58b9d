//! The functions for row-level security use indexes for everything they read, in sessions with PostgreSQL's default settings.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};

use crate::support::policies::{PolicyLab, claims};

const SESSION: &str = "revoked_sessions_pkey";
const USER: &str = "user_records_pkey";
const ORGANIZATION: &str = "organization_records_pkey";
const MEMBERSHIP: &str = "organization_membership_records_user_id";
const OWN_ROLES: &str = "organization_role_records_pkey";
const SHARED_ROLES: &str = "role_records_pkey";

/// Each function, and the indexes that it uses.
const CALLS: &[(&str, &[&str])] = &[
    ("select * from workos.current_auth_user()", &[SESSION, USER]),
    ("select workos.current_organization_id()", &[SESSION, MEMBERSHIP, ORGANIZATION, USER]),
    ("select * from workos.current_membership()", &[SESSION, MEMBERSHIP, ORGANIZATION, USER]),
    ("select workos.current_roles()", &[SESSION, MEMBERSHIP, ORGANIZATION, USER]),
    ("select workos.current_organization_ids()", &[SESSION, MEMBERSHIP, ORGANIZATION, USER]),
    ("select workos.is_member_of('org_1')", &[SESSION, MEMBERSHIP, ORGANIZATION, USER]),
    ("select workos.current_permissions()", &[SESSION, MEMBERSHIP, ORGANIZATION, USER, OWN_ROLES, SHARED_ROLES]),
    ("select workos.has_permission('p')", &[SESSION, MEMBERSHIP, ORGANIZATION, USER, OWN_ROLES, SHARED_ROLES]),
];

/// Every caller is a member of two organizations. Half of all memberships are in one organization.
const SEED: &str = "
    insert into workos.user_records
        (id, email, email_verified, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
    select 'user_' || n, 'u', true, '{}', now(), '{}', now(), 'event', now() from generate_series(1, 50000) as n;
    insert into workos.organization_records
        (id, name, domains, metadata, updated_at, synced_extra, synced_observed_at, synced_observation_id, synced_at)
    select 'org_' || n, 'Acme', '[]', '{}', now(), '{}', now(), 'event', now() from generate_series(1, 1000) as n;
    insert into workos.organization_membership_records
        (id, user_id, organization_id, status, roles, custom_attributes, directory_managed, created_at, updated_at, synced_extra,
        synced_observed_at, synced_observation_id, synced_at)
    select
        'om_' || n, 'user_' || (n + 1) / 2, case when n % 2 = 1 then 'org_1' else 'org_' || 2 + n / 2 % 999 end, 'active',
        '{member,org-clerk}', '{}', false, now(), now(), '{}', now(), 'event', now()
    from generate_series(1, 100000) as n;
    insert into workos.role_records (slug, permissions) select 'role-' || n, '{p}' from generate_series(1, 1000) as n;
    insert into workos.role_records (slug, permissions) values ('member', '{invoices:read}');
    insert into workos.organization_role_records (organization_id, slug, permissions)
    select 'org_' || n % 1000 + 1, 'org-role-' || n, '{p}' from generate_series(1, 10000) as n;
    insert into workos.organization_role_records (organization_id, slug, permissions) values ('org_1', 'org-clerk', '{q}');
    insert into workos.revoked_sessions (id) select 'revoked_' || n from generate_series(1, 50000) as n;
    insert into invoices (organization_id, total) select 'org_' || n % 1000 + 1, n from generate_series(1, 50000) as n;
    insert into announcements select 'org_' || n % 1000 + 1, 'hello' from generate_series(1, 50000) as n;
    analyze invoices, announcements";

/// The scans of each table and each index of ours, and the rows that they have read, in this transaction.
async fn scans(connection: &mut PgConnection) -> BTreeMap<(String, bool), (i64, i64)> {
    let counters: Vec<(String, bool, i64, i64)> = sqlx::query_as(
        "select relname::text, relkind = 'i', pg_stat_get_xact_numscans(oid), pg_stat_get_xact_tuples_returned(oid)
        from pg_class where relnamespace = 'workos'::regnamespace and relkind in ('r', 'i')",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    counters.into_iter().map(|(name, is_index, scans, rows)| ((name, is_index), (scans, rows))).collect()
}

/// Calls each function, and returns those that read a whole table, use an unexpected index, or read many rows.
async fn wrong(connection: &mut PgConnection, when: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (call, indexes) in CALLS {
        let before = scans(connection).await;
        connection.execute(AssertSqlSafe((*call).to_owned())).await.unwrap();
        let mut used = BTreeMap::new();
        for (object, (scans, rows)) in scans(connection).await {
            let (scans_before, rows_before) = before[&object];
            if scans > scans_before {
                used.insert(object, rows - rows_before);
            }
        }
        let expected: BTreeSet<(String, bool)> = indexes.iter().map(|&index| (index.to_owned(), true)).collect();
        if used.keys().cloned().collect::<BTreeSet<_>>() != expected || used.values().any(|&rows| rows > 4) {
            wrong.push(format!("{when}: {call} reads {used:?}"));
        }
    }
    wrong
}

#[tokio::test]
async fn every_read_of_a_policy_uses_an_index_at_100_000_memberships() {
    let lab = PolicyLab::new().await;
    let claims = claims("user_7", "org_1", "session_1");
    // PostgreSQL keeps the plans of the sixth call of a session. The tables are empty then.
    let mut session = lab.begin(&claims).await;
    for _ in 0..8 {
        for (call, _) in CALLS {
            session.execute(AssertSqlSafe((*call).to_owned())).await.unwrap();
        }
    }
    session.execute("commit").await.unwrap();
    drop(session);
    lab.run(SEED).await;
    let mut errors = Vec::new();
    for when in ["with plans of empty tables", "after analyze"] {
        let mut session = lab.begin(&claims).await;
        errors.extend(wrong(&mut session, when).await);
        session.execute("rollback").await.unwrap();
        drop(session);
        lab.run("analyze").await;
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    lab.end().await;
}

#[tokio::test]
async fn the_policies_of_the_guide_use_the_index_of_the_applications_table() {
    let lab = PolicyLab::new().await;
    lab.run(SEED).await;
    lab.run("analyze").await;
    let mut session = lab.begin(&claims("user_7", "org_1", "session_1")).await;
    let mut read = async |table: &str| {
        let explain = AssertSqlSafe(format!("explain (costs off) select * from {table}"));
        let plan: Vec<String> = sqlx::query_scalar(explain).fetch_all(&mut *session).await.unwrap();
        let count = AssertSqlSafe(format!("select count(*) from {table}"));
        let rows: i64 = sqlx::query_scalar(count).fetch_one(&mut *session).await.unwrap();
        (plan.join("\n"), rows)
    };
    let (plan, rows) = read("invoices").await;
    let is_once = plan.matches("InitPlan").count() >= 2;
    assert!(is_once && plan.contains("on invoices_organization_id_idx") && !plan.contains("Seq Scan"), "{plan}");
    assert_eq!(rows, 50);
    // The function is inlined: it reads the organizations once, and the index finds their rows.
    let (plan, rows) = read("announcements").await;
    let condition = "Index Cond: (organization_id = ANY (workos.current_organization_ids()))";
    assert!(plan.contains(condition) && !plan.contains("Filter") && !plan.contains("Seq Scan"), "{plan}");
    assert_eq!(rows, 100);
    session.execute("rollback").await.unwrap();
    drop(session);
    lab.end().await;
}
