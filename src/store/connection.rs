//! The connection on which the statements of the store run.

use std::fmt;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection, Describe, Either, Error, Execute, Executor, Postgres, SqlStr, Transaction};

/// A connection, and whether the server keeps prepared statements on it.
///
/// The driver parses a statement and executes it with separate messages. Behind a pooler, a statement that was parsed under a name
/// may be executed in another session, where the name is unknown or names a different statement. So behind a pooler each statement
/// is parsed without a name, directly before its execution, inside of a transaction.
pub struct DbConnection<'c> {
    connection: &'c mut PgConnection,
    keeps_statements: bool,
}

impl<'c> DbConnection<'c> {
    /// `keeps_statements`: whether this connection has the same session for as long as it is open.
    pub(super) fn new(connection: &'c mut PgConnection, keeps_statements: bool) -> Self {
        Self { connection, keeps_statements }
    }

    /// Uses a connection of the caller, who has begun a transaction. It works behind a pooler, too.
    pub(crate) fn in_transaction(connection: &'c mut PgConnection) -> Self {
        Self::new(connection, false)
    }
}

impl DbConnection<'_> {
    /// Begins a savepoint of the transaction.
    ///
    /// # Errors
    /// Any error of sqlx.
    pub(crate) async fn savepoint(&mut self) -> Result<DbTransaction<'_>, sqlx::Error> {
        Ok(DbTransaction::new(self.connection.begin().await?, self.keeps_statements))
    }
}

/// A transaction or savepoint that has begun. Dropping it rolls it back.
pub(crate) struct DbTransaction<'c> {
    transaction: Transaction<'c, Postgres>,
    keeps_statements: bool,
}

impl<'c> DbTransaction<'c> {
    pub(super) fn new(transaction: Transaction<'c, Postgres>, keeps_statements: bool) -> Self {
        Self { transaction, keeps_statements }
    }

    /// Returns the connection for statements in it.
    pub(crate) fn connection(&mut self) -> DbConnection<'_> {
        DbConnection::new(&mut self.transaction, self.keeps_statements)
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await
    }

    pub(crate) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.transaction.rollback().await
    }
}

impl fmt::Debug for DbConnection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DbConnection").field("keeps_statements", &self.keeps_statements).finish_non_exhaustive()
    }
}

impl<'c> Executor<'c> for &'c mut DbConnection<'_> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let is_named = self.keeps_statements;
        (&mut *self.connection).fetch_many(Named { query, is_named })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let is_named = self.keeps_statements;
        (&mut *self.connection).fetch_optional(Named { query, is_named })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        (&mut *self.connection).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        (&mut *self.connection).describe(sql)
    }
}

/// A query that is prepared without a name unless `is_named`.
struct Named<E> {
    query: E,
    is_named: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Named<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.is_named && self.query.persistent()
    }
}
