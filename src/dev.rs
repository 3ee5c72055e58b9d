//! A private PostgreSQL and a simulated WorkOS: what `authkit-sync dev` runs on, and our own tests.
//!
//! Nothing here is for production. It works without any setting, keeps to this machine, and leaves nothing running however
//! it ends.

pub mod postgres;
pub mod tour;

pub mod workos;
