//! The adapter to WorkOS: signatures, the JSON formats, and the REST API.

pub mod actions;
mod addresses;
pub mod api;
mod clocks;
pub mod contact;
pub mod http;
pub(crate) mod json;
pub mod signature;
pub mod webhook_endpoints;
pub mod wire;
