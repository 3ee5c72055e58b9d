//! The settings of our sessions and transactions.

use std::time::Duration;

/// Where PostgreSQL looks up names without a schema: only where no other role can create objects.
const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// A setting that [`of_session`] sets and [`is_new_session`] reads. A new session does not have it.
const MARK: &str = "authkit_sync.session";

/// Returns the statements that set our settings for a session (`set`) or a transaction (`set local`).
///
/// Generic plans: every statement of the store has one good plan for all values of its parameters (`tests/promises/plans.rs`), and
/// planning costs several times as much as executing. A session may plan a statement while the tables are still empty, and keep
/// that plan while they grow. So PostgreSQL must never choose a plan that reads a whole table (`enable_seqscan`). The estimated
/// cost of a statement that must read a sequence would then make PostgreSQL compile it, so `jit` is off, too.
fn settings(set: &str, timeout: Duration) -> String {
    let bound = timeout.as_millis().max(1);
    format!(
        "{set} search_path = {SEARCH_PATH}; \
         {set} statement_timeout = {bound}; \
         {set} lock_timeout = {bound}; \
         {set} idle_in_transaction_session_timeout = {}; \
         {set} synchronous_commit = on; \
         {set} plan_cache_mode = force_generic_plan; \
         {set} enable_seqscan = off; \
         {set} jit = off",
        bound * 2
    )
}

/// Returns the statements that set our settings for a session.
pub(super) fn of_session(timeout: Duration) -> String {
    format!("{}; set {MARK} = 'own'", settings("set", timeout))
}

/// Returns the statement that tells whether a session is as new as its connection. `oldest` is the greatest possible age of a
/// connection that was just opened. A session that is older, or that has our settings, belongs to a pooler.
pub(super) fn is_new_session(oldest: Duration) -> String {
    format!(
        "select pg_catalog.current_setting('{MARK}', true) is null \
             and backend_start operator(pg_catalog.>) \
                 (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '{} milliseconds') \
         from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())",
        oldest.as_millis()
    )
}

/// Returns the statements that begin a write: durable, limited in time on the server too, and rejected if the database belongs to
/// another client ID. A transaction whose client has disconnected must not keep its locks or block the change feed.
pub(in crate::store) fn begin_write(timeout: Duration, client_id: &str) -> String {
    let begin = format!("begin isolation level read committed; {}", settings("set local", timeout));
    if client_id.is_empty() {
        return begin;
    }
    format!("{begin}; select workos.check_client({})", literal(client_id))
}

/// Returns the statements that begin a lookup in a session without our settings.
pub(in crate::store) fn begin_read(timeout: Duration) -> String {
    format!("begin isolation level read committed read only; {}", settings("set local", timeout))
}

/// Returns the text as an SQL literal, valid for both values of `standard_conforming_strings`.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\0', "").replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal("client_01"), "E'client_01'");
        assert_eq!(literal("a'b\\c\0"), "E'a''b\\\\c'");
    }
}
