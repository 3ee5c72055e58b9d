//! The group roles of applications, and what each may: asserted again at every `migrate`, because roles belong to the server
//! and not to the database, and a dump does not bring them along.
//!
//! | role | may |
//! |---|---|
//! | `workos_end_user` | ask who it is: `workos.current_subject()`, `workos.current_auth_user()` |
//! | `workos_reader` | that, read `workos.users`, ask `workos.get_auth_user` |
//!
//! Neither may read the inbox or the base table, nor reference it: PostgreSQL checks a foreign key as the owner of the
//! referenced table, with the cast of the referencing column's type. A login that may reference a table and create a type can
//! run code as that owner. Operators grant this right by hand to logins that they trust.

use sqlx::postgres::{PgConnection, PgPool};

use super::{StoreError, migrations};

/// The roles, and how each is made.
const ROLES: [(&str, &str); 2] = [
    ("workos_end_user", "create role workos_end_user nologin"),
    ("workos_reader", "create role workos_reader nologin"),
];

/// What they may. Each statement may fail for lack of a right without the others.
const GRANTS: [&str; 5] = [
    "grant usage on schema workos to workos_end_user, workos_reader",
    "grant execute on function workos.current_subject() to workos_end_user, workos_reader",
    "grant execute on function workos.current_auth_user() to workos_end_user, workos_reader",
    "grant select on workos.users to workos_reader",
    "grant execute on function workos.get_auth_user(text) to workos_reader",
];

/// Another process that does the same at the same moment is let through so often.
const MAX_ATTEMPTS: usize = 5;

/// Makes the roles unless they are there, and grants what they may; returns the statements that the database's own rights do
/// not allow, for somebody who may.
///
/// # Errors
/// [`StoreError`] when the database cannot be asked.
pub async fn assert(pool: &PgPool) -> Result<Vec<&'static str>, StoreError> {
    let mut connection = migrations::session(pool).await?;
    let mut refused = Vec::new();
    for (role, create) in ROLES {
        let present = sqlx::query_scalar!(
            r#"-- roles.present
            select to_regrole($1) is not null as "present!""#,
            role
        );
        if !present.fetch_one(&mut connection).await? && !run(&mut connection, create).await? {
            refused.push(create);
        }
    }
    for grant in GRANTS {
        if !run(&mut connection, grant).await? {
            refused.push(grant);
        }
    }
    sqlx::Connection::close(connection).await?;
    Ok(refused)
}

/// `false` when the right is lacking, or the role is because the right to make it was.
async fn run(connection: &mut PgConnection, statement: &'static str) -> Result<bool, StoreError> {
    for _ in 0..MAX_ATTEMPTS {
        let Err(error) = sqlx::raw_sql(statement).execute(&mut *connection).await else { return Ok(true) };
        let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
        match code.as_deref() {
            // It is there, or another process has just made it.
            Some("42710" | "23505") => return Ok(true),
            Some("42501" | "42704") => return Ok(false),
            // Another process grants the same at the same moment ("tuple concurrently updated").
            Some("XX000") => {}
            _ => return Err(error.into()),
        }
    }
    Ok(false)
}
