//! The place of a database: its address, its name, and the role that connects to it.

use sqlx::postgres::PgConnectOptions;

/// The address of a database, and the role that connects to it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    address: String,
    database: String,
    role: String,
}

impl Place {
    /// Returns the place that these options name. It does not contain the password.
    pub(super) fn of(options: &PgConnectOptions) -> Self {
        let role = options.get_username();
        let database = options.get_database().unwrap_or(role);
        Self { address: address(options), database: quoted(database), role: quoted(role) }
    }

    /// Returns host, port and name of the database.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the name of the database, quoted for SQL.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// Returns the role, quoted for SQL.
    pub(super) fn role(&self) -> &str {
        &self.role
    }
}

/// Returns host, port and name of a database, for messages.
pub(super) fn address(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    let name = options.get_database().unwrap_or_else(|| options.get_username());
    // An IPv6 address.
    let host = if host.contains(':') && !host.starts_with(['/', '[']) { format!("[{host}]") } else { host };
    format!("{host}:{}/{name}", options.get_port())
}

/// Returns a name, quoted for SQL.
pub(super) fn quoted(name: &str) -> String {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let is_plain = is_plain && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
