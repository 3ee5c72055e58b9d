//! The transaction of a handler: the handler's writes and its progress commit together, or neither does.

use std::error::Error;
use std::ops::{Deref, DerefMut};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::postgres::{PgConnection, PgDatabaseError, Postgres};
use sqlx::{AssertSqlSafe, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::store::connection::DbConnection;
use crate::store::pool::{self, begin_write};
use crate::store::{Store, StoreError, Work};

/// An error of the application.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Time after the timeout at which slow code other than a statement is cancelled. PostgreSQL cancels a slow statement at the
/// timeout itself and reports its location.
const GRACE: Duration = Duration::from_secs(1);

/// Stores the role in a setting of the transaction, because the handler can change the role. It is part of the first statement, so
/// it needs no extra round trip.
const RECORD_ROLE: &str = "select pg_catalog.set_config('authkit_sync.role', pg_catalog.current_setting('role'), true)";

/// Behind a pooler, deallocates the statements that the driver has prepared in this session for earlier transactions of Rust
/// handlers. The driver numbers them from 1 on each connection, so the same name would be prepared twice.
const DEALLOCATE_STATEMENTS: &str = "do $$declare name text; begin \
     for name in select prepared.name from pg_catalog.pg_prepared_statements as prepared \
         where pg_catalog.starts_with(prepared.name, 'sqlx_s_') and not prepared.from_sql \
     loop execute pg_catalog.format('deallocate %I', name); end loop; end$$";

/// Maximum length of a stored error message in characters.
const MESSAGE_LIMIT: usize = 500;

/// A handler's transaction on the synced database. It dereferences to `&mut PgConnection`. Everything written through it commits
/// together with the progress of the handler. It ends when the handler returns, so do not commit it and do not keep it.
#[derive(Debug)]
pub struct Tx(OwnedMutexGuard<Transaction<'static, Postgres>>);

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// Why a handler failed. The message can contain personal data, so it is never logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerFailure {
    /// PostgreSQL's five-character code.
    pub sqlstate: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
    /// The function and the line in it.
    pub location: Option<String>,
    /// The error message without details, truncated to 500 characters.
    pub message: String,
}

impl HandlerFailure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Reads the fields of the database error in the chain of errors, if there is one, or else the message.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
        let database_error =
            chain.filter_map(|error| error.downcast_ref::<sqlx::Error>()).find_map(sqlx::Error::as_database_error);
        let failure = match database_error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) {
            Some(error) => Self {
                sqlstate: Some(error.code().to_owned()),
                constraint: error.constraint().map(str::to_owned),
                location: error.r#where().and_then(location),
                message: error.message().to_owned(),
            },
            None => Self::new(error.to_string()),
        };
        // PostgreSQL text cannot contain NUL, and a failure that cannot be stored would be retried forever.
        let message = failure.message.replace('\0', "\u{FFFD}");
        Self { message: message.chars().take(MESSAGE_LIMIT).collect(), ..failure }
    }
}

/// Returns the innermost function of the application in an error context, and the line in it. Other lines of a context can contain
/// values, and a value with a line break could look like a function. So only text with the form of a signature is accepted.
fn location(context: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.,()[] \"".contains(&byte);
    let signature = |name: &str| name.ends_with(')') && name.bytes().all(plain);
    let functions = context.lines().filter_map(|line| line.strip_prefix("PL/pgSQL function "));
    let (function, rest) = functions
        .filter(|line| !line.starts_with("workos."))
        .filter_map(|line| line.split_once(" line "))
        .find(|(name, _)| signature(name))?;
    let line: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("{function} line {line}"))
}

impl Store {
    /// Runs `handler` in a transaction for at most `timeout`, checks deferred constraints, resets the role, runs `then` in the
    /// same transaction, and commits. If the handler fails, panics or times out, everything is rolled back.
    ///
    /// # Errors
    /// [`StoreError`]: the database failed, and nothing was written.
    pub(crate) async fn run_in_transaction<F: Future<Output = Result<(), BoxError>>>(
        &self,
        timeout: Duration,
        handler: impl FnOnce(Tx) -> F,
        then: &impl Work<Output = ()>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        self.check_bound().await?;
        // As in `transaction`: the text contains only a number.
        let begun = self.begin_handler(timeout).await;
        let begun = self.handlers.locating(begun);
        self.log_failure(&begun);
        let begun = self.noting_unfit(begun)?;
        let (begun, keeps_statements) = begun;
        let shared = Arc::new(Mutex::new(begun));
        let tx = Tx(shared.clone().lock_owned().await);
        let ran =
            AssertUnwindSafe(async { tokio::time::timeout(timeout + GRACE, handler(tx)).await }).catch_unwind().await;
        match ran {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => return Ok(Err(HandlerFailure::of(&*error))),
            Ok(Err(_late)) => {
                return Ok(Err(HandlerFailure::new(format!(
                    "the handler took longer than its timeout of {timeout:?}"
                ))));
            }
            Err(_panic) => return Ok(Err(HandlerFailure::new("the handler panicked"))),
        }
        let Some(transaction) = Arc::into_inner(shared) else {
            return Ok(Err(HandlerFailure::new("the handler kept its transaction after it returned")));
        };
        match self.finish(transaction.into_inner(), keeps_statements, then).await {
            // A role, a setting or a slow trigger of the handler can prevent storing its progress. This is a failure of the
            // handler, because otherwise it would be retried forever. If the database is down, the failure cannot be stored either.
            Err(error) if !matches!(error, StoreError::Overtaken) => {
                Ok(Err(HandlerFailure::new(format!("the progress of the handler could not be stored: {error}"))))
            }
            outcome => outcome,
        }
    }

    /// Begins a handler's transaction. `search_path` and the planning of statements have the role's defaults, as in other sessions
    /// of the application. Also returns whether the connection keeps prepared statements.
    async fn begin_handler(&self, timeout: Duration) -> Result<(Transaction<'static, Postgres>, bool), StoreError> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let begun = async {
            let (mut begun, keeps_statements) = loop {
                let current = self.handlers.current(deadline).await?;
                let keeps_statements = current.mode.keeps_statements();
                let deallocate = if keeps_statements { "" } else { DEALLOCATE_STATEMENTS };
                // As in `attempt`: the text contains only numbers and constants.
                let begin = format!(
                    "{}; {deallocate}; {RECORD_ROLE}; set local search_path to default; \
                     set local plan_cache_mode to default; set local enable_seqscan to default; \
                     set local jit to default",
                    begin_write(timeout, "")
                );
                // In its own task, because a dropped `begin` would leave the transaction open.
                let connections = current.pool.connections().clone();
                let beginning = tokio::spawn(async move { connections.begin_with(AssertSqlSafe(begin)).await });
                let beginning = async { beginning.await.unwrap_or(Err(sqlx::Error::WorkerCrashed)) };
                if let Some(begun) = self.handlers.diagnosing(&current, deadline, beginning).await? {
                    break (begun, keeps_statements);
                }
            };
            if !keeps_statements {
                pool::forget_statements(&mut begun).await?;
            }
            sqlx::query!("-- handlers.check_client\nselect workos.check_client($1)", &*self.client_id)
                .execute(&mut DbConnection::new(&mut begun, keeps_statements))
                .await?;
            Ok((begun, keeps_statements))
        };
        tokio::time::timeout_at(deadline, begun).await.map_err(StoreError::late)?
    }

    async fn finish(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        keeps_statements: bool,
        then: &impl Work<Output = ()>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        let finished = async {
            let mut connection = DbConnection::new(&mut transaction, keeps_statements);
            let checked =
                sqlx::query!("-- handlers.check\nset constraints all immediate").execute(&mut connection).await;
            match checked {
                Ok(_) => {}
                Err(error @ sqlx::Error::Database(_)) => return Ok(Err(HandlerFailure::of(&error))),
                Err(error) => return Err(error.into()),
            }
            // Resets the role for the session, not only for the transaction: the handler could have changed it for the session,
            // and the next user of the connection would get that role.
            sqlx::query!(
                "-- handlers.reset_role
                select
                    pg_catalog.set_config('role', pg_catalog.current_setting('authkit_sync.role'), false) as role,
                    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true) as search_path"
            )
            .fetch_one(&mut connection)
            .await?;
            then.run(&mut connection).await?;
            transaction.commit().await?;
            Ok(Ok(()))
        };
        tokio::time::timeout(self.timeout, finished).await.map_err(StoreError::late)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_the_innermost_function_of_the_application_and_contains_no_value() {
        let context = "SQL statement \"insert into t values ('ada@example.test')\"\n\
                       PL/pgSQL function inner(jsonb) line 3 at SQL statement\n\
                       PL/pgSQL function public.on_user(jsonb) line 7 at PERFORM\n\
                       PL/pgSQL function workos.run_handler(text,text,jsonb) line 7 at EXECUTE";
        assert_eq!(location(context).as_deref(), Some("inner(jsonb) line 3"));
        assert_eq!(location("SQL function \"f\" statement 1"), None);
        let planted = "SQL statement \"insert into t values ('x\n\
                       PL/pgSQL function ada@example.test line 5 at\n')\"\n\
                       PL/pgSQL function on_user(jsonb) line 7 at EXECUTE";
        assert_eq!(location(planted).as_deref(), Some("on_user(jsonb) line 7"));
    }
}
