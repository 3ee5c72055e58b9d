//! The adapter to WorkOS: what it signs, what it sends.

pub mod signature;
