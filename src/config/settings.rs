//! The definition of every setting.
//!
//! To add one, add an entry to [`SETTINGS`] and run `UPDATE=1 cargo test --test promises settings`, which rewrites the table in
//! the guide `operating` and `deploy/env.example`. A setting that other code reads by name has its own static.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::ready;

use super::commands::{ACTIONS, ALL, API, DATABASE, SYNCED, WORKOS};
use super::setting::{AnySetting, Setting};
use super::value;
use crate::action_endpoint::{OnFailure, SECRET_LENGTH};
use crate::actions::DEADLINE;
use crate::authkit::{self, Builder, KEY_LENGTH};
use crate::domain::action_rules::Rules;
use crate::domain::kinds::Kinds;
use crate::store::{self, hosts::Hosts, pool::MIN_CONNECTIONS};
use crate::telemetry::DEFAULT_FILTER;
use crate::workos::api::ApiKey;
use crate::workos::signature::{self, Secret};

pub(crate) static DATABASE_URL: Setting<Hosts> = Setting::new(
    "DATABASE_URL",
    value::database_url,
    "Address of PostgreSQL 15 or newer, for example postgres://user:password@host:5432/database. Several hosts: host1:5432,host2:5432, with ?target_session_attrs=read-write",
)
.secret()
.example("postgres://authkit_sync:change-me@postgres:5432/authkit_sync")
.used_by(DATABASE)
.replaced_by(|authkit, login| authkit.set_database_login(login).boxed())
.required_by(&["serve", "migrate", "backfill", "reconcile", "rebind", "events", "user", "handlers"]);

pub(crate) static READ_DATABASE_URL: Setting<Hosts> = Setting::new(
    "AUTHKIT_SYNC_READ_DATABASE_URL",
    value::read_database_url,
    "Address of a streaming standby that answers /user_management, /organizations and /authorization. Several hosts: host1:5432,host2:5432, with ?target_session_attrs=standby",
)
.secret()
.replaced_by(|authkit, login| authkit.set_standby_login(login).boxed());

pub(crate) static READ_STALENESS: Setting<Duration> = Setting::new(
    "AUTHKIT_SYNC_READ_STALENESS",
    value::staleness,
    "Maximum age of the standby's data. If the data is older, the primary answers",
)
.limit(|| format!("At least {}", value::duration_text(authkit::MIN_STALENESS)))
.default_from(|| value::duration_text(authkit::STALENESS));

pub(crate) static CLIENT_ID: Setting<String> = Setting::new(
    "WORKOS_CLIENT_ID",
    value::client_id,
    "Client ID of the WorkOS environment (dashboard, page API Keys). One database serves one environment",
)
.example("client_replace_me")
.used_by(WORKOS)
.required_by(WORKOS);

pub(crate) static WORKOS_API_KEY: Setting<ApiKey> = Setting::new(
    "WORKOS_API_KEY",
    value::api_key,
    "API key of the WorkOS environment (dashboard, page API Keys), for polling, backfill, reconcile and read-through",
)
.secret()
.example("sk_replace_me")
.used_by(&["serve", "backfill", "reconcile", "webhook register"])
.required_by(&["backfill", "reconcile", "webhook register"])
.passed_to(Builder::api_key)
.replaced_by(|authkit, key| authkit.set_api_key(key).boxed());

pub(crate) static WEBHOOK_SECRETS: Setting<Vec<Secret>> = Setting::new(
    "WORKOS_WEBHOOK_SECRET",
    value::signing_secrets,
    "Signing secret of the webhook endpoint (dashboard, page Webhooks). During a rotation: NEW,OLD. If it is not set, the service only polls",
)
.secret()
.example("replace-me")
.used_by(&["serve", "webhook sign"])
.required_by(&["webhook sign"])
.passed_to(Builder::webhook_secrets)
.replaced_by(|authkit, secrets| ready(authkit.set_webhook_secrets(secrets)).boxed());

pub(crate) static ACTION_SECRETS: Setting<Vec<Secret>> = Setting::new(
    "WORKOS_ACTION_SECRET",
    value::signing_secrets,
    "Signing secret of the actions endpoint (dashboard, page Actions). During a rotation: NEW,OLD. Enables /workos/action",
)
.secret()
.passed_to(Builder::action_secrets)
.replaced_by(|authkit, secrets| ready(authkit.set_action_secrets(secrets)).boxed());

pub(crate) static API_HOSTNAME: Setting<String> = Setting::new(
    "WORKOS_API_HOSTNAME",
    value::hostname,
    "Host name of the WorkOS API: WorkOS itself, your custom auth domain, or an emulator",
)
.default(authkit::WORKOS_API_HOSTNAME)
.used_by(API);

pub(crate) static API_PORT: Setting<u16> =
    Setting::new("WORKOS_API_PORT", value::port, "Port of the WorkOS API, if it is not 443 (80 without TLS)")
        .used_by(API);

pub(crate) static API_HTTPS: Setting<bool> =
    Setting::new("WORKOS_API_HTTPS", value::boolean, "Use TLS for the WorkOS API. false: for an emulator without TLS")
        .default("true")
        .used_by(API);

pub(crate) static ISSUERS: Setting<Vec<String>> = Setting::new(
    "WORKOS_ISSUER",
    value::urls,
    "Accepted token issuers, separated by commas. Replaces the issuers derived from host name and client ID",
)
.used_by(&["serve", "token"])
.passed_to(Builder::issuers);

pub(crate) static JWKS_URL: Setting<String> = Setting::new(
    "WORKOS_JWKS_URL",
    value::url,
    "URL of the signing keys, if it is not /sso/jwks/CLIENT_ID at the WorkOS API",
)
.used_by(&["serve", "token"])
.passed_to(|builder, url| builder.jwks_url(url));

pub(crate) static LISTEN: Setting<SocketAddr> = Setting::new(
    "AUTHKIT_SYNC_LISTEN",
    value::address,
    "Address and port of the public listener, for WorkOS and your backends",
)
.default("0.0.0.0:8080")
.used_by(&["serve", "healthcheck"]);

pub(crate) static OPS_LISTEN: Setting<SocketAddr> = Setting::new(
    "AUTHKIT_SYNC_OPS_LISTEN",
    value::address,
    "Address and port of the operator's listener: the status page at /, /metrics, and /readyz with details. Do not expose it to the internet",
)
.default("127.0.0.1:9464");

pub(crate) static API_KEYS: Setting<Vec<(String, String)>> = Setting::new(
    "AUTHKIT_SYNC_API_KEYS",
    value::service_keys,
    "Service keys of backends that read /user_management/users and /changes: label:key, separated by commas",
)
.secret()
.limit(|| format!("Each key has at least {KEY_LENGTH} characters"))
.passed_to(|builder, keys| keys.iter().fold(builder, |builder, (label, key)| builder.service_key(label, key)))
.replaced_by(|authkit, keys| {
    let keys = keys.iter().map(|(label, key)| (label.as_str(), key.as_str()));
    ready(authkit.set_service_keys(keys)).boxed()
});

pub(crate) static WEBHOOK_PATH: Setting<String> =
    Setting::new("AUTHKIT_SYNC_WEBHOOK_PATH", value::path, "Path of the webhook endpoint")
        .default(authkit::WEBHOOK_PATH)
        .passed_to(|builder, path| builder.webhook_path(path));

pub(crate) static ACTION_RULES: Setting<Rules> = Setting::new(
    "AUTHKIT_SYNC_ACTION_RULES",
    value::action_rules,
    "Rules for sign-ins and sign-ups, separated by semicolons, for example: deny registration @gmail.com \"Use your work address.\"",
)
.used_by(ACTIONS)
.passed_to(Builder::action_rules);

pub(crate) static ACTION_URL: Setting<String> = Setting::new(
    "AUTHKIT_SYNC_ACTION_URL",
    value::text,
    "URL of your decision endpoint for sign-ins and sign-ups. It decides before the rules",
)
.used_by(ACTIONS);

pub(crate) static ACTION_URL_SECRET: Setting<Secret> = Setting::new(
    "AUTHKIT_SYNC_ACTION_URL_SECRET",
    value::secret,
    "Secret that signs requests to AUTHKIT_SYNC_ACTION_URL. It must not be a secret of WorkOS",
)
.used_by(ACTIONS)
.secret()
.limit(|| format!("At least {SECRET_LENGTH} characters"))
.replaced_by(|authkit, secret| ready(authkit.set_action_endpoint_secret(secret)).boxed());

pub(crate) static ACTION_URL_FAILURE: Setting<OnFailure> = Setting::new(
    "AUTHKIT_SYNC_ACTION_URL_FAILURE",
    value::allow_deny,
    "Verdict when the decision endpoint fails or times out: allow or deny. Required with AUTHKIT_SYNC_ACTION_URL",
)
.used_by(ACTIONS);

pub(crate) static ACTION_URL_TIMEOUT: Setting<Duration> = Setting::new(
    "AUTHKIT_SYNC_ACTION_URL_TIMEOUT",
    value::action_timeout,
    "Timeout of a request to the decision endpoint",
)
.used_by(ACTIONS)
.limit(|| format!("At most {}, because WorkOS times out soon after that", value::duration_text(DEADLINE)))
.default("1s");

pub(crate) static ACTION_URL_PRIVATE: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_ACTION_URL_PRIVATE",
    value::boolean,
    "true: the decision endpoint may have a loopback or private address, and may use http",
)
.used_by(ACTIONS)
.default("false");

pub(crate) static AUDIENCES: Setting<Vec<String>> = Setting::new(
    "AUTHKIT_SYNC_AUDIENCES",
    value::list,
    "Token audiences accepted in addition to the client ID, separated by commas",
)
.used_by(&["serve", "token"])
.passed_to(Builder::audiences);

pub(crate) static ALLOW_SHARED_ISSUER: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_ALLOW_SHARED_ISSUER",
    value::boolean,
    "true: accept a token that names no client, although all WorkOS customers share its issuer",
)
.default_from(|| authkit::ALLOW_SHARED_ISSUER.to_string())
.used_by(&["serve", "token"])
.passed_to(Builder::allow_shared_issuer);

pub(crate) static CATCH_UP: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_CATCH_UP",
    value::on_off,
    "on: poll the Events API, which recovers lost webhooks. off: use webhooks only",
)
.default_from(|| value::on_off_text(authkit::CATCH_UP))
.passed_to(Builder::catch_up);

pub(crate) static SESSION_SIGN_INS: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_SESSION_SIGN_INS",
    value::on_off,
    "on: session.created updates last_sign_in_at, except for impersonated sessions. The value can be newer than at WorkOS",
)
.default_from(|| value::on_off_text(authkit::SESSION_SIGN_INS))
.used_by(SYNCED)
.passed_to(Builder::session_sign_ins);

pub(crate) static KINDS: Setting<Kinds> = Setting::new(
    "AUTHKIT_SYNC_KINDS",
    value::kinds,
    "What is synced in addition to users, separated by commas: organizations, memberships, roles, sessions. users: nothing else",
)
.default_from(|| value::kinds_text(Kinds::ALL))
.used_by(SYNCED)
.passed_to(Builder::kinds);

pub(crate) static BACKFILL: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_BACKFILL",
    value::auto_off,
    "auto: read all existing users once. off: do not read them; synced_through is then empty until a reconcile completes",
)
.default_from(|| if authkit::BACKFILL { "auto" } else { "off" }.to_owned())
.passed_to(Builder::backfill);

pub(crate) static READ_THROUGH: Setting<bool> = Setting::new(
    "AUTHKIT_SYNC_READ_THROUGH",
    value::on_off,
    "on: read an unknown user from WorkOS before the service answers 404",
)
.default_from(|| value::on_off_text(authkit::READ_THROUGH))
.passed_to(Builder::read_through);

pub(crate) static RECONCILE_INTERVAL: Setting<Option<Duration>> = Setting::new(
    "AUTHKIT_SYNC_RECONCILE_INTERVAL",
    value::interval,
    "Interval between two full comparisons with WorkOS. off: compare only when events may be lost",
)
.default_from(|| value::duration_text(authkit::RECONCILE_INTERVAL))
.passed_to(Builder::reconcile_interval);

pub(crate) static CATCH_UP_INTERVAL: Setting<Duration> = Setting::new(
    "AUTHKIT_SYNC_CATCH_UP_INTERVAL",
    value::duration,
    "Pause between two polls when there are no more events to read",
)
.default_from(|| value::duration_text(authkit::CATCH_UP_INTERVAL))
.passed_to(Builder::catch_up_interval);

pub(crate) static EVENT_TYPES: Setting<Vec<String>> = Setting::new(
    "AUTHKIT_SYNC_EVENT_TYPES",
    value::event_types,
    "Event types to poll in addition to those of what is synced, separated by commas, for example for handlers",
)
.passed_to(Builder::event_types);

pub(crate) static RETENTION: Setting<Duration> = Setting::new(
    "AUTHKIT_SYNC_RETENTION",
    value::long_duration,
    "How long the inbox keeps events. A value below 35d applies only to payloads: the rest of an event is kept for 35 days",
)
.default_from(|| value::duration_text(authkit::RETENTION))
.passed_to(Builder::retention);

pub(crate) static DB_POOL: Setting<u32> = Setting::new(
    "AUTHKIT_SYNC_DB_POOL",
    value::connections,
    "Maximum number of database connections of one serve process, divided among webhooks, lookups, background jobs and handlers",
)
.limit(|| format!("At least {MIN_CONNECTIONS}"))
.default("20");

pub(crate) static DB_TIMEOUT: Setting<Duration> = Setting::new(
    "AUTHKIT_SYNC_DB_TIMEOUT",
    value::duration,
    "Timeout of one transaction or lookup, including the wait for a connection",
)
.default_from(|| value::duration_text(store::TIMEOUT))
.used_by(DATABASE)
.passed_to(Builder::database_timeout);

pub(crate) static IS_LOG_JSON: Setting<bool> =
    Setting::new("AUTHKIT_SYNC_LOG_FORMAT", value::log_format, "Format of the log on stderr: text or json")
        .default("text")
        .used_by(ALL);

pub(crate) static LOG_FILTER: Setting<String> =
    Setting::new("RUST_LOG", value::text, "Log filter, for example info or authkit_sync=debug")
        .default(DEFAULT_FILTER)
        .used_by(ALL);

pub(crate) static PORT: Setting<u16> = Setting::new(
    "PORT",
    value::port,
    "Port that a hosting platform sets. The service then listens on 0.0.0.0:PORT, unless AUTHKIT_SYNC_LISTEN is set",
)
.used_by(&["serve", "healthcheck"]);

/// Every setting, in the order of `--help` and the guide.
pub static SETTINGS: &[&dyn AnySetting] = &[
    &DATABASE_URL,
    &READ_DATABASE_URL,
    &READ_STALENESS,
    &CLIENT_ID,
    &WORKOS_API_KEY,
    &WEBHOOK_SECRETS,
    &ACTION_SECRETS,
    &API_HOSTNAME,
    &API_PORT,
    &API_HTTPS,
    &ISSUERS,
    &JWKS_URL,
    &LISTEN,
    &OPS_LISTEN,
    &API_KEYS,
    &Setting::new(
        "AUTHKIT_SYNC_CORS_ORIGINS",
        value::origins,
        "Browser origins that may send requests, separated by commas. A wildcard is refused",
    )
    .passed_to(|builder, origins| builder.cors_origins(&origins)),
    &WEBHOOK_PATH,
    &Setting::new(
        "AUTHKIT_SYNC_SIGNATURE_TOLERANCE",
        value::duration,
        "Maximum difference between the time of a webhook signature and the clock of this machine",
    )
    .default_from(|| value::duration_text(signature::WEBHOOK_TOLERANCE))
    .passed_to(Builder::signature_tolerance),
    &Setting::new("AUTHKIT_SYNC_BODY_LIMIT", value::size, "Maximum size of a webhook body")
        .default_from(|| value::size_text(authkit::BODY_LIMIT))
        .passed_to(Builder::body_limit),
    &ACTION_RULES,
    &ACTION_URL,
    &ACTION_URL_SECRET,
    &ACTION_URL_FAILURE,
    &ACTION_URL_TIMEOUT,
    &ACTION_URL_PRIVATE,
    &AUDIENCES,
    &ALLOW_SHARED_ISSUER,
    &CATCH_UP,
    &CATCH_UP_INTERVAL,
    &EVENT_TYPES,
    &SESSION_SIGN_INS,
    &KINDS,
    &BACKFILL,
    &READ_THROUGH,
    &RECONCILE_INTERVAL,
    &RETENTION,
    &Setting::new(
        "AUTHKIT_SYNC_DRAIN_DELAY",
        value::delay,
        "Time at shutdown in which /readyz fails before the listeners close. off: none. There is none if nothing polls /readyz",
    )
    .default_from(|| value::duration_text(authkit::DRAIN_DELAY))
    .passed_to(Builder::drain_delay),
    &DB_POOL,
    &DB_TIMEOUT,
    &IS_LOG_JSON,
    &LOG_FILTER,
    &PORT,
];
