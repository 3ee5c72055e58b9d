//! The settings of `serve`: the checks that involve several settings, and the builder.

use super::settings::{
    ACTION_RULES, ACTION_SECRETS, ACTION_URL, ACTION_URL_FAILURE, ACTION_URL_PRIVATE, ACTION_URL_SECRET,
    ACTION_URL_TIMEOUT, API_KEYS, BACKFILL, CATCH_UP, DB_POOL, READ_DATABASE_URL, READ_STALENESS, READ_THROUGH,
    RECONCILE_INTERVAL, SETTINGS, WEBHOOK_PATH, WEBHOOK_SECRETS, WORKOS_API_KEY,
};
use super::{AnySetting, Problems, Source, database, environment};
use crate::action_endpoint::{ActionEndpoint, EndpointError};
use crate::authkit::{ACTION_PATH, AuthKit, Builder};
use crate::store::pool::{Pool, Pools};
use crate::workos::signature::Secret;

/// Returns the problems that the checks of single settings cannot find. It skips a malformed setting, which its own check reports.
pub(super) fn problems(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let api_key = source.text(WORKOS_API_KEY.description()).and_then(Result::ok);
    if source.find(&API_KEYS).is_some_and(|keys| keys.iter().any(|(_, key)| api_key.as_deref() == Some(key))) {
        problems.push(
            "AUTHKIT_SYNC_API_KEYS contains WORKOS_API_KEY, which also allows writing to WorkOS. Create separate keys"
                .to_owned(),
        );
    }
    let is_on = |setting| source.find(setting) == Some(true);
    let reconciles = source.find(&RECONCILE_INTERVAL).flatten().is_some();
    if !source.is_set(&WORKOS_API_KEY) && ([&CATCH_UP, &BACKFILL, &READ_THROUGH].into_iter().any(is_on) || reconciles) {
        problems.push(WORKOS_API_KEY.description().missing());
    }
    if !source.is_set(&WEBHOOK_SECRETS) && source.find(&CATCH_UP) == Some(false) {
        problems.push(
            "WORKOS_WEBHOOK_SECRET is not set and AUTHKIT_SYNC_CATCH_UP is off, so no event can arrive. Set one of them"
                .to_owned(),
        );
    }
    problems.extend(action_problems(source));
    problems
}

fn action_problems(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    let webhook_secrets = source.find(&WEBHOOK_SECRETS).unwrap_or_default();
    let secrets = source.find(&ACTION_SECRETS).unwrap_or_default();
    if secrets.iter().any(|secret| webhook_secrets.contains(secret)) {
        problems.push(
            "WORKOS_ACTION_SECRET and WORKOS_WEBHOOK_SECRET contain the same secret. Copy the secret of each \
             endpoint from the WorkOS dashboard"
                .to_owned(),
        );
    }
    let deciders = [
        (ACTION_URL.description().name, source.is_set(&ACTION_URL)),
        (ACTION_RULES.description().name, source.is_set(&ACTION_RULES)),
    ];
    for (name, _) in deciders.into_iter().filter(|(_, is_set)| *is_set && !source.is_set(&ACTION_SECRETS)) {
        problems
            .push(format!("{name} has no effect, because WORKOS_ACTION_SECRET is not set. Set it, or remove {name}"));
    }
    if source.is_set(&ACTION_SECRETS) && source.find(&WEBHOOK_PATH).as_deref() == Some(ACTION_PATH) {
        problems.push(format!("AUTHKIT_SYNC_WEBHOOK_PATH is {ACTION_PATH}, the path of actions. Choose another path"));
    }
    if source.is_set(&ACTION_URL) {
        problems.extend(endpoint_problems(source, &[secrets, webhook_secrets].concat()));
    }
    problems
}

fn endpoint_problems(source: &Source, workos_secrets: &[Secret]) -> Vec<String> {
    let mut problems = Vec::new();
    if !source.is_set(&ACTION_URL_SECRET) {
        problems.push(ACTION_URL_SECRET.description().missing());
    }
    if !source.is_set(&ACTION_URL_FAILURE) {
        problems.push(ACTION_URL_FAILURE.description().missing());
    }
    let Some(endpoint) = action_endpoint(source) else { return problems };
    if let Err(error) = endpoint.check() {
        let allow = match error {
            EndpointError::Plain | EndpointError::Private => "; AUTHKIT_SYNC_ACTION_URL_PRIVATE=true allows it",
            _ => "",
        };
        problems.push(format!("AUTHKIT_SYNC_ACTION_URL cannot be used: {error}{allow}"));
    }
    if workos_secrets.contains(&endpoint.secret) {
        problems.push(
            "AUTHKIT_SYNC_ACTION_URL_SECRET is also a secret of WorkOS, so your endpoint could send requests as \
             WorkOS. Create a separate secret"
                .to_owned(),
        );
    }
    problems
}

/// Reads the decision endpoint. `None` if there is none, or if one of its settings is missing or malformed.
fn action_endpoint(source: &Source) -> Option<ActionEndpoint> {
    Some(ActionEndpoint {
        url: source.find(&ACTION_URL)?,
        secret: source.find(&ACTION_URL_SECRET)?,
        on_failure: source.find(&ACTION_URL_FAILURE)?,
        timeout: source.find(&ACTION_URL_TIMEOUT)?,
        private_addresses: source.find(&ACTION_URL_PRIVATE)?,
    })
}

/// Reads the decision endpoint for `action try`. `None` if there is none.
pub(crate) fn checked_action_endpoint(source: &Source) -> Result<Option<ActionEndpoint>, Problems> {
    if !source.is_set(&ACTION_URL) {
        return Ok(None);
    }
    let problems = endpoint_problems(source, &[]);
    if problems.is_empty() { Ok(action_endpoint(source)) } else { Err(Problems(problems)) }
}

/// Returns true if actions are enabled and nothing can deny one.
pub(crate) fn allows_every_action(source: &Source) -> bool {
    let has_rules = source.find(&ACTION_RULES).is_some_and(|rules| !rules.is_empty());
    source.is_set(&ACTION_SECRETS) && !source.is_set(&ACTION_URL) && !has_rules
}

/// Creates the builder of `serve` and passes every setting to it.
pub(crate) fn builder(source: &Source) -> Result<Builder, Problems> {
    let (database, environment) = (database(source)?, environment(source)?);
    let pools = Pools::connect(database.hosts, source.get(&DB_POOL)?, database.timeout);
    let size = pools.lookups.connections().options().get_max_connections();
    let mut builder = AuthKit::builder(pools.webhooks, environment.client_id)
        .lookup_pool(pools.lookups)
        .background_pool(pools.background)
        .handler_pool(pools.handlers)
        .api_base(environment.api_base);
    if let Some(hosts) = source.find(&READ_DATABASE_URL) {
        // Half of the timeout, because a read that fails on the standby is repeated on the primary within the same request.
        let pool = Pool::connect(hosts, size, database.timeout / 2);
        builder = builder.standby(pool, source.get(&READ_STALENESS)?);
    }
    if let Some(endpoint) = action_endpoint(source) {
        builder = builder.action_endpoint(endpoint);
    }
    Ok(SETTINGS.iter().fold(builder, |builder, setting| setting.pass(source, builder)))
}
