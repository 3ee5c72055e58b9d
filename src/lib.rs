//! Keeps a live copy of an application's WorkOS users in its own PostgreSQL, and answers who is behind an access token.
//!
//! Start with [`AuthKit`]. The [guides](docs) explain how to read users, react to changes and run the service, and how the code
//! is organized: [`docs::architecture`] describes the layers and four walks through the files.

pub mod action_endpoint;
pub mod actions;
pub mod authkit;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod docs;
pub mod domain;
mod http;
pub mod lookup;
pub mod metrics;
pub mod store;
mod supervise;
pub mod sync;
#[cfg(feature = "cli")]
mod telemetry;
pub mod tokens;
pub mod workos;

pub use authkit::{AuthKit, AuthUser};
pub use domain::change::Change;
pub use store::lent::Tx;

/// The doctests compile the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
