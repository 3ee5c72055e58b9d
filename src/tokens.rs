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
mod text;
mod token;
mod verified;

pub use cache::{KeyCache, KeyStatus};
pub use error::TokenError;
pub use explain::{Check, CheckResult, Explanation, UserState};
pub use identity::Identity;
pub use policy::TokenPolicy;
pub use source::{HttpKeySource, KeyFetchError, KeySource};
pub use token::TokenVerifier;
