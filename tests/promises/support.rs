//! Support code of the tests, in layers. A test uses the lowest layer that is enough.
//!
//! | layer | what it adds |
//! |---|---|
//! | [`events`], [`actions`], [`fixture`] | events, users and actions as WorkOS sends them |
//! | [`rows`] | rows of the tables of objects, to compare them with WorkOS's objects |
//! | [`database::TestDatabase`] | a database of the test's own |
//! | [`service::Service`] | the service in this process, on a pool, with a clock and signing keys that the test sets |
//! | [`application::Application`] | a database and an application's table, and services with handlers |
//! | [`policies::PolicyLab`] | a database, an application's tables with row-level security, and requests as PostgREST runs them |
//! | [`lab::Lab`] | a database and a simulated WorkOS on one clock, and the background jobs, a step at a time |
//! | [`binary::Served`] | the real binary as a process, which can be killed |
//! | [`deployment::Deployment`] | three processes behind a proxy, its load, and the steps of a rolling deployment |
//! | [`prometheus::Prometheus`] | a real Prometheus that reads the metrics of services |
//! | [`cluster::Cluster`] | a primary and its streaming standby |
//! | [`chromium::Chromium`] | a real browser, which opens pages of services |
//! | `simulation::world::World` | a random history: replicas that are cut off, several environments, and faults |
//!
//! [`pgbouncer`] starts a real PgBouncer, for one test or for all of them.
//! [`programs`] finds programs that are not part of this project, such as nginx.
//! [`hostile`] fills a database's `public` with hostile objects.

pub(crate) mod actions;
pub(crate) mod application;
pub(crate) mod binary;
pub(crate) mod chromium;
pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod deployment;
pub(crate) mod events;
pub(crate) mod hostile;
pub(crate) mod lab;
pub(crate) mod pgbouncer;
pub(crate) mod policies;
pub(crate) mod programs;
pub(crate) mod prometheus;
pub(crate) mod rows;
pub(crate) mod service;

use serde_json::Value;

/// A fixture: invented data in the shapes that WorkOS documents.
pub(crate) fn fixture(name: &str) -> Value {
    serde_json::from_slice(&fixture_bytes(name)).unwrap()
}

/// The bytes of a fixture.
pub(crate) fn fixture_bytes(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the number of migrations.
pub(crate) fn migrations() -> usize {
    let folder = std::fs::read_dir(format!("{}/migrations", env!("CARGO_MANIFEST_DIR"))).unwrap();
    folder.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == "sql")).count()
}
