//! A private PostgreSQL and a simulated WorkOS, for `authkit-sync dev` and for our tests.
//!
//! They are not for production. They need no settings, listen only on this machine, and stop when the process ends, even after
//! `kill -9`.

pub mod postgres;
pub mod screen;
pub mod seed;
pub mod tour;
pub mod workos;
