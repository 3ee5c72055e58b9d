//! Row-level security by organization, role and permission: which rows a caller can read, in a request as PostgREST and Supabase
//! run it. The policies are those of the guide `reading`.

use serde_json::json;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};

use crate::support::policies::{Answer, PolicyLab, READ, claims};

/// The answer to an accountant who is a member of this organization alone.
fn accountant(user: &str, organization: &str, membership: &str) -> Answer {
    let one = |text: &str| vec![text.to_owned()];
    Answer {
        organization: Some(organization.to_owned()),
        membership: one(membership),
        roles: one("accountant"),
        permissions: vec!["invoices:read".to_owned(), "invoices:write".to_owned()],
        organizations: one(organization),
        user: one(user),
        invoices: one(organization),
        announcements: one(organization),
    }
}

/// The answer to a live user without an organization.
fn no_member(user: &str) -> Answer {
    Answer { user: vec![user.to_owned()], ..Answer::default() }
}

#[tokio::test]
async fn only_active_members_of_live_organizations_are_let_in() {
    let lab = PolicyLab::new().await;
    lab.accountant().await;
    for organization in ["org_1", "org_2", "org_gone"] {
        lab.organization(organization).await;
    }
    for (user, status) in [("active", "active"), ("pending", "pending"), ("inactive", "inactive"), ("new", "suspended")]
    {
        lab.user(user).await;
        lab.membership(&format!("om_{user}"), user, "org_1", status, "{accountant}").await;
    }
    for (membership, user, organization) in
        [("om_gone", "active", "org_gone"), ("om_early", "active", "org_unknown"), ("om_late", "unsynced", "org_1")]
    {
        lab.membership(membership, user, organization, "active", "{accountant}").await;
    }
    lab.run(
        "update workos.organization_records set name = null, domains = null, metadata = null, updated_at = null,
                synced_extra = null, synced_observed_at = null, synced_observation_id = null, synced_at = null,
                synced_deleted = true
            where id = 'org_gone'",
    )
    .await;
    let member = claims("active", "org_1", "session_1");
    assert_eq!(lab.ask(&member).await, accountant("active", "org_1", "om_active"));
    assert!(lab.may_insert(&member, "org_1").await);
    assert!(!lab.may_insert(&member, "org_2").await);
    // Neither the policy of `announcements` nor the user depends on the selected organization.
    let elsewhere = Answer {
        organizations: vec!["org_1".to_owned()],
        announcements: vec!["org_1".to_owned()],
        ..no_member("active")
    };
    for claims in [
        claims("active", "org_2", "session_1"),
        claims("active", "org_gone", "session_1"),
        claims("active", "org_unknown", "session_1"),
        claims("active", "ORG_1", "session_1"),
        json!({"sub": "active", "sid": "session_1"}).to_string(),
        json!({"sub": "active", "org_id": null}).to_string(),
        json!({"sub": "active", "org_id": ""}).to_string(),
        json!({"sub": "active", "org_id": ["org_1"]}).to_string(),
    ] {
        assert_eq!(lab.ask(&claims).await, elsewhere, "{claims}");
        assert!(!lab.may_insert(&claims, "org_1").await, "{claims}");
    }
    for user in ["pending", "inactive", "new"] {
        let claims = claims(user, "org_1", "session_1");
        assert_eq!(lab.ask(&claims).await, no_member(user), "{claims}");
        assert!(!lab.may_insert(&claims, "org_1").await, "{claims}");
    }
    for user in ["unsynced", "nobody"] {
        assert_eq!(lab.ask(&claims(user, "org_1", "session_1")).await, Answer::default(), "{user}");
    }
    lab.end().await;
}

const NO_ROLE: &str = "synced_observed_at = null, synced_observation_id = null, synced_at = null, synced_extra = null,
    updated_at = null, created_at = null, synced_deleted = true";

/// For each end: what ends, and what the caller may still do with the token.
#[tokio::test]
async fn the_functions_return_nothing_after_the_session_user_organization_or_membership_has_ended() {
    let lab = PolicyLab::new().await;
    let membership = format!(
        "update workos.organization_membership_records
        set status = null, role = null, roles = null, custom_attributes = null, directory_managed = null, {NO_ROLE}
        where id = 'om_N'"
    );
    let user = format!(
        "update workos.user_records set email = null, email_verified = null, metadata = null, {NO_ROLE} where id = 'user_N'"
    );
    let organization = format!(
        "update workos.organization_records set name = null, domains = null, metadata = null, {NO_ROLE} where id = 'org_N'"
    );
    let nobody = |_: &str, _: &str, _: &str| Answer::default();
    let only_user = |user: &str, _: &str, _: &str| no_member(user);
    let no_permission = |user: &str, organization: &str, membership: &str| {
        let (permissions, invoices) = (Vec::new(), Vec::new());
        Answer { permissions, invoices, ..accountant(user, organization, membership) }
    };
    let read_only = |user: &str, organization: &str, membership: &str| {
        let permissions = vec!["invoices:read".to_owned()];
        Answer { permissions, ..accountant(user, organization, membership) }
    };
    type Left<'a> = &'a dyn Fn(&str, &str, &str) -> Answer;
    let deactivate = "update workos.organization_membership_records set status = 'inactive' where id = 'om_N'";
    let revoke = "insert into workos.revoked_sessions (id, user_id) values ('session_N', 'user_N')";
    let role = "update workos.role_records set permissions = '{}' where slug = 'accountant'";
    let less = "update workos.role_records set permissions = '{invoices:read}' where slug = 'accountant'";
    let gone = "update workos.role_records set permissions = null, synced_deleted = true where slug = 'accountant'";
    let ends: [(&str, Left); 8] = [
        (deactivate, &only_user),
        (&membership, &only_user),
        (&organization, &only_user),
        (&user, &nobody),
        (revoke, &nobody),
        (role, &no_permission),
        (less, &read_only),
        (gone, &no_permission),
    ];
    for (n, (end, left)) in ends.into_iter().enumerate() {
        lab.run("delete from workos.role_records").await;
        lab.accountant().await;
        let [user, organization, membership, session] =
            ["user", "org", "om", "session"].map(|kind| format!("{kind}_{n}"));
        lab.user(&user).await;
        lab.organization(&organization).await;
        lab.membership(&membership, &user, &organization, "active", "{accountant}").await;
        let (token, other) = (claims(&user, &organization, &session), claims(&user, &organization, "session_other"));
        let before = accountant(&user, &organization, &membership);
        assert_eq!(lab.ask(&token).await, before, "before {end}");
        assert!(lab.may_insert(&token, &organization).await, "before {end}");
        lab.run(&end.replace("_N'", &format!("_{n}'"))).await;
        let left = left(&user, &organization, &membership);
        assert_eq!(lab.ask(&token).await, left, "after {end}");
        assert!(!lab.may_insert(&token, &organization).await, "after {end}");
        // Another session of the same user stays valid.
        let expected = if end == revoke { before } else { left };
        assert_eq!(lab.ask(&other).await, expected, "another session after {end}");
    }
    lab.end().await;
}

#[tokio::test]
async fn a_request_that_runs_sees_an_end_with_its_next_statement() {
    let lab = PolicyLab::new().await;
    lab.accountant().await;
    lab.user("user_1").await;
    lab.organization("org_1").await;
    lab.membership("om_1", "user_1", "org_1", "active", "{accountant}").await;
    let mut request = lab.begin(&claims("user_1", "org_1", "session_1")).await;
    let visible = "select count(*) from invoices";
    let count = async |connection: &mut PgConnection| -> i64 {
        sqlx::query_scalar(visible).fetch_one(connection).await.unwrap()
    };
    assert_eq!(count(&mut request).await, 1);
    lab.run("update workos.organization_membership_records set status = 'inactive'").await;
    assert_eq!(count(&mut request).await, 0);
    lab.run("update workos.organization_membership_records set status = 'active'").await;
    assert_eq!(count(&mut request).await, 1);
    lab.run("insert into workos.revoked_sessions (id) values ('session_1')").await;
    assert_eq!(count(&mut request).await, 0);
    request.execute("commit").await.unwrap();
    // The claims are valid until the end of the transaction. The next request uses the same session.
    request.execute(AssertSqlSafe(format!("begin; set local role {}", lab.role))).await.unwrap();
    assert_eq!(request.fetch_one(READ).await.unwrap().get::<Vec<String>, _>("caller"), Vec::<String>::new());
    assert_eq!(count(&mut request).await, 0);
    request.execute("rollback").await.unwrap();
    drop(request);
    lab.end().await;
}

#[tokio::test]
async fn permissions_are_those_of_the_roles_as_they_are_now() {
    let lab = PolicyLab::new().await;
    lab.user("user_1").await;
    lab.organization("org_1").await;
    lab.organization("org_2").await;
    lab.run(
        "insert into workos.role_records (slug, permissions, synced_deleted) values
            ('member', '{b,a}', false), ('auditor', '{c,b}', false), ('empty', null, false), ('old', '{never}', true),
            ('shared', '{environment}', false), ('org-stray', '{never}', false), ('org-ended', '{never}', false);
        insert into workos.organization_role_records (organization_id, slug, permissions, synced_deleted) values
            ('org_1', 'org-clerk', '{Z,a,é}', false), ('org_2', 'org-clerk', '{never}', false),
            ('org_2', 'org-other', '{never}', false), ('org_1', 'shared', '{never}', false), ('org_2', 'member', '{never}', false),
            ('org_1', 'org-ended', '{never}', true), ('org_1', 'auditor', '{never}', true)",
    )
    .await;
    lab.membership("om_1", "user_1", "org_1", "active", "{}").await;
    let token = claims("user_1", "org_1", "session_1");
    for (held, permissions) in [
        ("{}", &[][..]),
        ("{member}", &["a", "b"]),
        ("{auditor,member}", &["a", "b", "c"]),
        ("{member,member}", &["a", "b"]),
        ("{org-clerk,member}", &["Z", "a", "b", "é"]),
        ("{shared}", &["environment"]),
        ("{empty,old,org-stray,org-ended,org-other,unknown}", &[]),
        ("{unknown,member}", &["a", "b"]),
    ] {
        lab.run(&format!("update workos.organization_membership_records set roles = '{held}'")).await;
        let answer = lab.ask(&token).await;
        assert_eq!(answer.permissions, permissions, "{held}");
        let slugs = held.trim_matches(['{', '}']).split(',').filter(|slug| !slug.is_empty());
        assert_eq!(answer.roles, slugs.collect::<Vec<_>>(), "roles are as WorkOS described them");
    }
    // A role that is deleted and created again is live again, also for its members.
    lab.run("update workos.organization_membership_records set roles = '{old}'").await;
    lab.run("update workos.role_records set synced_deleted = false, permissions = '{again}' where slug = 'old'").await;
    assert_eq!(lab.ask(&token).await.permissions, ["again"]);
    lab.end().await;
}

#[tokio::test]
async fn a_member_who_is_added_again_has_the_newest_active_membership() {
    let lab = PolicyLab::new().await;
    lab.accountant().await;
    lab.user("user_1").await;
    lab.organization("org_1").await;
    let token = claims("user_1", "org_1", "session_1");
    lab.membership("om_z", "user_1", "org_1", "active", "{admin}").await;
    lab.membership("om_a", "user_1", "org_1", "active", "{accountant}").await;
    // The removal of the first membership is late. The newest membership counts, not the one with the greatest ID.
    assert_eq!(lab.ask(&token).await, accountant("user_1", "org_1", "om_a"));
    let end = |id: &str| {
        format!(
            "update workos.organization_membership_records
            set status = null, role = null, roles = null, custom_attributes = null, directory_managed = null, {NO_ROLE}
            where id = '{id}'"
        )
    };
    lab.run(&end("om_z")).await;
    assert_eq!(lab.ask(&token).await, accountant("user_1", "org_1", "om_a"));
    // An additional invitation changes nothing, and does not replace the membership.
    lab.membership("om_m", "user_1", "org_1", "pending", "{admin}").await;
    assert_eq!(lab.ask(&token).await, accountant("user_1", "org_1", "om_a"));
    lab.run(&end("om_a")).await;
    assert_eq!(lab.ask(&token).await, no_member("user_1"));
    lab.end().await;
}

#[tokio::test]
async fn malformed_claims_give_no_answer_and_no_error() {
    let lab = PolicyLab::new().await;
    lab.accountant().await;
    lab.user("user_1").await;
    lab.organization("org_1").await;
    lab.membership("om_1", "user_1", "org_1", "active", "{accountant}").await;
    let deep =
        format!("{{\"sub\":\"user_1\",\"org_id\":\"org_1\",\"x\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    for claims in [
        "",
        " ",
        "{",
        "null",
        "7",
        "\"user_1\"",
        "[\"sub\", \"org_id\"]",
        "{}",
        "{\"org_id\":\"org_1\",\"sid\":\"session_1\"}",
        "{\"sub\":\"\",\"org_id\":\"org_1\"}",
        "{\"sub\":null,\"org_id\":\"org_1\"}",
        "{\"sub\":[\"user_1\"],\"org_id\":\"org_1\"}",
        "{\"sub\":{\"id\":\"user_1\"},\"org_id\":\"org_1\"}",
        "{\"sub\":\"user_1\",\"org_id\":\"org_1\",\"sid\":7}",
        "{\"sub\":\"user_1\",\"org_id\":\"org_1\",\"sid\":[\"session_1\"]}",
        "{\"sub\":\"user_1\\u0000\",\"org_id\":\"org_1\"}",
        "{\"sub\":\"user_1\",\"org_id\":\"org_1\\u0000\"}",
        "{\"sub\":\"user_1\",\"org_id\":\"\\ud800\"}",
        "{'sub':'user_1'}",
        deep.as_str(),
    ] {
        let shown: String = claims.chars().take(80).collect();
        assert_eq!(lab.ask(claims).await, Answer::default(), "{shown}");
        assert!(!lab.may_insert(claims, "org_1").await, "{shown}");
    }
    // A token without `sid` names no session that could be revoked.
    for claims in
        ["{\"sub\":\"user_1\",\"org_id\":\"org_1\"}", "{\"sub\":\"user_1\",\"org_id\":\"org_1\",\"sid\":null}"]
    {
        assert_eq!(lab.ask(claims).await, accountant("user_1", "org_1", "om_1"));
    }
    lab.end().await;
}

const VIEWS: [&str; 6] =
    ["organizations", "organization_memberships", "active_memberships", "roles", "organization_roles", "permissions"];

#[tokio::test]
async fn end_users_call_the_functions_and_readers_also_read_the_views() {
    let lab = PolicyLab::new().await;
    let allowed = async |role: &str, kind: &str, name: &str, privilege: &str| -> bool {
        let has = format!("select has_{kind}_privilege('{role}', 'workos.{name}', '{privilege}')");
        sqlx::query_scalar(AssertSqlSafe(has)).fetch_one(&lab.admin).await.unwrap()
    };
    for view in VIEWS {
        assert!(allowed("workos_reader", "table", view, "select").await, "{view}");
        assert!(!allowed("workos_reader", "table", view, "insert, update, delete").await, "{view}");
        assert!(!allowed("workos_end_user", "table", view, "select").await, "{view}");
        let text = format!("select * from workos.{view}");
        lab.run(&format!("begin; set local role workos_reader; {text}; rollback")).await;
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'workos'::regnamespace and relkind = 'r'",
    )
    .fetch_all(&lab.admin)
    .await
    .unwrap();
    for table in tables {
        for role in ["workos_reader", "workos_end_user"] {
            let rights = "select, insert, update, delete, truncate, references, trigger";
            assert!(!allowed(role, "table", &table, rights).await, "{role} {table}");
        }
    }
    for (function, end_user, reader) in [
        ("current_organization_id()", true, true),
        ("current_organization_ids()", true, true),
        ("current_membership()", true, true),
        ("current_roles()", true, true),
        ("current_permissions()", true, true),
        ("has_permission(text)", true, true),
        ("is_member_of(text)", true, true),
        ("role_permissions(text, text[])", false, true),
        ("current_session()", false, false),
    ] {
        assert_eq!(allowed("workos_end_user", "function", function, "execute").await, end_user, "{function}");
        assert_eq!(allowed("workos_reader", "function", function, "execute").await, reader, "{function}");
    }
    // The function reads the views with the privileges of its caller.
    lab.accountant().await;
    let call = "select workos.role_permissions('org_1', '{accountant}')";
    lab.run(&format!("begin; set local role workos_reader; {call}; rollback")).await;
    lab.end().await;
}

/// Any role may create temporary objects, and choose its search_path.
#[tokio::test]
async fn temporary_objects_of_a_caller_change_no_answer() {
    let lab = PolicyLab::new().await;
    lab.accountant().await;
    lab.user("user_1").await;
    lab.organization("org_1").await;
    lab.membership("om_1", "user_1", "org_1", "active", "{accountant}").await;
    let mut request = lab.begin(&claims("user_1", "org_1", "session_1")).await;
    for sql in [
        "create function pg_temp.spy(anyelement) returns boolean language plpgsql as $$
        begin
            raise exception 'ran as %', current_user;
        end $$",
        "create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.spy(value))",
        "create domain pg_temp.text as pg_catalog.text check (pg_temp.spy(value))",
        "create temporary table active_memberships (user_id pg_catalog.text)",
        "create temporary table roles (slug pg_catalog.text, permissions pg_catalog.text[])",
        "create temporary table revoked_sessions (id pg_catalog.text)",
        "insert into pg_temp.roles values ('accountant', '{everything}')",
        "insert into pg_temp.revoked_sessions values ('session_1')",
        "create function pg_temp.equals(pg_catalog.text, pg_catalog.text) returns boolean language sql as 'select false'",
        "create operator pg_temp.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = pg_temp.equals)",
        "set local search_path = pg_temp, pg_catalog, workos",
    ] {
        request.execute(sql).await.unwrap();
    }
    let read = "select workos.current_organization_id(), workos.current_roles(), workos.current_permissions(),
        workos.current_organization_ids(), workos.has_permission('invoices:read'), workos.is_member_of('org_1'),
        (select id from workos.current_membership()), (select id from workos.current_auth_user())";
    let row = request.fetch_one(read).await.unwrap();
    let expected = accountant("user_1", "org_1", "om_1");
    assert_eq!(row.get::<Option<String>, _>(0), expected.organization);
    assert_eq!(row.get::<Vec<String>, _>(1), expected.roles);
    assert_eq!(row.get::<Vec<String>, _>(2), expected.permissions);
    assert_eq!(row.get::<Vec<String>, _>(3), expected.organizations);
    assert!(row.get::<bool, _>(4) && row.get::<bool, _>(5));
    assert_eq!([row.get::<String, _>(6), row.get::<String, _>(7)], ["om_1", "user_1"]);
    request.execute("rollback").await.unwrap();
    drop(request);
    lab.end().await;
}
