//! The entries of the router's tables: reads of the API, and actions that control the simulation.

use axum::http::Method;
use serde_json::Value;

use super::SimulatedWorkos;
use super::collection::Object;
use super::fault::Fault;
use super::fault_injector::ApiFaults;
use super::state::State;
use crate::domain::timestamp::Timestamp;

/// A request that reads the state.
pub(super) struct Read<'a> {
    pub(super) state: &'a State,
    /// The values of the placeholders in the path.
    pub(super) path: &'a [String],
    pub(super) parameters: &'a [(String, String)],
    pub(super) faults: &'a ApiFaults,
    pub(super) now: Timestamp,
}

impl<'a> Read<'a> {
    /// Returns the first value of a parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the values of a parameter that can be repeated, with or without `[]`, or joined with commas.
    pub(super) fn values(&self, name: &str) -> Vec<&'a str> {
        let named = self.parameters.iter().filter(|(key, _)| key.strip_suffix("[]").unwrap_or(key) == name);
        named.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty()).collect()
    }

    /// Returns the value of a placeholder in the path.
    pub(super) fn id(&self, position: usize) -> &'a str {
        self.path.get(position).map(String::as_str).unwrap_or_default()
    }
}

/// A path of the API and the function that answers `GET` for it.
pub(super) type Reads = [(&'static str, fn(&Read<'_>) -> Result<Value, Fault>)];

/// An action of the simulation: the function gets the placeholders of the path and the body.
pub(super) struct Action {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// An example of the body. Empty: the body is ignored.
    pub(super) body: &'static str,
    pub(super) effect: &'static str,
    pub(super) run: fn(&SimulatedWorkos, &[String], &Object) -> Result<Value, Fault>,
}

/// Returns the value of a placeholder in the path of an action.
pub(super) fn segment(path: &[String], position: usize) -> &str {
    path.get(position).map(String::as_str).unwrap_or_default()
}
