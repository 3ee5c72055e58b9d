//! Log output of the binary, and everything else that it writes to stderr. The library only emits log events.

use std::io::Write;
use std::sync::OnceLock;

use serde_json::json;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

use crate::domain::clock::Clock;

/// The default filter: our own lines, and the warnings of libraries.
pub(crate) const DEFAULT_FILTER: &str = "warn,authkit_sync=info";

/// The log filter. It can be replaced while the process runs.
pub(crate) struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: String,
}

/// Why a filter was not replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReplaced {
    /// The new filter is the same.
    Unchanged,
    /// The new text is not a filter.
    Malformed,
}

impl LogFilter {
    /// Returns the text of the filter.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Replaces the filter. `announce` logs the change: before it if the old filter shows that line, else after it.
    pub(crate) fn replace(&mut self, text: &str, announce: impl Fn(&str, &str)) -> Result<(), NotReplaced> {
        if text == self.text {
            return Err(NotReplaced::Unchanged);
        }
        let parsed = EnvFilter::try_new(text).map_err(|_| NotReplaced::Malformed)?;
        let is_shown_before = tracing::enabled!(tracing::Level::INFO);
        if is_shown_before {
            announce(&self.text, text);
        }
        // This fails only if logging was never started. Then there is nothing to filter.
        let _ = self.handle.reload(parsed);
        if !is_shown_before {
            announce(&self.text, text);
        }
        text.clone_into(&mut self.text);
        Ok(())
    }
}

/// Whether stderr holds one JSON object per line.
static IS_JSON: OnceLock<bool> = OnceLock::new();

/// Sets the format of stderr. The first call counts.
pub(crate) fn set_format(json: bool) {
    if *IS_JSON.get_or_init(|| json) {
        // The text of a panic may contain personal data, so only its place is reported.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            say("ERROR", &format!("authkit-sync panicked at {place}; this is a defect, please report it"));
        }));
    }
}

/// Returns whether stderr holds one JSON object per line.
pub(crate) fn is_json() -> bool {
    IS_JSON.get().copied().unwrap_or_default()
}

/// Writes a line to stderr that no log filter suppresses: the text alone, or a JSON object like those of the log.
pub(crate) fn say(level: &str, message: &str) {
    let line = if is_json() {
        let timestamp = Clock::system().now().to_string();
        json!({"timestamp": timestamp, "level": level, "message": message, "target": "authkit_sync"}).to_string()
    } else {
        message.to_owned()
    };
    // Writing fails if the terminal is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Starts to write logs to stderr, as text or as one JSON object per line. Warns about a malformed filter and uses the default.
pub(crate) fn start(filter: &str, json: bool) -> LogFilter {
    set_format(json);
    let parsed = EnvFilter::try_new(filter);
    let is_malformed = parsed.is_err();
    let text = if is_malformed { DEFAULT_FILTER } else { filter }.to_owned();
    let filter = parsed.unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    // A line that cannot be written, for example to a closed terminal, is dropped.
    let lines = fmt::layer().with_writer(std::io::stderr);
    let started = if json {
        registry.with(lines.json().flatten_event(true)).try_init()
    } else {
        registry.with(lines.with_ansi(false)).try_init()
    };
    if started.is_ok() && is_malformed {
        tracing::warn!("RUST_LOG is malformed; logging {DEFAULT_FILTER}");
    }
    LogFilter { handle, text }
}
