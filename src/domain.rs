//! The core: what an object, an event and a version are, and what an observation does to a stored object. No I/O, no async.

pub mod action;
pub mod action_rules;
pub mod change;
pub mod clock;
pub mod decide;
pub mod event;
pub mod event_types;
pub mod fields;
pub mod handler;
pub mod kinds;
pub mod membership;
pub mod object;
pub mod organization;
pub mod role;
pub mod timestamp;
pub mod user;
pub mod version;
