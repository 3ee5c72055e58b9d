//! Keeps a live copy of an application's WorkOS users in its own PostgreSQL, and answers who is behind a token.
//!
//! The layers, top to bottom. A file imports only from its own layer or one below; a test reads the imports:
//!
//! | layer | files | holds |
//! |---|---|---|
//! | process | `main`, `cli`, `config`, `telemetry`, `dev` | parsing, wiring, exit codes |
//! | composition | `authkit`, `supervise` | [`AuthKit`], its loops and its shutdown |
//! | edges | `http` | requests in, status codes out; no SQL, no rules |
//! | sync | `sync`, `lookup`, `actions` | the one write path, the one question, and who may sign in or up |
//! | adapters | `store`, `workos`, `auth` | PostgreSQL, WorkOS's wire, tokens and keys |
//! | core | `domain`, `metrics` | what a user, an event and a version are; no I/O |

pub mod actions;
pub mod auth;
pub mod authkit;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
mod http;
pub mod lookup;
pub mod metrics;
pub mod store;
mod supervise;
pub mod sync;
#[cfg(feature = "cli")]
mod telemetry;
pub mod workos;

pub use authkit::{AuthKit, AuthUser};
pub use domain::change::Change;
pub use store::lent::Tx;

/// The README's examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
