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

use crate::store::pool::begin_write;
use crate::store::{Store, StoreError, Work};

/// An error of an application's own.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// PostgreSQL ends a statement that takes too long by itself, and says where; this much later we end what is no statement.
const GRACE: Duration = Duration::from_secs(1);

/// Whose transaction it is, for the time when the handler may have become somebody else. Kept in the transaction itself, where
/// nobody waits for the answer.
const REMEMBER_ROLE: &str =
    "select pg_catalog.set_config('authkit_sync.role', pg_catalog.current_setting('role'), true)";

/// Characters of a failure's message that are kept.
const MESSAGE_LIMIT: usize = 500;

/// A handler's transaction on the synced database: use it as the `&mut PgConnection` it derefs to. What is written through it
/// commits together with the fact that the handler has run. It ends when the handler returns: do not commit it, and do not
/// keep it.
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

/// Why a handler failed. The message may hold personal data: it is never logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerFailure {
    /// PostgreSQL's five-character code.
    pub sqlstate: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
    /// The function and the line in it.
    pub location: Option<String>,
    /// In words, without detail, cut to 500 characters.
    pub message: String,
}

impl HandlerFailure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Of a database error somewhere in the chain the telling parts, of any other its text.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
        let refused =
            chain.filter_map(|error| error.downcast_ref::<sqlx::Error>()).find_map(sqlx::Error::as_database_error);
        let failure = match refused.and_then(|refused| refused.try_downcast_ref::<PgDatabaseError>()) {
            Some(refused) => Self {
                sqlstate: Some(refused.code().to_owned()),
                constraint: refused.constraint().map(str::to_owned),
                location: refused.r#where().and_then(location),
                message: refused.message().to_owned(),
            },
            None => Self::new(error.to_string()),
        };
        // PostgreSQL's text holds no NUL, and a failure that cannot be noted would be tried for ever.
        let message = failure.message.replace('\0', "\u{FFFD}");
        Self { message: message.chars().take(MESSAGE_LIMIT).collect(), ..failure }
    }
}

/// The innermost function of a context that is not ours, and its line. The rest of a context may quote values, of which one with
/// a line break in it may pass for a function: what is no signature is none.
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
    /// Runs `handler` in a transaction for at most `timeout`, checks deferred constraints, resets the role, does `then` in
    /// it, and commits. A handler that fails, panics or takes too long leaves nothing behind.
    ///
    /// # Errors
    /// [`StoreError`]: the database did not do its part, and nothing was written.
    pub(crate) async fn run_in_transaction<F: Future<Output = Result<(), BoxError>>>(
        &self,
        timeout: Duration,
        handler: impl FnOnce(Tx) -> F,
        then: &impl Work<Output = ()>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        self.check_bound().await?;
        // As in `transaction`: a number and nothing else.
        let begun = self.begin_handler(timeout).await;
        let begun = self.noting_unfit(self.handlers.noting(begun))?;
        let lent = Arc::new(Mutex::new(begun));
        let tx = Tx(lent.clone().lock_owned().await);
        let ran =
            AssertUnwindSafe(async { tokio::time::timeout(timeout + GRACE, handler(tx)).await }).catch_unwind().await;
        match ran {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => return Ok(Err(HandlerFailure::of(&*error))),
            Ok(Err(_late)) => return Ok(Err(HandlerFailure::new(format!("it took longer than {timeout:?}")))),
            Err(_panic) => return Ok(Err(HandlerFailure::new("it panicked"))),
        }
        let Some(transaction) = Arc::into_inner(lent) else {
            return Ok(Err(HandlerFailure::new("it kept its transaction after it returned")));
        };
        match self.finish(transaction.into_inner(), then).await {
            // What a handler leaves behind (a role, a setting, a slow trigger) may keep its run from being recorded: its failure,
            // or it would be tried for ever. Where the database is away instead, the failure cannot be noted either.
            Err(error) if !matches!(error, StoreError::Overtaken) => {
                Ok(Err(HandlerFailure::new(format!("its run could not be recorded: {error}"))))
            }
            outcome => outcome,
        }
    }

    /// Begins a handler's transaction. Names without a schema are looked up, and statements planned, as in any other session of
    /// the application.
    async fn begin_handler(&self, timeout: Duration) -> Result<Transaction<'static, Postgres>, StoreError> {
        // As in `attempt`: numbers and our own words.
        let begin = format!(
            "{}; {REMEMBER_ROLE}; set local search_path to default; set local plan_cache_mode to default",
            begin_write(timeout, "")
        );
        let begun = async {
            // To its end even if the caller gives up: the driver would leave open what was begun and not answered yet.
            let connections = self.handlers.connections().clone();
            let beginning = tokio::spawn(async move { connections.begin_with(AssertSqlSafe(begin)).await });
            let mut begun =
                beginning.await.map_err(|_| StoreError::Unavailable("the runtime is shutting down".into()))??;
            sqlx::query!("-- handlers.check_client\nselect workos.check_client($1)", &*self.client_id)
                .execute(&mut *begun)
                .await?;
            Ok(begun)
        };
        tokio::time::timeout(self.timeout, begun).await.map_err(StoreError::late)?
    }

    async fn finish(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        then: &impl Work<Output = ()>,
    ) -> Result<Result<(), HandlerFailure>, StoreError> {
        let finished = async {
            let checked =
                sqlx::query!("-- handlers.check\nset constraints all immediate").execute(&mut *transaction).await;
            match checked {
                Ok(_) => {}
                Err(error @ sqlx::Error::Database(_)) => return Ok(Err(HandlerFailure::of(&error))),
                Err(error) => return Err(error.into()),
            }
            // For the session, not only for this transaction: a role that the handler took for good would meet whoever gets the
            // connection next.
            sqlx::query!(
                "-- handlers.reset_role
                select
                    pg_catalog.set_config('role', pg_catalog.current_setting('authkit_sync.role'), false) as role,
                    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true) as search_path"
            )
            .fetch_one(&mut *transaction)
            .await?;
            then.run(&mut transaction).await?;
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
    fn a_place_is_the_innermost_function_of_the_application_and_quotes_no_value() {
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
