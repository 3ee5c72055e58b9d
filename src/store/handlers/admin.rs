//! Administration of handlers: add, pause, resume, remove and redrive.

use std::time::Duration;

use crate::domain::handler::{NAME, Types, is_name};
use crate::store::DbConnection;
use crate::store::{Store, StoreError, Work};

/// A SQL handler to add.
#[derive(Clone, Debug)]
pub struct NewHandler {
    /// The name under which its progress is stored. `None`: the name of the function.
    pub name: Option<String>,
    /// The function with its schema, with or without `(jsonb)`.
    pub function: String,
    /// The role that runs the function. `None`: the owner of the function.
    pub role: Option<String>,
    /// The event types that it selects.
    pub types: Types,
    /// The timeout of one call.
    pub timeout: Duration,
    /// Whether it first receives every live user.
    pub from_start: bool,
}

/// Why a handler cannot be added. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The function does not exist.
    #[error("the function {0}(jsonb) does not exist; create it first")]
    NoFunction(String),
    /// The function has other arguments than one `jsonb`.
    #[error("a handler is a function with one argument of type jsonb, and {0} has others")]
    OtherArguments(String),
    /// The name of the function has no schema.
    #[error("the function name {0} has no schema; add it, for example public.{0}")]
    NoSchema(String),
    /// The role does not exist.
    #[error("the role {0} does not exist; create it, or choose another one with --role")]
    NoRole(String),
    /// The service may not set the role.
    #[error(
        "the service's role {service} is not a member of role {role}; run `grant {role} to {service}`, or choose \
         another role with --role"
    )]
    RoleNotOurs {
        /// The role that would run the function.
        role: String,
        /// The service's own role.
        service: String,
    },
    /// The role may not call the function.
    #[error("role {role} may not call {function}; grant it usage on the schema and execute on the function")]
    NotCallable {
        /// The role that would run the function.
        role: String,
        /// The function.
        function: String,
    },
    /// The name of the function is not a valid handler name.
    #[error("a handler cannot have the name {0}: choose another name with --name ({NAME})")]
    NotAName(String),
    /// Another handler calls this function.
    #[error(
        "the handler {handler} already calls {function}, so each change would be handled twice; to add a second \
         handler on purpose, name it with --name"
    )]
    FunctionTaken {
        /// The handler.
        handler: String,
        /// The function.
        function: String,
    },
    /// A handler with this name exists.
    #[error("a handler with the name {0} already exists; remove it first, or choose another name with --name")]
    NameTaken(String),
    /// A statement or a transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Adds a SQL handler, which starts at the end of the feed. Returns its name and the role that runs the function.
    ///
    /// # Errors
    /// [`AddError`]
    pub async fn add_handler(&self, new: &NewHandler) -> Result<(String, String), AddError> {
        let callee = self.callee(&new.function).await?;
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
        let name = match &new.name {
            Some(name) => name.clone(),
            None => self.name_for(&callee.function).await?,
        };
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

    /// Returns the name of a handler that is named after its function, unless another handler calls the function.
    async fn name_for(&self, function: &str) -> Result<String, AddError> {
        let name = function.trim_end_matches("(jsonb)").to_owned();
        let others = self.handlers_of(function).await?;
        if let Some(handler) = others.into_iter().find(|other| *other != name) {
            return Err(AddError::FunctionTaken { handler, function: function.to_owned() });
        }
        if is_name(&name) { Ok(name) } else { Err(AddError::NotAName(name)) }
    }

    /// Returns the names of the handlers that call this function, which has its schema and `(jsonb)`.
    async fn handlers_of(&self, function: &str) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                "-- handlers.of_function
                select name
                from workos.handlers
                where to_regprocedure(function) = to_regprocedure($1)
                order by name",
                function
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    async fn callee(&self, function: &str) -> Result<Callee, AddError> {
        let Some(given) = without_arguments(function) else {
            return Err(AddError::OtherArguments(function.to_owned()));
        };
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
            // The text is not an identifier.
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

    /// Returns whether the service can set the role. It tries to, because since PostgreSQL 16 a member may lack this right.
    async fn can_set_role(&self, role: &str) -> Result<bool, StoreError> {
        match self.transaction("set role", &SetRole { role }).await {
            Ok(()) => Ok(true),
            Err(StoreError::Unavailable(why)) if why.is_lack_of_privilege() => Ok(false),
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

    /// Retries the dead-lettered changes of a handler, with all attempts, and retries the waiting ones now: all of them, or those
    /// of one user. Returns their number, or `None` if the handler does not exist.
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

/// Returns the name in `schema.name(jsonb)`. Every spelling of the argument list of one `jsonb` is accepted, and none at all.
/// `None` for other arguments.
fn without_arguments(function: &str) -> Option<&str> {
    let Some(opened) = function.trim().strip_suffix(')') else { return Some(function.trim()) };
    let (name, arguments) = opened.rsplit_once('(')?;
    let argument = arguments.split_whitespace().last()?.replace('"', "").to_ascii_lowercase();
    matches!(&*argument, "jsonb" | "pg_catalog.jsonb").then(|| name.trim_end())
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

    async fn run(&self, connection: &mut DbConnection<'_>) -> Result<(), StoreError> {
        // The setting ends with the transaction.
        sqlx::query!("-- handlers.set_role\nselect set_config('role', $1, true)", self.role)
            .fetch_one(connection)
            .await?;
        Ok(())
    }
}
