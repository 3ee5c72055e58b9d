//! Administration of handlers: add, pause, remove and redrive.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::domain::handler::Types;
use crate::store::{Store, StoreError, Work};

/// A handler in SQL, to be added.
#[derive(Clone, Debug)]
pub struct NewHandler {
    /// Under which its progress is kept; nothing takes the function's.
    pub name: Option<String>,
    /// The function with its schema, with or without `(jsonb)`.
    pub function: String,
    /// The role it runs as; nothing takes the function's owner.
    pub role: Option<String>,
    /// What it takes.
    pub types: Types,
    /// How long it may take.
    pub timeout: Duration,
    /// It is first told of every live user.
    pub from_start: bool,
}

/// Why a handler cannot be added. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// There is no such function.
    #[error("there is no function {0}(jsonb); create it first")]
    NoFunction(String),
    /// No search path decides which function is meant.
    #[error("the function {0} is named without its schema; add it, for example public.{0}")]
    NoSchema(String),
    /// There is no such role.
    #[error("there is no role {0}")]
    NoRole(String),
    /// The service may not become that role.
    #[error(
        "the service ({service}) may not set role {role}; run `grant {role} to {service}`, or choose another with --role"
    )]
    RoleNotOurs {
        /// The role it would run as.
        role: String,
        /// The service's own role.
        service: String,
    },
    /// The role may not call it.
    #[error("role {role} may not call {function}; grant it usage on the schema and execute on the function")]
    NotCallable {
        /// The role it would run as.
        role: String,
        /// The function.
        function: String,
    },
    /// There is a handler of this name.
    #[error("there is a handler {0} already; remove it first, or choose another --name")]
    NameTaken(String),
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Adds a handler in SQL; it starts at the end of the feed. Returns its name and the role it runs as.
    ///
    /// # Errors
    /// [`AddError`]
    pub async fn add_handler(&self, new: &NewHandler) -> Result<(String, String), AddError> {
        let given = new.function.strip_suffix("(jsonb)").unwrap_or(&new.function);
        let callee = self.callee(given).await?;
        let role = new.role.clone().unwrap_or(callee.owner);
        let rights = self.rights(&role, &callee.function).await?;
        if !rights.present {
            return Err(AddError::NoRole(role));
        }
        if !rights.settable || !self.can_set_role(&role).await? {
            return Err(AddError::RoleNotOurs { role: rights.quoted, service: rights.service });
        }
        if !rights.callable {
            return Err(AddError::NotCallable { role, function: callee.function });
        }
        let name = new.name.clone().unwrap_or_else(|| given.to_owned());
        let start = self.feed_head().await?.horizon;
        let timeout_ms = i32::try_from(new.timeout.as_millis()).unwrap_or(i32::MAX);
        let added = self
            .write("add handler", || {
                sqlx::query!(
                    "-- handlers.add
                    insert into workos.handlers (name, types, function, role, timeout_ms, position, start_position, initial_users_through)
                    values ($1, $2, $3, $4, $5, $6, $6, case when $7 then '' end)
                    on conflict (name) do nothing",
                    name,
                    new.types.names(),
                    callee.function,
                    role,
                    timeout_ms,
                    start,
                    new.from_start
                )
            })
            .await?;
        if added > 0 { Ok((name, role)) } else { Err(AddError::NameTaken(name)) }
    }

    async fn callee(&self, given: &str) -> Result<Callee, AddError> {
        let found = self
            .lookup(async |connection| {
                sqlx::query!(
                    r#"-- handlers.callee
                    select
                        cardinality(parts) = 1 as "without_schema!",
                        quote_ident(nspname) || '.' || quote_ident(proname) || '(jsonb)' as function,
                        pg_get_userbyid(proowner)::text as owner
                    from parse_ident($1) as parts
                    left join pg_namespace on
                        nspname = parts[1]
                        and cardinality(parts) = 2
                    left join pg_proc on
                        pronamespace = pg_namespace.oid
                        and proname = parts[2]
                        and pronargs = 1
                        and proargtypes[0] = 'jsonb'::regtype
                        and prokind = 'f'"#,
                    given
                )
                .fetch_one(connection)
                .await
            })
            .await;
        let no_function = || AddError::NoFunction(given.to_owned());
        match found {
            Ok(found) if found.without_schema => Err(AddError::NoSchema(given.to_owned())),
            Ok(found) => {
                let callee = found.function.zip(found.owner);
                callee.map(|(function, owner)| Callee { function, owner }).ok_or_else(no_function)
            }
            // It is not an identifier.
            Err(StoreError::Refused { .. }) => Err(no_function()),
            Err(error) => Err(error.into()),
        }
    }

    async fn rights(&self, role: &str, function: &str) -> Result<Rights, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_as!(
                Rights,
                r#"-- handlers.rights
                select
                    role is not null as "present!",
                    quote_ident($1) as "quoted!",
                    quote_ident(current_user) as "service!",
                    coalesce(pg_has_role(role, 'member'), false) as "settable!",
                    coalesce(
                        has_function_privilege(role, callee, 'execute')
                        and has_schema_privilege(role, pronamespace, 'usage'),
                        false
                    ) as "callable!"
                from
                    (select to_regrole(quote_ident($1))::oid as role, to_regprocedure($2)::oid as callee) as named
                left join pg_proc on pg_proc.oid = callee"#,
                role,
                function
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Whether the service can set the role, found out by doing it: from PostgreSQL 16 on, a member may be denied it.
    async fn can_set_role(&self, role: &str) -> Result<bool, StoreError> {
        match self.transaction("set role", &SetRole { role }).await {
            Ok(()) => Ok(true),
            Err(StoreError::Unavailable(why)) if why.starts_with("SQLSTATE 42501") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pauses or resumes a handler. Returns whether it exists.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn pause_handler(&self, name: &str, paused: bool) -> Result<bool, StoreError> {
        let changed = self
            .write("pause handler", || {
                sqlx::query!("-- handlers.pause\nupdate workos.handlers set paused = $2 where name = $1", name, paused)
            })
            .await?;
        Ok(changed > 0)
    }

    /// Deletes a handler, its progress and its backlog. Returns whether it existed.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn remove_handler(&self, name: &str) -> Result<bool, StoreError> {
        let removed = self
            .write("remove handler", || {
                sqlx::query!("-- handlers.remove\ndelete from workos.handlers where name = $1", name)
            })
            .await?;
        Ok(removed > 0)
    }

    /// Gives a handler's changes that were set aside another round of attempts, all of them or one user's, and lets those that
    /// wait be tried at once. Returns how many; `None` when there is no such handler.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn redrive_handler(&self, name: &str, user: Option<&str>) -> Result<Option<u64>, StoreError> {
        if self.handlers(Some(name)).await?.is_empty() {
            return Ok(None);
        }
        let redriven = self
            .write("redrive handler", || {
                sqlx::query!(
                    "-- handlers.redrive
                    update workos.handler_backlog
                    set
                        attempts = case when due_at is null then 0 else attempts end,
                        due_at = now()
                    where
                        handler = $1
                        and ($2::text is null or user_id = $2)",
                    name,
                    user
                )
            })
            .await?;
        Ok(Some(redriven))
    }
}

struct Callee {
    function: String,
    owner: String,
}

struct Rights {
    present: bool,
    quoted: String,
    service: String,
    settable: bool,
    callable: bool,
}

struct SetRole<'a> {
    role: &'a str,
}

impl Work for SetRole<'_> {
    type Output = ();

    async fn run(&self, connection: &mut PgConnection) -> Result<(), StoreError> {
        // The setting ends with the transaction.
        sqlx::query!("-- handlers.become\nselect set_config('role', $1, true)", self.role)
            .fetch_one(connection)
            .await?;
        Ok(())
    }
}
