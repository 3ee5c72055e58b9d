//! Variables that look like settings and are not.

use super::SETTINGS;

const PREFIX: &str = "AUTHKIT_SYNC_";

/// A variable that no command reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownVariable {
    /// The variable.
    pub(crate) name: String,
    /// The setting with the most similar name.
    pub(crate) closest: String,
}

/// Returns the variables that have our prefix and a value, but are not settings. Those that Kubernetes sets for services are
/// omitted.
pub(crate) fn unknown_variables(variables: impl IntoIterator<Item = (String, String)>) -> Vec<UnknownVariable> {
    let descriptions = || SETTINGS.iter().map(|setting| setting.description());
    let files = || descriptions().filter_map(|description| description.file_variable());
    let names = || descriptions().map(|description| description.name.to_owned()).chain(files());
    let unknown = variables.into_iter().filter(|(name, value)| {
        name.starts_with(PREFIX)
            && !value.trim().is_empty()
            && !names().any(|known| known == *name)
            && !is_of_kubernetes(name, value)
    });
    let mut unknown: Vec<_> = unknown
        .map(|(name, _)| {
            let closest = names().min_by_key(|known| strsim::damerau_levenshtein(known, &name)).unwrap_or_default();
            UnknownVariable { name, closest }
        })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown.dedup();
    unknown
}

/// Returns true for a variable that Kubernetes sets in every container for a service named `authkit-sync`, or for one whose name
/// begins so. (Kubernetes documentation, "Service", section "Environment variables".)
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let ends_or_goes_on = |rest: &str| rest.is_empty() || rest.starts_with('_');
    let is_service = name.ends_with("_SERVICE_HOST")
        || name.split_once("_SERVICE_PORT").is_some_and(|(_, rest)| ends_or_goes_on(rest));
    // `…_PORT_8080_TCP`, `…_PORT_8080_TCP_ADDR` and so on.
    let is_port = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let protocol = rest.trim_start_matches(|char: char| char.is_ascii_digit());
        protocol.len() < rest.len() && ["_TCP", "_UDP", "_SCTP"].iter().any(|it| protocol.starts_with(it))
    });
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    is_service || is_port || name == "AUTHKIT_SYNC_PORT" || (name.ends_with("_PORT") && is_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_variable_is_named_with_the_closest_setting_and_those_of_kubernetes_are_ignored() {
        let found = |name: &str, value: &str| unknown_variables([(name.to_owned(), value.to_owned())]);
        for (name, closest) in [
            ("AUTHKIT_SYNC_CATCHUP", "AUTHKIT_SYNC_CATCH_UP"),
            ("AUTHKIT_SYNC_LISTEN_ADDRESS", "AUTHKIT_SYNC_LISTEN"),
            ("AUTHKIT_SYNC_DATABASE_TIMEOUT", "AUTHKIT_SYNC_DB_TIMEOUT"),
            ("AUTHKIT_SYNC_CORS_ORIGIN", "AUTHKIT_SYNC_CORS_ORIGINS"),
            ("AUTHKIT_SYNC_OPS_PORT", "AUTHKIT_SYNC_OPS_LISTEN"),
            ("AUTHKIT_SYNC_API_KEY_FILE", "AUTHKIT_SYNC_API_KEYS_FILE"),
            ("AUTHKIT_SYNC_RETENTION_FILE", "AUTHKIT_SYNC_RETENTION"),
        ] {
            assert_eq!(found(name, "1"), [UnknownVariable { name: name.to_owned(), closest: closest.to_owned() }]);
        }
        for (name, value) in [
            ("AUTHKIT_SYNC_SERVICE_HOST", "10.0.0.1"),
            ("AUTHKIT_SYNC_SERVICE_PORT", "8080"),
            ("AUTHKIT_SYNC_SERVICE_PORT_HTTP", "8080"),
            ("AUTHKIT_SYNC_PORT", "tcp://10.0.0.1:8080"),
            ("AUTHKIT_SYNC_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("AUTHKIT_SYNC_PORT_8080_TCP_PROTO", "tcp"),
            ("AUTHKIT_SYNC_PORT_8080_TCP_PORT", "8080"),
            ("AUTHKIT_SYNC_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("AUTHKIT_SYNC_OPS_SERVICE_HOST", "10.0.0.1"),
            ("AUTHKIT_SYNC_OPS_PORT", "tcp://10.0.0.1:9464"),
            ("AUTHKIT_SYNC_CATCHUP", " "),
            ("AUTHKIT_SYNC_CATCH_UP", "on"),
            ("AUTHKIT_SYNC_API_KEYS_FILE", "/run/secrets/api_keys"),
            ("AUTHKIT_OTHER", "1"),
        ] {
            assert_eq!(found(name, value), [], "{name}");
        }
    }
}
