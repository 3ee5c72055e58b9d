//! Checks of what one process knows without the database: WorkOS, the signing keys, its jobs, and the database itself.

use std::collections::BTreeMap;

use super::check::{Check, ago, count};
use crate::domain::timestamp::Timestamp;
use crate::sync::job::JobStatus;
use crate::tokens::KeyStatus;
use crate::workos::contact::ContactStatus;

/// A failure that is younger than this is a warning, because most failures end by themselves. Seconds.
const LASTING: i64 = 60;

/// What a process knows without the database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessFacts<'a> {
    pub(crate) now: Timestamp,
    /// Why the database cannot be used.
    pub(crate) database_failure: Option<&'a str>,
    /// Host and port of WorkOS, and whether it answers. `None` without an API key.
    pub(crate) workos: Option<(&'a str, &'a ContactStatus)>,
    pub(crate) keys: &'a KeyStatus,
    pub(crate) jobs: &'a BTreeMap<&'static str, JobStatus>,
    /// Why the new secret of a setting cannot be used.
    pub(crate) rejected_secrets: &'a BTreeMap<&'static str, String>,
}

impl ProcessFacts<'_> {
    fn age(&self, since: Timestamp) -> i64 {
        self.now.unix_seconds().saturating_sub(since.unix_seconds())
    }
}

pub(super) fn checks(facts: &ProcessFacts<'_>) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(facts.database_failure.map(|failure| Check::of_message("database", failure)));
    checks.extend(facts.workos.map(|(host, contact)| workos(facts, host, contact)));
    checks.push(signing_keys(facts));
    checks.extend(facts.jobs.iter().filter_map(|(name, status)| job(facts, name, status)));
    checks.extend(facts.rejected_secrets.iter().map(|(setting, problem)| rejected_secret(setting, problem)));
    checks
}

fn rejected_secret(setting: &str, problem: &str) -> Check {
    let (why, fix) = problem.split_once("; ").unwrap_or((problem, "write a secret that can be used"));
    let text = format!("the new value of {setting} cannot be used, so the previous one stays in use: {why}");
    Check::failure(&format!("secret:{setting}"), text, fix)
}

fn workos(facts: &ProcessFacts<'_>, host: &str, contact: &ContactStatus) -> Check {
    let name = "workos";
    if contact.is_key_refused {
        let fix = "set WORKOS_API_KEY to a key of this environment (WorkOS dashboard, page API Keys)";
        return Check::failure(name, format!("WorkOS ({host}) refuses the API key"), fix);
    }
    let Some(since) = contact.failing_since else {
        return Check::ok(name, format!("WorkOS ({host}) answers"));
    };
    let why = contact.failure.as_deref().unwrap_or("no answer");
    let (why, fix) = why
        .split_once("; ")
        .unwrap_or((why, "see status.workos.com and the network of this machine; the service retries by itself"));
    let text = format!("every request to WorkOS ({host}) has failed for {}: {why}", ago(facts.age(since)));
    if facts.age(since) < LASTING { Check::warning(name, text, fix) } else { Check::failure(name, text, fix) }
}

fn signing_keys(facts: &ProcessFacts<'_>) -> Check {
    let (name, keys) = ("workos_signing_keys", facts.keys);
    let fix = "check the network and WORKOS_CLIENT_ID; the service retries by itself";
    match &keys.error {
        Some(error) if keys.keys == 0 => {
            Check::failure(name, format!("there is no signing key, so no token can be checked: {error}"), fix)
        }
        Some(error) => Check::warning(name, format!("the signing keys cannot be refreshed: {error}"), fix),
        None => Check::ok(name, format!("this process has {} of WorkOS", count(keys.keys, "signing key"))),
    }
}

/// Returns the check of a job, or `None` for a failure that another check reports.
fn job(facts: &ProcessFacts<'_>, name: &str, status: &JobStatus) -> Option<Check> {
    let error = status.error.as_deref()?;
    let is_workos_down = facts.workos.is_some_and(|(_, contact)| contact.failing_since.is_some());
    if (status.is_of_database && facts.database_failure.is_some()) || (status.is_of_workos && is_workos_down) {
        return None;
    }
    let check = Check::of_message(&format!("job:{name}"), error);
    let is_young = status.is_temporary && facts.age(status.since) < LASTING;
    Some(if is_young { Check::warning(&check.name, check.text, check.fix.unwrap_or_default()) } else { check })
}
