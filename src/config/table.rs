//! The table of settings. A test compares the README and `deploy/env.example` with it.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// What it is when unset; `None` where there is none or it depends.
    pub default: Option<&'static str>,
    /// Secrets are never flags and never shown.
    pub secret: bool,
    /// One line, for `--help` and the README.
    pub help: &'static str,
}

impl Setting {
    /// The flag's name: the variable's, without our prefix, in kebab case. `None` for a secret, and for what is not ours.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        let name = self.name.strip_prefix("AUTHKIT_SYNC_").unwrap_or(self.name);
        let ours = !self.secret && !matches!(self.name, "PORT" | "RUST_LOG");
        ours.then(|| name.to_ascii_lowercase().replace('_', "-"))
    }
}

const fn required(name: &'static str, help: &'static str) -> Setting {
    Setting { name, default: None, secret: false, help }
}

const fn optional(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, default: Some(default), secret: false, help }
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting { name, default: None, secret: true, help }
}

/// Every setting, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    secret("DATABASE_URL", "PostgreSQL 15 or newer, for example postgres://user:password@host:5432/database"),
    required(
        "WORKOS_CLIENT_ID",
        "the environment's client id (dashboard, API Keys page); one database serves one environment",
    ),
    secret(
        "WORKOS_API_KEY",
        "the environment's API key (dashboard, API Keys page), for catch-up, backfill and reconcile",
    ),
    secret(
        "WORKOS_WEBHOOK_SECRET",
        "the webhook endpoint's signing secret; several, separated by commas, while rotating; without it, polling only",
    ),
    secret(
        "WORKOS_ACTION_SECRET",
        "the actions endpoint's signing secret; several, separated by commas, while rotating; turns /workos/action on",
    ),
    optional("WORKOS_API_HOSTNAME", "api.workos.com", "a custom auth domain, or an emulator's host"),
    required("WORKOS_API_PORT", "its port, when it is not the scheme's own"),
    optional("WORKOS_API_HTTPS", "true", "false for an emulator without TLS"),
    required(
        "WORKOS_ISSUER",
        "accepted token issuers, separated by commas, instead of those derived from host and client id",
    ),
    required("WORKOS_JWKS_URL", "where the signing keys are, when not at <api>/sso/jwks/<client id>"),
    optional(
        "AUTHKIT_SYNC_LISTEN",
        "0.0.0.0:8080",
        "where WorkOS and backends connect; PORT=n is honoured as 0.0.0.0:n",
    ),
    optional("AUTHKIT_SYNC_OPS_LISTEN", "127.0.0.1:9464", "where operators connect: probes with detail, and /metrics"),
    secret(
        "AUTHKIT_SYNC_API_KEYS",
        "keys of backends that read /user_management/users, as label:key, separated by commas; at least 32 characters each",
    ),
    required("AUTHKIT_SYNC_CORS_ORIGINS", "origins whose pages may ask from a browser, separated by commas; never *"),
    optional("AUTHKIT_SYNC_WEBHOOK_PATH", "/workos/webhook", "where WorkOS posts"),
    optional(
        "AUTHKIT_SYNC_SIGNATURE_TOLERANCE",
        "180s",
        "how far a signature's time may lie from this machine's, either way",
    ),
    optional("AUTHKIT_SYNC_BODY_LIMIT", "1MiB", "the largest webhook body"),
    required(
        "AUTHKIT_SYNC_ACTION_RULES",
        "who may sign in or up, separated by semicolons; for example: deny registration @gmail.com \"Use your work address.\"",
    ),
    required("AUTHKIT_SYNC_ACTION_URL", "where your application decides who may sign in or up, before the rules do"),
    secret("AUTHKIT_SYNC_ACTION_URL_SECRET", "signs the requests to it; at least 32 characters, and none of WorkOS's"),
    required("AUTHKIT_SYNC_ACTION_URL_FAILURE", "what its failure comes to: allow or deny; there is no default"),
    optional(
        "AUTHKIT_SYNC_ACTION_URL_TIMEOUT",
        "1s",
        "how long it may take; at most 1500ms, for WorkOS waits little longer",
    ),
    optional(
        "AUTHKIT_SYNC_ACTION_URL_PRIVATE",
        "false",
        "true: it may be at a loopback or private address, and plain http",
    ),
    required("AUTHKIT_SYNC_AUDIENCES", "token audiences accepted beside the client id, separated by commas"),
    optional(
        "AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
        "false",
        "accept tokens of the shared issuer that name no client at all",
    ),
    optional(
        "AUTHKIT_SYNC_CATCH_UP",
        "on",
        "read the Events API behind the webhooks, so that nothing is lost; off: webhooks alone",
    ),
    optional("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "5s", "how long catch-up rests when it has read to the end"),
    required("AUTHKIT_SYNC_EVENT_TYPES", "event types catch-up reads beside user.*, separated by commas"),
    optional(
        "AUTHKIT_SYNC_SESSION_SIGN_INS",
        "off",
        "on: session.created moves last_sign_in_at, which can then run ahead of WorkOS's own; impersonation does not count",
    ),
    optional("AUTHKIT_SYNC_BACKFILL", "auto", "auto: fill the table with every existing user, once; off: never"),
    optional("AUTHKIT_SYNC_READ_THROUGH", "on", "ask WorkOS about a user who is not here before a caller hears 404"),
    optional(
        "AUTHKIT_SYNC_RECONCILE_INTERVAL",
        "24h",
        "from one full comparison with WorkOS to the next; off: only when events may be lost",
    ),
    optional(
        "AUTHKIT_SYNC_RETENTION",
        "90d",
        "how long the inbox keeps events; under 35d only payloads go, the rest stays 35 days",
    ),
    optional(
        "AUTHKIT_SYNC_DB_POOL",
        "10",
        "connections per pool; webhooks, lookups, background work and handlers have one each",
    ),
    optional(
        "AUTHKIT_SYNC_DB_TIMEOUT",
        "5s",
        "how long one transaction or lookup may take, waiting for a connection included",
    ),
    optional("AUTHKIT_SYNC_LOG_FORMAT", "text", "text or json; logs go to stderr"),
    required("RUST_LOG", "which log lines, for example info or authkit_sync=debug"),
    required("PORT", "what platforms set; used when AUTHKIT_SYNC_LISTEN is not"),
];
