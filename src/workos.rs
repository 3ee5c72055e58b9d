//! The adapter to WorkOS: what it signs, what it sends.

pub mod actions;
mod addresses;
pub mod api;
mod clocks;
pub mod http;
pub(crate) mod json;
pub mod signature;
pub mod wire;
