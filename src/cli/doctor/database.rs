//! Checks of the database: reachable, writable, its rights, its schema, its environment and its connections.

use super::hosts;
use super::subject::Subject;
use crate::store::inspection::{SchemaFacts, ServerFacts};
use crate::store::{Store, StoreError};
use crate::sync::health::{Check, count};

/// The oldest supported version of PostgreSQL, and the oldest with which the tests run.
const OLDEST_VERSION: i32 = 150_000;

/// Connections of one other command.
const COMMAND_CONNECTIONS: i64 = 4;

/// The names of the checks after the first one.
const LATER: [&str; 6] = [
    "database_pooler",
    "database_access",
    "database_schema",
    "database_indexes",
    "database_environment",
    "database_connections",
];

/// Returns the checks, and by how many seconds this machine's clock is ahead of the server's, if it answers.
pub(super) async fn checks(subject: &Subject<'_>, replicas: i64) -> (Vec<Check>, Option<i64>) {
    let Some(store) = &subject.store else {
        let fix = "set DATABASE_URL to the address of PostgreSQL";
        return unknown(
            Check::failure("database", "DATABASE_URL is not set or malformed", fix),
            "there is no database",
        );
    };
    let ((mut checks, ahead), hosts) = tokio::join!(of_server(subject, store, replicas), hosts::check(store));
    checks.insert(1, hosts);
    (checks, ahead)
}

/// Returns the first check, and the later ones as not checked.
fn unknown(first: Check, why: &str) -> (Vec<Check>, Option<i64>) {
    let later = LATER.iter().map(|name| Check::not_checked(name, why));
    (std::iter::once(first).chain(later).collect(), None)
}

/// Returns the checks of the server that is used.
async fn of_server(subject: &Subject<'_>, store: &Store, replicas: i64) -> (Vec<Check>, Option<i64>) {
    let pooler = match store.is_behind_pooler().await {
        Ok(is_behind_pooler) => pooler(is_behind_pooler),
        Err(StoreError::Unfit(unfit)) => {
            let (mut checks, _) =
                unknown(Check::ok("database", "a pooler answers"), "the pooler must be changed first");
            checks[1] = Check::failure("database_pooler", unfit.to_string(), "set pool_mode = transaction");
            return (checks, None);
        }
        Err(error) => return unknown(Check::of_store("database", &error), "the database is unreachable"),
    };
    let server = match store.server_facts().await {
        Ok(server) => server,
        Err(error) => return unknown(Check::of_store("database", &error), "the database is unusable"),
    };
    let ahead = subject.clock.now().unix_seconds() - server.now.unix_seconds();
    let mut checks = vec![reachable(&server), pooler, access(store).await];
    match store.schema_facts().await {
        Ok(schema) => checks.extend([migrated(&schema), indexes(&schema), environment(subject, &schema)]),
        Err(error) => {
            checks.push(Check::of_store("database_schema", &error));
            let why = "the schema cannot be read";
            checks.extend(["database_indexes", "database_environment"].map(|name| Check::not_checked(name, why)));
        }
    }
    checks.push(connections(subject, &server, replicas));
    (checks, Some(ahead))
}

fn pooler(is_behind_pooler: bool) -> Check {
    let text = if is_behind_pooler {
        "a connection pooler is between this host and PostgreSQL: every statement runs in a transaction"
    } else {
        "the sessions of PostgreSQL are used directly, without a pooler"
    };
    Check::ok("database_pooler", text)
}

fn reachable(server: &ServerFacts) -> Check {
    let version = &server.version;
    if server.version_number < OLDEST_VERSION {
        return Check::failure(
            "database",
            format!("PostgreSQL {version} is too old"),
            "upgrade to PostgreSQL 15 or newer",
        );
    }
    if server.is_read_only {
        let text =
            format!("PostgreSQL {version} is read-only: it is a standby, or default_transaction_read_only is on");
        return Check::failure(
            "database",
            text,
            "set DATABASE_URL to the primary, or set default_transaction_read_only to off",
        );
    }
    Check::ok("database", format!("PostgreSQL {version} answers and is writable"))
}

async fn access(store: &Store) -> Check {
    match store.missing_grants().await {
        Ok(missing) if missing.is_empty() => Check::ok("database_access", "the role has every privilege that it needs"),
        Ok(missing) => {
            let text = format!("the role lacks {} of the privileges that the service needs", missing.len());
            Check::failure("database_access", text, format!("run as the owner of the schema: {}", missing.join("; ")))
        }
        Err(error) => Check::of_store("database_access", &error),
    }
}

fn migrated(schema: &SchemaFacts) -> Check {
    let (name, migrations) = ("database_schema", &schema.migrations);
    if !migrations.pending.is_empty() {
        let text =
            format!("{} pending: {}", count(migrations.pending.len(), "migration"), migrations.pending.join(", "));
        return Check::failure(name, text, "run `authkit-sync migrate`");
    }
    if let Some(wanted) = schema.contract.filter(|wanted| *wanted > schema.known) {
        let text = format!("the schema requires version {wanted}, and this release knows version {}", schema.known);
        return Check::failure(name, text, "install a newer release");
    }
    if !migrations.newer.is_empty() {
        let text = format!("a newer release has applied {}", count(migrations.newer.len(), "migration"));
        return Check::warning(name, text, "complete the upgrade of every replica");
    }
    Check::ok(name, format!("all {} migrations are applied", migrations.applied.len()))
}

fn indexes(schema: &SchemaFacts) -> Check {
    if schema.invalid_indexes.is_empty() {
        return Check::ok("database_indexes", "every index is valid");
    }
    let text = format!("invalid indexes: {}", schema.invalid_indexes.join(", "));
    let fix = "run `authkit-sync migrate`, which rebuilds the indexes of migrations; drop any other invalid index";
    Check::failure("database_indexes", text, fix)
}

fn environment(subject: &Subject<'_>, schema: &SchemaFacts) -> Check {
    let name = "database_environment";
    match (&schema.client_id, &subject.client_id) {
        (Some(recorded), Some(given)) if recorded != given => Check::failure(
            name,
            format!("the database belongs to the client ID {recorded}, but WORKOS_CLIENT_ID is {given}"),
            "set DATABASE_URL to the database of this environment, or, if the database was copied, run `authkit-sync rebind`",
        ),
        (Some(recorded), Some(_)) => Check::ok(name, format!("the database belongs to {recorded}")),
        (None, _) if !schema.migrations.pending.is_empty() => Check::not_checked(name, "migrations are pending"),
        (None, _) => Check::warning(
            name,
            "the database is not bound to a WorkOS environment yet",
            "start `authkit-sync serve` while WorkOS is reachable",
        ),
        (Some(_), None) => Check::not_checked(name, "WORKOS_CLIENT_ID is not set"),
    }
}

fn connections(subject: &Subject<'_>, server: &ServerFacts, replicas: i64) -> Check {
    let (name, pool, usable) =
        ("database_connections", i64::from(subject.pool_size), i64::from(server.usable_connections));
    let others = (server.used_connections - server.own_connections).max(0);
    let needed = replicas * pool + COMMAND_CONNECTIONS;
    let text = format!(
        "{} up to {needed} connections, other clients use {others}, and the role may use {usable}",
        if replicas == 1 { "1 replica needs".to_owned() } else { format!("{replicas} replicas need") }
    );
    let fix = "lower AUTHKIT_SYNC_DB_POOL, or raise max_connections of PostgreSQL or the limit of the role";
    if others + needed > usable {
        Check::failure(name, text, fix)
    } else if others + needed + pool > usable {
        Check::warning(name, format!("{text}, so an update has no room for one more process"), fix)
    } else {
        Check::ok(name, text)
    }
}
