//! Describes failures of the database: what failed, at which server, and what to do.
//!
//! PostgreSQL's own messages can contain values of rows. So only the names of objects are read from them, and only from messages of
//! a known form.

use std::borrow::Cow;
use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;

use sqlx::error::DatabaseError;

use super::place::{Place, quoted};

/// Maximum length of the name of an object that is taken from a message. PostgreSQL's own limit is 63.
const NAME_LIMIT: usize = 130;

/// Maximum length of the reason of a TLS failure.
const TLS_REASON_LIMIT: usize = 200;

/// A failure of the database. Its text contains the address of the server and names of objects, never a value or a password. It
/// is for logs, commands and the operator's listener, not for answers to callers.
#[derive(Clone, Debug)]
pub struct DatabaseFailure {
    /// What failed. `{at}`, `{role}` and `{database}` stand for the place.
    what: Cow<'static, str>,
    /// What to do.
    fix: Cow<'static, str>,
    place: Option<Arc<Place>>,
    is_of_connection: bool,
    is_lack_of_privilege: bool,
}

impl DatabaseFailure {
    pub(super) const fn new(what: Cow<'static, str>, fix: Cow<'static, str>) -> Self {
        Self { what, fix, place: None, is_of_connection: false, is_lack_of_privilege: false }
    }

    fn of_connection(what: impl Into<Cow<'static, str>>, fix: &'static str) -> Self {
        Self { is_of_connection: true, ..Self::new(what.into(), Cow::Borrowed(fix)) }
    }

    /// Adds the place, if the failure has none yet.
    pub(super) fn at(self, place: &Arc<Place>) -> Self {
        Self { place: self.place.or_else(|| Some(place.clone())), ..self }
    }

    /// Returns whether no connection could be opened or used, so that every statement fails.
    pub(super) fn is_of_connection(&self) -> bool {
        self.is_of_connection
    }

    /// Returns whether the role lacks a privilege.
    pub(super) fn is_lack_of_privilege(&self) -> bool {
        self.is_lack_of_privilege
    }

    /// Returns what failed.
    #[must_use]
    pub fn what(&self) -> String {
        self.filled(&self.what)
    }

    /// Returns what to do. Empty if there is nothing specific.
    #[must_use]
    pub fn fix(&self) -> String {
        self.filled(&self.fix)
    }

    fn filled(&self, text: &str) -> String {
        let place = self.place.as_deref();
        let at = place.map_or("PostgreSQL".to_owned(), |place| format!("PostgreSQL at {}", place.address()));
        text.replace("{at}", &at)
            .replace("{role}", place.map_or("ROLE", Place::role))
            .replace("{database}", place.map_or("DATABASE", Place::database))
    }
}

impl fmt::Display for DatabaseFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix())?;
        }
        Ok(())
    }
}

impl From<&'static str> for DatabaseFailure {
    fn from(what: &'static str) -> Self {
        Self::new(what.into(), Cow::Borrowed(""))
    }
}

/// The request did not complete within its timeout.
pub(super) fn late() -> DatabaseFailure {
    DatabaseFailure::new(
        "{at} did not complete the request in time".into(),
        "look for locks and slow statements in pg_stat_activity, and check the network to the server".into(),
    )
}

/// The server is not a standby, but the URL requires one.
pub(super) fn no_standby() -> DatabaseFailure {
    DatabaseFailure::of_connection(
        "{at} is not a standby",
        "add the address of a standby to AUTHKIT_SYNC_READ_DATABASE_URL",
    )
}

/// Every connection of a pool is in use.
pub(super) fn exhausted(connections: u32) -> DatabaseFailure {
    DatabaseFailure::new(
        format!("no connection to {{at}} became free in time: all {connections} connections of the pool are in use")
            .into(),
        "look for locks and slow statements in pg_stat_activity, or raise AUTHKIT_SYNC_DB_POOL".into(),
    )
}

/// None of several hosts can be used, each for its own reason.
pub(super) fn of_hosts<'a>(reasons: impl Iterator<Item = &'a DatabaseFailure>) -> DatabaseFailure {
    let reasons: Vec<String> = reasons.map(DatabaseFailure::what).collect();
    DatabaseFailure::of_connection(
        format!("none of the hosts can be used: {}", reasons.join("; ")),
        "start the primary or promote a standby, or correct DATABASE_URL; the service finds the new primary by itself",
    )
}

/// Describes an error that PostgreSQL did not report.
pub(super) fn of_driver(error: &sqlx::Error) -> DatabaseFailure {
    match error {
        sqlx::Error::Io(error) => of_io(error),
        sqlx::Error::Tls(error) => of_tls(&error.to_string()),
        sqlx::Error::PoolTimedOut => DatabaseFailure::of_connection(
            "no connection to {at} became free or could be opened in time",
            "check that the server accepts connections, or raise AUTHKIT_SYNC_DB_POOL",
        ),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => "the pool is closed".into(),
        sqlx::Error::Protocol(_) => DatabaseFailure::of_connection(
            "{at} sent an unexpected message",
            "check that DATABASE_URL is the address of PostgreSQL itself or of a connection pooler",
        ),
        sqlx::Error::Configuration(_) => DatabaseFailure::of_connection(
            "the configuration of the connection to {at} is wrong",
            "check the parameters of DATABASE_URL, for example the files of sslrootcert, sslcert and sslkey",
        ),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => "a value could not be decoded".into(),
        _ => "unexpected error of the database driver".into(),
    }
}

fn of_io(error: &std::io::Error) -> DatabaseFailure {
    let lost = |what: &'static str, fix| DatabaseFailure::of_connection(what, fix);
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            lost("{at} refused the connection", "start PostgreSQL, or correct the host and port of DATABASE_URL")
        }
        ErrorKind::NotFound => lost(
            "the Unix socket or a file of {at} does not exist",
            "start PostgreSQL, or correct the host and the file names of DATABASE_URL",
        ),
        ErrorKind::PermissionDenied => lost(
            "this process may not open the Unix socket or a file of {at}",
            "grant the user of this process access to the socket, or connect by TCP",
        ),
        ErrorKind::TimedOut => lost("{at} does not answer", UNREACHABLE),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
            lost("no network path leads to {at}", UNREACHABLE)
        }
        // rustls reports a rejected certificate as invalid data.
        ErrorKind::InvalidData => of_tls(&error.to_string()),
        // The standard library has no kind for this failure.
        _ if error.to_string().starts_with("failed to lookup address") => lost(
            "the host name of {at} cannot be resolved",
            "correct the host of DATABASE_URL, or repair the DNS of this machine",
        ),
        _ => lost(
            "the connection to {at} was lost",
            "check that PostgreSQL is running, and read its log; the service reconnects by itself",
        ),
    }
}

const UNREACHABLE: &str =
    "check the host of DATABASE_URL, the network and the firewall between this machine and PostgreSQL";

/// `reason` is a text of the TLS library, which contains names of hosts and of certificates' issuers only.
fn of_tls(reason: &str) -> DatabaseFailure {
    let fix = if reason.contains("does not support TLS") {
        "enable ssl in postgresql.conf, or set sslmode=prefer in DATABASE_URL if the network is trusted"
    } else {
        "check the server's certificate, and sslmode and sslrootcert of DATABASE_URL"
    };
    let reason: String = reason.chars().filter(|char| !char.is_control()).take(TLS_REASON_LIMIT).collect();
    DatabaseFailure::of_connection(format!("TLS with {{at}} failed: {}", reason.replace(['{', '}'], "")), fix)
}

/// Describes an error that PostgreSQL, or a pooler, reported.
pub(super) fn of_server(error: &dyn DatabaseError, sqlstate: &str) -> DatabaseFailure {
    let message = error.message();
    let failure = match sqlstate {
        "42501" => without_privilege(message),
        "28000" => refused_role(message),
        "08P01" => of_pooler(message),
        _ => of_sqlstate(sqlstate),
    };
    let constraint = error.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
    let missing = match sqlstate {
        "42P01" | "42883" | "42703" | "3F000" => {
            message.split('"').nth(1).and_then(name).map(|name| format!(", {name}")).unwrap_or_default()
        }
        _ => String::new(),
    };
    DatabaseFailure { what: format!("{} (SQLSTATE {sqlstate}{missing}{constraint})", failure.what).into(), ..failure }
}

/// Describes what PostgreSQL reports with this SQLSTATE.
pub(super) fn of_sqlstate(sqlstate: &str) -> DatabaseFailure {
    let plain = |what: &'static str, fix: &'static str| DatabaseFailure::new(what.into(), fix.into());
    let connection = |what: &'static str, fix| DatabaseFailure::of_connection(what, fix);
    match sqlstate {
        "28P01" => connection("{at} rejected the password of role {role}", "correct the password in DATABASE_URL"),
        "3D000" => connection(
            "{at} has no database {database}",
            "create it with `create database {database}`, or correct DATABASE_URL",
        ),
        "53300" => connection(
            "{at} has no free connection slot: it has reached max_connections, or a connection limit of the role or database",
            "close other connections, raise max_connections, or lower AUTHKIT_SYNC_DB_POOL or the number of replicas",
        ),
        "53100" => plain("the disk of {at} is full", "free or add disk space on the database server"),
        "53200" => plain("{at} is out of memory", "give the database server more memory, or lower work_mem"),
        "25006" => connection(
            "{at} is read-only: it is a standby, or default_transaction_read_only is on",
            "set DATABASE_URL to the primary, or set default_transaction_read_only to off",
        ),
        "57P01" | "57P02" | "57P03" => connection(
            "{at} is starting, shutting down or recovering",
            "wait, or read the log of the server; the service reconnects by itself",
        ),
        "57014" => plain(
            "a statement at {at} ran into its timeout",
            "look for slow statements and locks in pg_stat_activity, or raise AUTHKIT_SYNC_DB_TIMEOUT",
        ),
        "55P03" => plain(
            "the wait for a lock at {at} ran into its timeout",
            "find the session that holds the lock with pg_blocking_pids() and pg_stat_activity, and end it",
        ),
        "42P01" | "42883" | "42703" | "3F000" => plain(
            "an object of the schema workos does not exist at {at}",
            "run `authkit-sync migrate`, and check that DATABASE_URL names the intended database",
        ),
        "0A000" => plain("{at} does not support a statement", "use PostgreSQL 15 or newer"),
        _ if sqlstate.starts_with("08") => connection("the connection to {at} failed", "read the log of the server"),
        _ => plain(
            "{at} reported an error",
            "look the SQLSTATE up in the PostgreSQL manual, and read the log of the server",
        ),
    }
}

/// `message` is for example "permission denied for table users" or "must be owner of table users".
fn without_privilege(message: &str) -> DatabaseFailure {
    let object = ["permission denied for ", "must be owner of "].iter().find_map(|start| message.strip_prefix(start));
    let object = object.and_then(|object| {
        let (kind, given) = object.rsplit_once(' ')?;
        let is_word = kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
        is_word.then_some((kind, name(given)?))
    });
    let role = message.strip_prefix("permission denied to set role \"").and_then(|rest| name(rest.strip_suffix('"')?));
    let (what, fix) = match (&object, &role) {
        (Some((kind, name)), _) => (
            format!("role {{role}} lacks a privilege on {kind} {name} at {{at}}"),
            if message.starts_with("must be owner") {
                format!("run the command as the owner of {kind} {name}")
            } else {
                grant(kind, name)
            },
        ),
        (_, Some(name)) => (
            format!("role {{role}} may not set role {name} at {{at}}"),
            format!("run `grant {} to {{role}}`", quoted(name)),
        ),
        _ => (
            "role {role} lacks a privilege at {at}".to_owned(),
            "run `authkit-sync doctor`, which lists every missing grant".to_owned(),
        ),
    };
    DatabaseFailure { is_lack_of_privilege: true, ..DatabaseFailure::new(what.into(), fix.into()) }
}

/// Returns the statement that gives the privilege, for an object that our statements use.
fn grant(kind: &str, name: &str) -> String {
    let privilege = match kind {
        "schema" => format!("usage on schema {}", quoted(name)),
        "database" => {
            let statement = format!("grant create on database {} to {{role}}", quoted(name));
            return format!("run `{statement}`, or `create schema workos authorization {{role}}`, as a superuser");
        }
        "sequence" => format!("usage, select on sequence workos.{}", quoted(name)),
        "function" => format!("execute on all functions in schema workos /* {name} */"),
        "view" => format!("select on workos.{}", quoted(name)),
        "table" => format!("select, insert, update, delete on workos.{}", quoted(name)),
        _ => return format!("grant the role access to {kind} {name}"),
    };
    format!(
        "run `grant {privilege} to {{role}}` as its owner or as a superuser; `authkit-sync doctor` lists every missing grant"
    )
}

/// `message` is for example `role "app" does not exist` or `no pg_hba.conf entry for host "10.0.0.1", user "app", …`.
fn refused_role(message: &str) -> DatabaseFailure {
    let (what, fix) = if message.ends_with("does not exist") {
        ("{at} has no role {role}", "create it with `create role {role} login password '…'`, or correct DATABASE_URL")
    } else if message.contains("pg_hba.conf") {
        (
            "pg_hba.conf of {at} does not let role {role} connect from this machine to database {database}",
            "add an entry to pg_hba.conf and reload it; if the entry requires TLS, set sslmode=require in DATABASE_URL",
        )
    } else if message.contains("is not permitted to log in") {
        ("role {role} of {at} may not log in", "run `alter role {role} login`, or use another role in DATABASE_URL")
    } else {
        ("{at} does not let role {role} connect", "check the role of DATABASE_URL and pg_hba.conf of the server")
    };
    DatabaseFailure::of_connection(what, fix)
}

/// Poolers report their own failures as protocol violations, and also what the server answered to their login.
fn of_pooler(message: &str) -> DatabaseFailure {
    let message = message.to_ascii_lowercase();
    if message.starts_with("database ") && message.ends_with(" does not exist") {
        return of_sqlstate("3D000");
    }
    let (what, fix) = if message.contains("no such database") {
        ("the pooler at {at} has no database {database}", "add the database to the configuration of the pooler")
    } else if message.contains("no such user") || message.contains("sasl") {
        (
            "the pooler at {at} does not know role {role}",
            "add the role to the users of the pooler (auth_file or auth_query)",
        )
    } else if message.contains("max_client_conn") || message.contains("no more connections") {
        (
            "the pooler at {at} has no free connection",
            "raise max_client_conn of the pooler, or lower AUTHKIT_SYNC_DB_POOL",
        )
    } else if message.contains("query_wait_timeout") {
        (
            "the pooler at {at} had no server connection in time",
            "raise the pool size of the pooler, or end long transactions",
        )
    } else if message.contains("server login") || message.contains("cannot connect") || message.contains("pgbouncer") {
        (
            "the pooler at {at} cannot connect to PostgreSQL",
            "check that PostgreSQL runs, and read the log of the pooler",
        )
    } else if message.contains("unsupported startup parameter") {
        (
            "the pooler at {at} does not support a parameter of the connection",
            "add the parameter to ignore_startup_parameters of the pooler, or remove it from DATABASE_URL",
        )
    } else {
        ("{at} or a pooler rejected a message of the protocol", "read the log of the server and of the pooler")
    };
    DatabaseFailure::of_connection(what, fix)
}

/// Returns a name from a message, if it has the form of one.
fn name(text: &str) -> Option<&str> {
    let text = text.trim_matches('"');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'$');
    (!text.is_empty() && text.len() <= NAME_LIMIT && text.bytes().all(is_plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgConnectOptions;

    use super::*;

    fn told(failure: DatabaseFailure) -> String {
        let options = PgConnectOptions::new().host("db.internal").port(5433).username("app-1").password("hunter2");
        failure.at(&Arc::new(Place::of(&options.database("crm")))).to_string()
    }

    #[test]
    fn a_missing_privilege_names_the_object_and_the_grant() {
        for (message, object, fix) in [
            (
                "permission denied for table events",
                "table events",
                "grant select, insert, update, delete on workos.events to \"app-1\"",
            ),
            ("permission denied for view users", "view users", "grant select on workos.users to \"app-1\""),
            ("permission denied for schema workos", "schema workos", "grant usage on schema workos to \"app-1\""),
            ("permission denied for database crm", "database crm", "create schema workos authorization \"app-1\""),
            (
                "permission denied for sequence changes_position",
                "sequence changes_position",
                "on sequence workos.changes_position to",
            ),
            ("must be owner of table events", "table events", "as the owner of table events"),
            ("permission denied to set role \"Billing\"", "set role Billing", "grant \"Billing\" to \"app-1\""),
        ] {
            let text = told(without_privilege(message));
            assert!(text.contains(object) && text.contains(fix) && text.contains("db.internal:5433/crm"), "{text}");
        }
        let planted = told(without_privilege("permission denied for table Ada Quill <ada@example.test>"));
        assert!(!planted.contains("ada@") && planted.contains("lacks a privilege at"), "{planted}");
    }

    #[test]
    fn a_text_never_contains_the_password_and_stays_readable_without_a_place() {
        let failures =
            || [of_sqlstate("28P01"), of_sqlstate("3D000"), refused_role("x"), of_pooler("no such user"), late()];
        for (with, without) in failures().into_iter().zip(failures()) {
            let (with, without) = (told(with), without.to_string());
            assert!(
                !with.contains("hunter2") && with.contains("db.internal:5433/crm") && !with.contains('{'),
                "{with}"
            );
            assert!(!without.contains('{'), "{without}");
        }
    }
}
