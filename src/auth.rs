//! The adapter to WorkOS's access tokens: which are ours, who signed them, whom they are about.
//!
//! A token decides nothing before its signature (promise 7): [`TokenVerifier::verify`] runs its checks in one fixed order,
//! and every refusal names its reason; [`TokenVerifier::explain`] shows the same checks one by one. Facts: WorkOS's session and custom-domain guides, and what its SDKs accept.

mod cache;
mod claims;
mod error;
mod explain;
mod identity;
mod keys;
mod policy;
mod source;
mod token;

pub use cache::{KeyCache, KeyStatus};
pub use error::TokenError;
pub use explain::{Check, Explanation, UserStanding, Verdict};
pub use identity::Identity;
pub use policy::TokenPolicy;
pub use source::{HttpKeySource, KeyFetchError, KeySource};
pub use token::TokenVerifier;

/// What a caller sent, fit for a message or a quoted header value: at most 80 characters of printable ASCII, without quotes
/// and backslashes. What looks like an e-mail address is nobody's business.
fn plain(text: &str) -> String {
    if text.contains('@') {
        return "(withheld: it holds an @)".to_owned();
    }
    let plain = |char: char| char == ' ' || (char.is_ascii_graphic() && char != '"' && char != '\\');
    let mut short: String = text.chars().take(80).map(|char| if plain(char) { char } else { '?' }).collect();
    if text.chars().nth(80).is_some() {
        short.push_str("...");
    }
    short
}
