//! What the tests share.

pub(crate) mod actions;
pub(crate) mod binary;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod hostile;
pub(crate) mod lab;
pub(crate) mod service;

use serde_json::Value;

/// A fixture: invented data in the shapes that WorkOS documents.
pub(crate) fn fixture(name: &str) -> Value {
    serde_json::from_slice(&fixture_bytes(name)).unwrap()
}

/// Its bytes.
pub(crate) fn fixture_bytes(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// How many migrations there are.
pub(crate) fn migrations() -> usize {
    let folder = std::fs::read_dir(format!("{}/migrations", env!("CARGO_MANIFEST_DIR"))).unwrap();
    folder.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|it| it == "sql")).count()
}
