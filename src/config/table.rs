//! The table of settings. A test compares it with `src/docs/operating.md` and `deploy/env.example`.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// The value if the variable is unset. `None`: no value, or it depends on other settings.
    pub default: Option<&'static str>,
    /// A secret has no flag and is never shown.
    pub secret: bool,
    /// One line for `--help` and the guide `operating`.
    pub help: &'static str,
}

impl Setting {
    /// Returns the name of the flag: the variable without our prefix, in kebab case. `None` for a secret, for `PORT` and for
    /// `RUST_LOG`.
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

/// Every setting, in the order of `--help` and the guide.
pub const SETTINGS: &[Setting] = &[
    secret(
        "DATABASE_URL",
        "Address of PostgreSQL 15 or newer, for example postgres://user:password@host:5432/database",
    ),
    required(
        "WORKOS_CLIENT_ID",
        "Client ID of the WorkOS environment (dashboard, page API Keys). One database serves one environment",
    ),
    secret(
        "WORKOS_API_KEY",
        "API key of the WorkOS environment (dashboard, page API Keys), for polling, backfill, reconcile and read-through",
    ),
    secret(
        "WORKOS_WEBHOOK_SECRET",
        "Signing secret of the webhook endpoint (dashboard, page Webhooks). During a rotation: NEW,OLD. Without it, the service only polls",
    ),
    secret(
        "WORKOS_ACTION_SECRET",
        "Signing secret of the actions endpoint (dashboard, page Actions). During a rotation: NEW,OLD. Enables /workos/action",
    ),
    optional(
        "WORKOS_API_HOSTNAME",
        "api.workos.com",
        "Host name of the WorkOS API: WorkOS itself, your custom auth domain, or an emulator",
    ),
    required("WORKOS_API_PORT", "Port of the WorkOS API, if it is not 443 (80 without TLS)"),
    optional("WORKOS_API_HTTPS", "true", "Use TLS for the WorkOS API. false: for an emulator without TLS"),
    required(
        "WORKOS_ISSUER",
        "Accepted token issuers, separated by commas. Replaces the issuers derived from host name and client ID",
    ),
    required("WORKOS_JWKS_URL", "URL of the signing keys, if it is not /sso/jwks/CLIENT_ID at the WorkOS API"),
    optional(
        "AUTHKIT_SYNC_LISTEN",
        "0.0.0.0:8080",
        "Address and port of the public listener, for WorkOS and your backends",
    ),
    optional(
        "AUTHKIT_SYNC_OPS_LISTEN",
        "127.0.0.1:9464",
        "Address and port of the operator's listener: /metrics, and /readyz with details. Do not publish it",
    ),
    secret(
        "AUTHKIT_SYNC_API_KEYS",
        "Service keys of backends that read /user_management/users and /changes: label:key, separated by commas, each key at least 32 characters",
    ),
    required(
        "AUTHKIT_SYNC_CORS_ORIGINS",
        "Browser origins that may send requests, separated by commas. A wildcard is refused",
    ),
    optional("AUTHKIT_SYNC_WEBHOOK_PATH", "/workos/webhook", "Path of the webhook endpoint"),
    optional(
        "AUTHKIT_SYNC_SIGNATURE_TOLERANCE",
        "180s",
        "Largest difference between the time of a webhook signature and the clock of this machine",
    ),
    optional("AUTHKIT_SYNC_BODY_LIMIT", "1MiB", "Largest accepted webhook body"),
    required(
        "AUTHKIT_SYNC_ACTION_RULES",
        "Rules for sign-ins and sign-ups, separated by semicolons, for example: deny registration @gmail.com \"Use your work address.\"",
    ),
    required(
        "AUTHKIT_SYNC_ACTION_URL",
        "URL of your decision endpoint for sign-ins and sign-ups. It is asked before the rules",
    ),
    secret(
        "AUTHKIT_SYNC_ACTION_URL_SECRET",
        "Secret that signs requests to AUTHKIT_SYNC_ACTION_URL: at least 32 characters, and not a secret of WorkOS",
    ),
    required(
        "AUTHKIT_SYNC_ACTION_URL_FAILURE",
        "Verdict when the decision endpoint fails or times out: allow or deny. Required with AUTHKIT_SYNC_ACTION_URL",
    ),
    optional(
        "AUTHKIT_SYNC_ACTION_URL_TIMEOUT",
        "1s",
        "Timeout of a request to the decision endpoint. At most 1500ms, because WorkOS times out soon after that",
    ),
    optional(
        "AUTHKIT_SYNC_ACTION_URL_PRIVATE",
        "false",
        "true: the decision endpoint may have a loopback or private address, and may use http",
    ),
    required("AUTHKIT_SYNC_AUDIENCES", "Token audiences accepted in addition to the client ID, separated by commas"),
    optional(
        "AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
        "false",
        "true: accept tokens of the issuer shared by all WorkOS customers even if they name no client",
    ),
    optional(
        "AUTHKIT_SYNC_CATCH_UP",
        "on",
        "on: poll the Events API, which recovers lost webhooks. off: use webhooks only",
    ),
    optional("AUTHKIT_SYNC_CATCH_UP_INTERVAL", "5s", "Pause between two polls when there are no more events to read"),
    required(
        "AUTHKIT_SYNC_EVENT_TYPES",
        "Event types to poll in addition to user.created, user.updated and user.deleted, separated by commas",
    ),
    optional(
        "AUTHKIT_SYNC_SESSION_SIGN_INS",
        "off",
        "on: session.created updates last_sign_in_at, except for impersonated sessions. The value can be newer than at WorkOS",
    ),
    optional(
        "AUTHKIT_SYNC_BACKFILL",
        "auto",
        "auto: read all existing users once. off: never. Then synced_through is empty until a reconcile has completed",
    ),
    optional("AUTHKIT_SYNC_READ_THROUGH", "on", "on: read an unknown user from WorkOS before the service answers 404"),
    optional(
        "AUTHKIT_SYNC_RECONCILE_INTERVAL",
        "24h",
        "Interval between two full comparisons with WorkOS. off: compare only when events may be lost",
    ),
    optional(
        "AUTHKIT_SYNC_RETENTION",
        "90d",
        "How long the inbox keeps events. Below 35d it applies to the payloads only, and the rest of an event is kept for 35 days",
    ),
    optional(
        "AUTHKIT_SYNC_DB_POOL",
        "10",
        "Connections per pool. serve has four pools: webhooks, lookups, background jobs, handlers",
    ),
    optional(
        "AUTHKIT_SYNC_DB_TIMEOUT",
        "5s",
        "Timeout of one transaction or lookup, including the wait for a connection",
    ),
    optional("AUTHKIT_SYNC_LOG_FORMAT", "text", "Format of the log on stderr: text or json"),
    required("RUST_LOG", "Log filter, for example info or authkit_sync=debug"),
    required(
        "PORT",
        "Port that a hosting platform sets. The service then listens on 0.0.0.0:PORT, unless AUTHKIT_SYNC_LISTEN is set",
    ),
];
