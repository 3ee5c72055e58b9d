//! Keeps a live copy of an application's WorkOS users in its own PostgreSQL.
//!
//! The layers, top to bottom; a file may import only from its own layer or one below it (a test reads the imports):
//!
//! | layer | files | holds |
//! |---|---|---|
//! | process | `main`, `cli`, `config`, `telemetry`, `dev` | parsing, wiring, exit codes |
//! | composition | `authkit`, `supervise` | [`AuthKit`], its loops and its shutdown |
//! | edges | `http` | requests in, status codes out; no SQL, no rules |
//! | sync | `sync` | the one write path |
//! | adapters | `store`, `workos`, `auth` | PostgreSQL, WorkOS's wire, tokens and keys |
//! | core | `domain`, `metrics` | what a user, an event and a version are; no I/O |

pub mod auth;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
pub mod store;
pub mod sync;
pub mod workos;
