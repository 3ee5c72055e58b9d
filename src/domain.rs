//! The core: what a user, an event and a version are, and what an observation does to a stored user. No I/O, no async.

pub mod action;
pub mod action_rules;
pub mod change;
pub mod clock;
pub mod decide;
pub mod event;
pub mod handler;
pub mod timestamp;
pub mod user;
pub mod version;
