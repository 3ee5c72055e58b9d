//! Checks of WorkOS: the API key, the environment, the signing keys, the events, and the clocks.

use std::time::Duration;

use super::subject::Subject;
use crate::config::WORKOS_API_KEY;
use crate::sync::health::{Check, count};
use crate::sync::job::JobError;
use crate::sync::key_check;
use crate::tokens::KeyCache;
use crate::workos::api::{Api, ApiError, EventsFrom};

/// Timeout of one request of a check.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Normal difference of two clocks, in seconds, because the `Date` header has whole seconds.
const NORMAL_OFFSET: i64 = 3;

/// Difference of two clocks, in seconds, above which valid access tokens are refused.
const LARGEST_OFFSET: i64 = 10;

const NO_KEY: &str = "WORKOS_API_KEY is not set";

/// Why a request of a check failed.
pub(super) enum RequestFailure {
    Api(ApiError),
    Late,
}

impl RequestFailure {
    /// Returns the check that could not be made.
    pub(super) fn check(&self, name: &str) -> Check {
        match self {
            Self::Api(error) if error.is_rate_limit() => Check::warning(
                name,
                error.to_string(),
                "run the command again in a minute; if this repeats, find what else sends requests with a key of this environment",
            ),
            Self::Api(error) => Check::of_message(name, &error.to_string()),
            Self::Late => Check::failure(
                name,
                "WorkOS did not answer within 10 seconds",
                "check the network, the proxy and WORKOS_API_HOSTNAME",
            ),
        }
    }
}

/// Awaits a request to WorkOS for at most ten seconds.
pub(super) async fn within<T>(request: impl Future<Output = Result<T, ApiError>>) -> Result<T, RequestFailure> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(outcome) => outcome.map_err(RequestFailure::Api),
        Err(_late) => Err(RequestFailure::Late),
    }
}

pub(super) async fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let mut checks = vec![signing_keys(subject).await];
    let names = ["workos", "workos_api_key", "workos_environment", "workos_events"];
    let Some(api) = &subject.api else {
        checks.extend(names.map(|name| Check::not_checked(name, NO_KEY)));
        return checks;
    };
    let answers = Check::ok(names[0], format!("WorkOS at {} answers", api.host()));
    let (failed, unknown) = match within(api.users(None)).await {
        Ok(_) => (vec![answers, Check::ok(names[1], "WorkOS accepts the API key")], None),
        Err(RequestFailure::Api(error @ ApiError::KeyRefused { .. })) => {
            let refused = Check::of_message(names[1], &error.to_string());
            (vec![answers, refused], Some("WorkOS rejected the API key"))
        }
        Err(failure) => (vec![failure.check(names[0])], Some("WorkOS did not accept the request for users")),
    };
    let checked = failed.len();
    checks.extend(failed);
    if let Some(why) = unknown {
        checks.extend(names.iter().skip(checked).map(|name| Check::not_checked(name, why)));
        return checks;
    }
    checks.push(environment(subject).await);
    checks.push(events(api, &subject.polled_types).await);
    checks
}

async fn signing_keys(subject: &Subject<'_>) -> Check {
    let (name, fix) = ("workos_signing_keys", "copy WORKOS_CLIENT_ID from the page API Keys of the WorkOS dashboard");
    let Some(keys) = &subject.keys else { return Check::not_checked(name, "WORKOS_CLIENT_ID is not set") };
    match keys.are_published().await {
        Ok(true) => {
            Check::ok(name, format!("WorkOS publishes {} for the client ID", count(keys.status().keys, "signing key")))
        }
        Ok(false) => Check::failure(name, "WorkOS publishes no signing keys for the client ID", fix),
        Err(error) => Check::of_message(name, &error.to_string()),
    }
}

/// Checks that the key belongs to this environment: with a key of another environment, WorkOS knows none of our users.
async fn environment(subject: &Subject<'_>) -> Check {
    let name = "workos_environment";
    let Some(context) = subject.job_context() else { return Check::not_checked(name, "there is no database") };
    match tokio::time::timeout(REQUEST_TIMEOUT, key_check::check(&context)).await {
        Ok(Ok(())) => Check::ok(name, "WorkOS knows our users, so the API key belongs to this environment"),
        Ok(Err(error @ JobError::WrongKey { .. })) => Check::failure(
            name,
            error.to_string(),
            format!(
                "create an API key in the environment of WORKOS_CLIENT_ID (WorkOS dashboard, page API Keys): {}",
                subject.source.how_to_replace(&WORKOS_API_KEY)
            ),
        ),
        Ok(Err(JobError::Store(_))) => Check::not_checked(name, "the database is not usable"),
        Ok(Err(JobError::Api(error))) => RequestFailure::Api(error).check(name),
        Ok(Err(error)) => Check::of_message(name, &error.to_string()),
        Err(_late) => Check::not_checked(name, "WorkOS or the database did not answer within 10 seconds"),
    }
}

async fn events(api: &Api, types: &[String]) -> Check {
    let name = "workos_events";
    match within(api.events(types, EventsFrom::Oldest, 1)).await {
        Ok(page) if page.items.is_empty() => Check::ok(name, "the Events API answers and lists no event yet"),
        Ok(_) => Check::ok(name, "the Events API lists events"),
        Err(RequestFailure::Api(ApiError::Refused { .. })) => {
            let mut rejected = Vec::new();
            for name in types {
                let asked = within(api.events(std::slice::from_ref(name), EventsFrom::Oldest, 1)).await;
                if matches!(asked, Err(RequestFailure::Api(ApiError::Refused { .. }))) {
                    rejected.push(name.as_str());
                }
            }
            let text = format!("the Events API rejects the event types {}", rejected.join(", "));
            Check::failure(
                name,
                text,
                "correct AUTHKIT_SYNC_EVENT_TYPES; the service polls without these types meanwhile",
            )
        }
        Err(failure) => failure.check(name),
    }
}

/// Compares the clocks of this machine, of WorkOS and of the database.
pub(super) fn clocks(keys: Option<&KeyCache>, database: Option<i64>) -> Check {
    let name = "clocks";
    let workos = keys.and_then(|keys| keys.status().clock_ahead_seconds);
    let offsets: Vec<(&str, i64)> =
        [("WorkOS", workos), ("the database", database)].into_iter().filter_map(|(of, it)| Some((of, it?))).collect();
    if offsets.is_empty() {
        return Check::not_checked(name, "neither WorkOS nor the database answers");
    }
    let texts: Vec<String> = offsets.iter().map(|(of, seconds)| format!("{seconds} s ahead of {of}")).collect();
    let text = format!("the clock of this machine is {}", texts.join(" and "));
    let fix = "synchronize the clocks with NTP; with wrong clocks, valid tokens and webhooks are refused";
    match offsets.iter().map(|(_, seconds)| seconds.abs()).max().unwrap_or_default() {
        0..=NORMAL_OFFSET => Check::ok(name, text),
        offset if offset <= LARGEST_OFFSET => Check::warning(name, text, fix),
        _ => Check::failure(name, text, fix),
    }
}
