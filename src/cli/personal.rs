//! Arguments that can be personal data, and therefore may come from stdin.

use std::io::Read;

use clap::ArgMatches;

use super::{Exit, Failure};

/// Maximum number of bytes read from stdin.
const LIMIT: u64 = 1_024;

/// The sentence for the help of such an argument.
pub(super) const STDIN: &str = "-: read it from stdin, so that no shell history contains it";

/// Returns the argument, or the content of stdin if the argument is `-`.
pub(super) fn argument(matches: &ArgMatches, name: &str) -> Result<String, Failure> {
    let mut text = matches.get_one::<String>(name).cloned().unwrap_or_default();
    if text == "-" {
        text.clear();
        let read = std::io::stdin().lock().take(LIMIT).read_to_string(&mut text);
        read.map_err(|_| Failure::new(Exit::Usage, "stdin is not text; write one line of text to it"))?;
    }
    let text = text.trim();
    if text.is_empty() || text.contains('\0') {
        return Err(Failure::new(Exit::Usage, format!("the {name} is empty or not text")));
    }
    Ok(text.to_owned())
}
