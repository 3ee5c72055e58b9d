//! The group roles for applications and their privileges. Every `migrate run` creates them again if they are missing, because roles
//! belong to the server, so a dump of the database does not contain them.
//!
//! | role | privileges |
//! |---|---|
//! | `workos_end_user` | call the functions for row-level security: `workos.current_…()`, `is_member_of` and `has_permission` |
//! | `workos_reader` | also read the views of live objects, and call `workos.get_auth_user` and `workos.role_permissions` |
//!
//! Neither may read the inbox or a base table, or reference a base table. PostgreSQL checks a foreign key as the owner of the
//! referenced table, with the cast of the referencing column's type. So a login that may reference a table and create a type can
//! run code as that owner. Operators grant this privilege manually to logins that they trust.

use std::time::Duration;

use sqlx::postgres::PgPool;

use super::StoreError;
use super::migrations::Session;

/// The roles, and the statements that create them.
pub(super) const ROLES: [(&str, &str); 2] = [
    ("workos_end_user", "create role workos_end_user nologin"),
    ("workos_reader", "create role workos_reader nologin"),
];

/// The statements that grant their privileges. If one fails because a privilege is missing, the others still run.
pub(super) const GRANTS: [&str; 8] = [
    "grant usage on schema workos to workos_end_user, workos_reader",
    "grant execute on function workos.current_subject() to workos_end_user, workos_reader",
    "grant execute on function workos.current_auth_user() to workos_end_user, workos_reader",
    "grant execute on function workos.current_organization_id(), workos.current_organization_ids(), \
     workos.current_membership(), workos.current_roles(), workos.current_permissions(), workos.has_permission(text), \
     workos.is_member_of(text) to workos_end_user, workos_reader",
    "grant select on workos.users to workos_reader",
    "grant select on workos.organizations, workos.organization_memberships, workos.active_memberships, workos.roles, \
     workos.organization_roles, workos.permissions to workos_reader",
    "grant execute on function workos.get_auth_user(text) to workos_reader",
    "grant execute on function workos.role_permissions(text, text[]) to workos_reader",
];

/// Number of attempts if another process runs the same statement at the same time.
const MAX_ATTEMPTS: usize = 50;

/// The pause between two attempts. At least one of the processes succeeds in each round.
const PAUSE: Duration = Duration::from_millis(5);

/// Creates missing roles and grants their privileges. Returns the statements for which the service's role lacks the privilege, so
/// that a superuser can run them.
///
/// # Errors
/// [`StoreError`] if the database cannot be reached.
pub async fn assert(pool: &PgPool) -> Result<Vec<&'static str>, StoreError> {
    let mut session = Session::open(pool).await?;
    let mut not_allowed = Vec::new();
    for (role, create) in ROLES {
        let is_present = session.transaction(async |connection| {
            let present = sqlx::query_scalar!(
                r#"-- roles.present
                select to_regrole($1) is not null as "present!""#,
                role
            );
            present.fetch_one(connection).await
        });
        if !is_present.await? && !run(&mut session, create).await? {
            not_allowed.push(create);
        }
    }
    for grant in GRANTS {
        if !run(&mut session, grant).await? {
            not_allowed.push(grant);
        }
    }
    session.close().await?;
    Ok(not_allowed)
}

/// Runs a statement. Returns false if the service's role lacks the privilege, or the statement's role is missing for this reason.
async fn run(session: &mut Session, statement: &'static str) -> Result<bool, StoreError> {
    for _ in 0..MAX_ATTEMPTS {
        let ran = session.transaction(async |connection| sqlx::raw_sql(statement).execute(connection).await);
        let Err(error) = ran.await else { return Ok(true) };
        let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        match code.as_deref() {
            // The role exists, or another process has just created it.
            Some("42710" | "23505") => return Ok(true),
            Some("42501" | "42704") => return Ok(false),
            // Another process runs the same grant at the same time ("tuple concurrently updated").
            Some("XX000") => tokio::time::sleep(PAUSE).await,
            _ => return Err(error.into()),
        }
    }
    Ok(false)
}
