//! Fields of WorkOS's objects, with and without a column.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

/// Fields without a column, unchanged: numbers keep their digits.
pub type Extra = BTreeMap<String, Box<RawValue>>;

/// Returns the names of the fields that differ: of these fields with a column, and of the fields without one. Fields without a
/// column are compared as JSON values, not as text.
pub(super) fn differences(known: &[(&str, bool)], one: &Extra, other: &Extra) -> Vec<String> {
    let known = known.iter().filter(|(_, is_same)| !is_same).map(|(name, _)| (*name).to_owned());
    let named: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let extra =
        named.into_iter().filter(|name| !is_same(one.get(*name).map(|raw| &**raw), other.get(*name).map(|raw| &**raw)));
    known.chain(extra.cloned()).collect()
}

/// Returns whether two JSON values are equal, in any order of keys and with any white space.
pub(super) fn is_same(one: Option<&RawValue>, other: Option<&RawValue>) -> bool {
    let value = |raw: &RawValue| serde_json::from_str::<serde_json::Value>(raw.get()).ok();
    match (one, other) {
        (Some(one), Some(other)) => one.get() == other.get() || value(one) == value(other),
        (one, other) => one.is_none() == other.is_none(),
    }
}
