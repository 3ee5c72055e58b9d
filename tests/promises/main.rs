//! The promises, tested against a real PostgreSQL and over real HTTP. One binary, so that it links once.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]

mod action_endpoint;
mod actions;
mod backfill;
mod caches;
mod catch_up;
mod changes;
mod command_line;
mod convergence;
mod crash;
mod dev;
mod documents;
mod embedding;
mod erasure;
mod explain;
mod handlers;
mod image;
mod inbox;
mod layers;
mod logs;
mod lookups;
mod migrations;
mod openapi;
mod outage;
mod plans;
mod private_postgres;
mod proxies;
mod reads;
mod receiver;
mod reconcile;
mod sign_ins;
mod signature;
mod simulated_workos;
mod simulation;
mod sql;
mod support;
