//! The rows of the table.

use super::options::Options;
use super::pgbench::Script;

/// What a row measures.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// New users.
    Webhooks,
    /// Updates of users that were loaded with SQL.
    Updates,
    /// The same thousand events repeatedly.
    Duplicates,
    /// New users in an open loop.
    OpenLoop,
    /// The same, together with lookups in a closed loop.
    OpenLoopBesideLookups,
    /// Lookups in which each token is used this often.
    Lookups(usize),
    /// The same of members: `/auth/session` with a token that has an organization, used ten times.
    Sessions,
    EmptyPost,
    EmptyGet,
    Pgbench(Script),
    /// All users of a list, without pauses.
    Backfill,
}

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) work: Work,
    pub(crate) connections: usize,
}

fn row(name: &str, work: Work, connections: usize) -> Row {
    Row { name: format!("{name}-{connections}"), work, connections }
}

/// The rows to measure, in the order of a round.
pub(crate) fn of(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for connections in &options.connections {
        rows.push(row("webhooks", Work::Webhooks, *connections));
        rows.push(row("pgbench-statement", Work::Pgbench(Script::Statement), *connections));
    }
    rows.push(row("pgbench-unnest", Work::Pgbench(Script::Unnest), 32));
    rows.push(row("empty-post", Work::EmptyPost, 32));
    rows.push(row("lookups-new", Work::Lookups(1), 32));
    rows.push(row("lookups-ten", Work::Lookups(10), 32));
    rows.push(row("sessions-ten", Work::Sessions, 32));
    rows.push(row("pgbench-reads", Work::Pgbench(Script::Reads), 32));
    rows.push(row("empty-get", Work::EmptyGet, 32));
    rows.push(Row { name: "open-loop".to_owned(), work: Work::OpenLoop, connections: 64 });
    rows.push(Row { name: "open-loop-beside".to_owned(), work: Work::OpenLoopBesideLookups, connections: 64 });
    rows.push(Row { name: "backfill".to_owned(), work: Work::Backfill, connections: 1 });
    if !options.rows.is_empty() {
        rows.push(row("updates", Work::Updates, 32));
        rows.push(row("duplicates", Work::Duplicates, 32));
        rows.retain(|row| options.rows.iter().any(|wanted| row.name.starts_with(wanted)));
    }
    rows
}
