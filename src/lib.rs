//! Keeps a live copy of an application's WorkOS users in its own PostgreSQL, and answers who is behind an access token.
//!
//! Start with [`AuthKit`]. The [guides](docs) explain how to read users, react to changes and run the service, and how the code
//! is organized: [`docs::architecture`] describes the layers and four walks through the files.
//!
//! Everything an application needs is exported here, at the root. The tests, the benches and the binary use more; the features
//! `dev` and `cli` export that for them alone, without documentation and without a promise of stability.
#![cfg_attr(
    not(feature = "dev"),
    expect(dead_code, unreachable_pub, unused_imports, reason = "the tests and benches, which need `dev`, use more")
)]

pub mod docs;
mod http;
mod supervise;
#[cfg(feature = "cli")]
mod telemetry;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod config;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod dev;

// Only `dev` makes the other modules public. One declaration cannot say this, because a visibility takes no condition, and
// rustfmt does not format the file of a module that a macro declares. So there are two lists of the same modules.
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod action_endpoint;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod actions;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod authkit;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod domain;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod lookup;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod metrics;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod store;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod sync;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod tokens;
#[cfg(feature = "dev")]
#[doc(hidden)]
pub mod workos;

#[cfg(not(feature = "dev"))]
mod action_endpoint;
#[cfg(not(feature = "dev"))]
mod actions;
#[cfg(not(feature = "dev"))]
mod authkit;
#[cfg(not(feature = "dev"))]
mod domain;
#[cfg(not(feature = "dev"))]
mod lookup;
#[cfg(not(feature = "dev"))]
mod metrics;
#[cfg(not(feature = "dev"))]
mod store;
#[cfg(not(feature = "dev"))]
mod sync;
#[cfg(not(feature = "dev"))]
mod tokens;
#[cfg(not(feature = "dev"))]
mod workos;

// The types of sqlx in our signatures, such as `PgPool`, are those of this version.
pub use sqlx;

pub use action_endpoint::{ActionEndpoint, EndpointError, OnFailure};
pub use actions::{ActionHandlerError, Opinion};
pub use authkit::{AuthKit, AuthUser, BuildError, Builder, Rejection, RunError, SecretError};
pub use domain::action::{Action, ActionContext, ActionKind, Invitation, Verdict};
pub use domain::action_rules::{Rule, RuleError, Rules, Who};
pub use domain::change::{Cause, Change, ChangeKind, Difference, NotAPosition, Position};
pub use domain::clock::Clock;
pub use domain::event::Origin;
pub use domain::fields::Extra;
pub use domain::kinds::Kinds;
pub use domain::membership::{Membership, Sides};
pub use domain::organization::Organization;
pub use domain::timestamp::Timestamp;
pub use domain::user::User;
pub use lookup::{LookupError, Session};
pub use store::handlers::Tx;
pub use store::hosts::{Hosts, HostsError, Wanted};
pub use store::migrations::{MigrationsError, run as run_migrations};
pub use store::roles::assert as assert_roles;
pub use store::{Pool, StoreError, Unfit};
pub use sync::feed::FeedError;
pub use sync::handlers::Handle;
pub use tokens::{Identity, KeyFetchError, KeySource, TokenError};
pub use workos::api::ApiKey;
pub use workos::signature::Secret;

/// The doctests compile the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
