//! Logs, for the binary alone: the library only emits them.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// What is logged by default: our own lines, and what libraries warn about.
const DEFAULT_FILTER: &str = "warn,authkit_sync=info";

/// Sends logs to stderr, as text or as one JSON object a line. A filter that cannot be read falls back to the default, and
/// says so.
pub(crate) fn start(filter: Option<String>, json: bool) {
    let parsed = filter.map(EnvFilter::try_new);
    let malformed = matches!(parsed, Some(Err(_)));
    let filter = parsed.and_then(Result::ok).unwrap_or_else(|| EnvFilter::new(DEFAULT_FILTER));
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    } else {
        registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init()
    };
    if started.is_ok() && malformed {
        tracing::warn!("RUST_LOG is malformed; logging {DEFAULT_FILTER}");
    }
}
