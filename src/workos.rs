//! The adapter to WorkOS: what it signs, what it sends.

mod json;
pub mod signature;
pub mod wire;
