//! Checks of webhooks: the endpoint at WorkOS, whether its URL reaches this service, and whether events arrive.

use super::subject::Subject;
use super::workos::{RequestFailure, within};
use crate::config::{WEBHOOK_PATH, WEBHOOK_SECRETS};
use crate::domain::timestamp::Timestamp;
use crate::sync::health::{Check, ago, count};
use crate::workos::api::ApiError;
use crate::workos::signature::Secret;
use crate::workos::webhook_endpoints::{ProbeAnswer, WebhookEndpoint, probe};

const NAMES: [&str; 3] = ["webhook_endpoint", "webhook_probe", "webhooks_received"];

/// Maximum number of endpoints that are probed to find the one of this service.
const MAX_PROBES: usize = 5;

/// An endpoint at WorkOS, and its answer to a probe.
struct Probed {
    endpoint: WebhookEndpoint,
    answer: Result<ProbeAnswer, String>,
}

impl Probed {
    /// Returns whether this service answered, and the signature was valid.
    fn is_ours(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| answer.status == 400 && answer.code == "not_an_event")
    }
}

pub(super) async fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let Some(secret) = subject.webhook_secrets.first() else {
        let text = "WORKOS_WEBHOOK_SECRET is not set, so the service only polls";
        return NAMES.map(|name| Check::ok(name, text)).to_vec();
    };
    let Some(api) = &subject.api else {
        let why = "WORKOS_API_KEY is not set";
        return vec![
            Check::not_checked(NAMES[0], why),
            Check::not_checked(NAMES[1], why),
            received(subject, None).await,
        ];
    };
    let endpoints = match within(api.webhook_endpoints()).await {
        Ok(endpoints) => endpoints,
        Err(RequestFailure::Api(ApiError::KeyRefused { .. })) => {
            let why = "WorkOS rejected the API key";
            let [endpoint, probe, _] = NAMES.map(|name| Check::not_checked(name, why));
            return vec![endpoint, probe, received(subject, None).await];
        }
        Err(failure) => {
            let probe = Check::not_checked(NAMES[1], "the endpoints at WorkOS cannot be read");
            return vec![failure.check(NAMES[0]), probe, received(subject, None).await];
        }
    };
    let Some(probed) = find(subject, endpoints, secret).await else {
        let text = "no webhook endpoint is registered at WorkOS";
        let fix = "run `authkit-sync webhook register --url https://YOUR-HOST/workos/webhook`";
        let probe = Check::not_checked(NAMES[1], "there is no endpoint");
        return vec![Check::failure(NAMES[0], text, fix), probe, received(subject, None).await];
    };
    let received = received(subject, probed.endpoint.created_at()).await;
    vec![registered(subject, &probed.endpoint), reachable(subject, &probed), received]
}

/// Returns the endpoint of this service: the one that answers a probe as this service does, or else the most likely one.
async fn find(subject: &Subject<'_>, mut endpoints: Vec<WebhookEndpoint>, secret: &Secret) -> Option<Probed> {
    let path = subject.source.find(&WEBHOOK_PATH).unwrap_or_default();
    let has_our_path = |endpoint: &WebhookEndpoint| endpoint.endpoint_url.ends_with(&path);
    endpoints.sort_by_key(|endpoint| (!has_our_path(endpoint), !endpoint.is_enabled()));
    let mut likely = None;
    for endpoint in endpoints.into_iter().take(MAX_PROBES) {
        let answer = probe(&endpoint.endpoint_url, secret, subject.clock.now()).await;
        let probed = Probed { endpoint, answer };
        if probed.is_ours() {
            return Some(probed);
        }
        likely.get_or_insert(probed);
    }
    likely
}

fn registered(subject: &Subject<'_>, endpoint: &WebhookEndpoint) -> Check {
    let (name, url) = (NAMES[0], &endpoint.endpoint_url);
    let register = format!("run `authkit-sync webhook register --url {url}`");
    if !endpoint.is_enabled() {
        let text = format!("the webhook endpoint {url} is disabled at WorkOS, so no webhook is sent");
        return Check::failure(name, text, format!("{register}, which enables it"));
    }
    let is_other = |secret: &str| !subject.webhook_secrets.contains(&Secret::new(secret));
    if endpoint.secret().is_some_and(is_other) {
        let text = format!(
            "WORKOS_WEBHOOK_SECRET does not contain the signing secret of the endpoint {url}, so its webhooks are refused"
        );
        return Check::failure(
            name,
            text,
            format!(
                "copy the signing secret from the WorkOS dashboard, page Webhooks: {}",
                subject.source.how_to_replace(&WEBHOOK_SECRETS)
            ),
        );
    }
    let missing = endpoint.missing(&subject.needed_types);
    if !missing.is_empty() {
        let text = format!("the webhook endpoint {url} does not receive {}", missing.join(", "));
        return Check::failure(name, text, format!("{register}, which adds the types"));
    }
    Check::ok(
        name,
        format!("the webhook endpoint {url} is registered, enabled, and receives every type that is needed"),
    )
}

fn reachable(subject: &Subject<'_>, probed: &Probed) -> Check {
    let (name, url) = (NAMES[1], &probed.endpoint.endpoint_url);
    let answer = match &probed.answer {
        Ok(answer) => answer,
        Err(why) => {
            let (cause, fix) =
                why.split_once("; ").unwrap_or((why, "check the URL, its DNS name, its certificate and the proxy"));
            return Check::failure(name, format!("{url} does not answer from this machine: {cause}"), fix);
        }
    };
    if probed.is_ours() {
        return Check::ok(name, format!("{url} reaches this service: a signed probe was verified"));
    }
    let text = format!("{url} answered a signed probe with {} {}", answer.status, answer.code);
    let same_secret = format!(
        "give `serve` and `doctor` the same signing secret: {}",
        subject.source.how_to_replace(&WEBHOOK_SECRETS)
    );
    let fix = match (answer.status, answer.code.as_str()) {
        (401, "signature_invalid") if answer.message.contains("clock") => {
            "synchronize the clocks of this machine and of the service with NTP"
        }
        (401, "signature_invalid") => &same_secret,
        (404, "route_not_found") => {
            "let the proxy forward the path of AUTHKIT_SYNC_WEBHOOK_PATH unchanged, and set WORKOS_WEBHOOK_SECRET for `serve`"
        }
        (503, _) => "the service answers but is not ready; see the checks of the database",
        (300..=399, _) => "register the final URL, because WorkOS follows no redirect",
        (502..=504, _) => "start `authkit-sync serve`, and check the address to which the proxy forwards",
        _ => "another server answers at this URL; check DNS, the proxy and the path",
    };
    Check::failure(name, text.trim_end(), fix)
}

/// Compares the events that webhooks and polling have delivered.
async fn received(subject: &Subject<'_>, registered_at: Option<Timestamp>) -> Check {
    let name = NAMES[2];
    let Some(store) = &subject.store else { return Check::not_checked(name, "there is no database") };
    let types: Vec<String> = subject.needed_types.iter().map(|name| (*name).to_owned()).collect();
    // The times have milliseconds. An event of the same millisecond may have happened before the registration.
    let since = registered_at.map_or(Timestamp::from_unix_micros(0), |at| at.plus_micros(1));
    let (facts, now) = match (store.webhook_facts(&types, since).await, store.now().await) {
        (Ok(facts), Ok(now)) => (facts, now),
        _ => return Check::not_checked(name, "the inbox cannot be read"),
    };
    let age = |at: Timestamp| ago(now.unix_seconds() - at.unix_seconds());
    let last = facts.last_at.map_or("no webhook has been received yet".to_owned(), |at| {
        format!("the last webhook was received and verified {} ago", age(at))
    });
    let Some((first, newest)) = facts.missed_between else { return Check::ok(name, last) };
    let text = format!("{last}, but only polling delivered {} since {first}", count(facts.missed, "event"));
    let fix = "correct what the checks webhook_endpoint and webhook_probe report, and read the deliveries in the WorkOS dashboard, page Webhooks";
    if facts.last_at.is_some_and(|at| at > newest) {
        Check::warning(name, format!("{text}; webhooks arrive again since then"), fix)
    } else {
        Check::failure(name, text, fix)
    }
}
