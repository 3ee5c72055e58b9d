//! Logs, for the binary alone: the library only emits them.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// What is logged by default: our own lines, and what libraries warn about.
const DEFAULT_FILTER: &str = "warn,authkit_sync=info";

/// The filter of the log lines, which can be replaced while the process runs.
pub(crate) struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: String,
}

/// Why a filter was not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is the same one.
    Unchanged,
    /// The new one is not a filter.
    Malformed,
}

impl LogFilter {
    /// The filter's text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Replaces the filter; `None` is the default one. `announce` logs the change, through whichever of the two filters
    /// shows it.
    pub(crate) fn replace(&mut self, filter: Option<&str>, announce: impl Fn(&str, &str)) -> Result<(), Kept> {
        let text = filter.unwrap_or(DEFAULT_FILTER);
        if text == self.text {
            return Err(Kept::Unchanged);
        }
        let parsed = EnvFilter::try_new(text).map_err(|_| Kept::Malformed)?;
        let is_shown_before = tracing::enabled!(tracing::Level::INFO);
        if is_shown_before {
            announce(&self.text, text);
        }
        // It fails only when logging was never started; then there is nothing to filter.
        let _ = self.handle.reload(parsed);
        if !is_shown_before {
            announce(&self.text, text);
        }
        text.clone_into(&mut self.text);
        Ok(())
    }
}

/// Sends logs to stderr, as text or as one JSON object a line. A filter that cannot be read falls back to the default, and
/// says so.
pub(crate) fn start(filter: Option<String>, json: bool) -> LogFilter {
    let parsed = filter.map(|text| EnvFilter::try_new(&text).map(|parsed| (parsed, text)));
    let malformed = matches!(parsed, Some(Err(_)));
    let default = || (EnvFilter::new(DEFAULT_FILTER), DEFAULT_FILTER.to_owned());
    let (filter, text) = parsed.and_then(Result::ok).unwrap_or_else(default);
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    // A line that cannot be written is dropped, as after the terminal is gone.
    let lines = fmt::layer().with_writer(std::io::stderr);
    let started = if json {
        registry.with(lines.json().flatten_event(true)).try_init()
    } else {
        registry.with(lines.with_ansi(false)).try_init()
    };
    if started.is_ok() && malformed {
        tracing::warn!("RUST_LOG is malformed; logging {DEFAULT_FILTER}");
    }
    LogFilter { handle, text }
}
