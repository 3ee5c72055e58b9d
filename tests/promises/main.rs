//! The promises, tested against a real PostgreSQL and over real HTTP. One binary, so that it links once.

mod convergence;
mod erasure;
mod layers;
mod lookups;
mod receiver;
mod signature;
mod support;
