//! Access tokens of WorkOS: signature, claims, and the keys that verify them.
//!
//! No claim is trusted before the signature (promise 7). [`TokenVerifier::verify`] runs its checks in a fixed order, and every
//! refusal has a reason. [`TokenVerifier::explain`] shows the same checks one by one. Facts about the tokens:
//! [the guide](crate::docs::protocol#access-tokens).

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

/// Returns text from a caller for a message or a quoted header value: at most 80 characters of printable ASCII, without quotes
/// and backslashes. Text with an @ can be an e-mail address and is withheld.
fn plain(text: &str) -> String {
    if text.contains('@') {
        return "(withheld: it contains an @)".to_owned();
    }
    let plain = |char: char| char == ' ' || (char.is_ascii_graphic() && char != '"' && char != '\\');
    let mut short: String = text.chars().take(80).map(|char| if plain(char) { char } else { '?' }).collect();
    if text.chars().nth(80).is_some() {
        short.push_str("...");
    }
    short
}
