//! Checks of the settings: complete, consistent, and every secret distinct.

use super::subject::Subject;
use crate::config::{ACTION_SECRETS, ACTION_URL_SECRET, API_KEYS};
use crate::sync::health::{Check, count};
use crate::workos::signature::Secret;

pub(super) fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let settings = match subject.source.check("serve") {
        Ok(()) => Check::ok("settings", "every setting of `serve` is complete and well-formed"),
        Err(problems) => Check::failure(
            "settings",
            problems.to_string().replace('\n', ". "),
            "correct these settings, then restart `authkit-sync serve`",
        ),
    };
    vec![settings, secrets(subject)]
}

fn secrets(subject: &Subject<'_>) -> Check {
    let source = subject.source;
    let mut named: Vec<(&str, Secret)> = Vec::new();
    named.extend(subject.webhook_secrets.iter().map(|secret| ("WORKOS_WEBHOOK_SECRET", secret.clone())));
    let actions = source.find(&ACTION_SECRETS).unwrap_or_default();
    named.extend(actions.iter().map(|secret| ("WORKOS_ACTION_SECRET", secret.clone())));
    named.extend(source.find(&ACTION_URL_SECRET).map(|secret| ("AUTHKIT_SYNC_ACTION_URL_SECRET", secret)));
    let keys = source.find(&API_KEYS).unwrap_or_default();
    named.extend(keys.iter().map(|(_, key)| ("AUTHKIT_SYNC_API_KEYS", Secret::new(key.as_str()))));
    for (at, (name, secret)) in named.iter().enumerate() {
        if let Some((other, _)) = named.iter().skip(at + 1).find(|(_, other)| other == secret) {
            let text = format!("{name} and {other} contain the same secret");
            return Check::failure("secrets", text, "use a separate secret for each purpose");
        }
    }
    let rotating: Vec<&str> =
        [("WORKOS_WEBHOOK_SECRET", subject.webhook_secrets.len()), ("WORKOS_ACTION_SECRET", actions.len())]
            .into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|(name, _)| name)
            .collect();
    if rotating.is_empty() {
        return Check::ok("secrets", format!("each secret has one purpose ({} set)", count(named.len(), "secret")));
    }
    Check::warning(
        "secrets",
        format!("{} still lists an old secret", rotating.join(" and ")),
        "when WorkOS signs with the new secret, remove the old one",
    )
}
