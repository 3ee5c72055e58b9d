//! The guides.
//!
//! | guide | contents |
//! |---|---|
//! | [`reading`] | HTTP, WorkOS SDKs, Rust, SQL, foreign keys, row-level security, ORMs |
//! | [`authorizing`] | organizations, memberships, roles and permissions: what an answer guarantees, and when to ask WorkOS |
//! | [`reacting`] | the change feed, handlers, actions |
//! | [`operating`] | settings, exit codes, metrics, troubleshooting, the runbook |
//! | [`architecture`] | the layers, and four walks through the code |
//! | [`protocol`] | facts about WorkOS that the code depends on |

#[doc = include_str!("docs/architecture.md")]
pub mod architecture {}

#[doc = include_str!("docs/authorizing.md")]
pub mod authorizing {}

#[doc = include_str!("docs/operating.md")]
pub mod operating {}

#[doc = include_str!("docs/protocol.md")]
pub mod protocol {}

#[doc = include_str!("docs/reacting.md")]
pub mod reacting {}

#[doc = include_str!("docs/reading.md")]
pub mod reading {}
