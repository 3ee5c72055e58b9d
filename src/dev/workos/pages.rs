//! Pages of lists, as WorkOS returns them.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use serde_json::{Value, json};

use super::collection::{Collection, Key, Object, text};
use super::fault::Fault;
use super::fault_injector::ApiFaults;
use super::routes::Read;
use crate::domain::timestamp::Timestamp;

type Parameters = [(String, String)];

fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn limit(parameters: &Parameters, faults: &ApiFaults) -> Result<usize, Fault> {
    let limit = parameter(parameters, "limit").map_or(Ok(10), str::parse).unwrap_or(0);
    let most = faults.page_limit.unwrap_or(limit);
    if (1..=100).contains(&limit) { Ok(limit.min(most)) } else { Err(Fault::invalid("limit_out_of_range", "limit")) }
}

impl Read<'_> {
    /// Returns the requested page of the objects at `keys` that `is_listed` accepts: newest first by default. Cursors are IDs.
    ///
    /// With the cursor of a removed object, the list continues, unless a fault is set. With an unknown cursor, it starts from the
    /// first page.
    pub(super) fn page(
        &self,
        collection: &Collection,
        keys: &BTreeSet<Key>,
        is_listed: impl Fn(&Object) -> bool,
        present: impl Fn(&Object) -> Value,
    ) -> Result<Value, Fault> {
        let limit = limit(self.parameters, self.faults)?;
        let ascending = match self.parameter("order") {
            Some("asc") => true,
            None | Some("desc" | "normal") => false,
            Some(_) => return Err(Fault::invalid("invalid_order", "order")),
        };
        let removed = |id: &str| self.state.removed_key(id).filter(|_| !self.faults.lists_start_over);
        let cursor = |name: &str| self.parameter(name).and_then(|id| collection.key(id).or_else(|| removed(id)));
        let listed = |(_, id): &&Key| !self.state.unlisted.contains(id) && collection.get(id).is_some_and(&is_listed);
        // The objects on one side of a cursor, the nearest first.
        let beyond = |cursor: Option<&Key>, ascending: bool| -> Box<dyn Iterator<Item = &Key> + '_> {
            let cursor = cursor.map_or(Bound::Unbounded, Bound::Excluded);
            if ascending {
                Box::new(keys.range((cursor, Bound::Unbounded)))
            } else {
                Box::new(keys.range((Bound::Unbounded, cursor)).rev())
            }
        };
        let before = cursor("before");
        let after = if before.is_some() { None } else { cursor("after") };
        let is_backward = before.is_some();
        let mut page: Vec<&Key> =
            beyond(before.as_ref().or(after.as_ref()), ascending != is_backward).filter(listed).take(limit).collect();
        if is_backward {
            page.reverse();
        }
        // The cursor of a page that has more objects beyond it.
        let beyond_page = |key: Option<&&Key>, ascending: bool| {
            let has_more = |key: &Key| beyond(Some(key), ascending).any(|key| listed(&key));
            key.filter(|key| has_more(key)).map(|(_, id)| id.clone())
        };
        let before = beyond_page(page.first(), !ascending);
        let metadata = json!({"before": before, "after": beyond_page(page.last(), ascending)});
        let data: Vec<Value> = page.iter().filter_map(|(_, id)| collection.get(id)).map(present).collect();
        let mut list = json!({"object": "list", "list_metadata": metadata});
        // `json!` would copy the objects.
        list["data"] = Value::Array(data);
        Ok(list)
    }
}

/// The events that the Events API lists at this time.
pub(super) struct Window {
    pub(super) faults: ApiFaults,
    /// Cursors of events until this time are unknown.
    pub(super) lost: Option<Timestamp>,
    pub(super) now: Timestamp,
}

impl Window {
    /// Returns the time of the oldest listed event.
    fn oldest(&self) -> Option<Timestamp> {
        self.faults.retention_s.map(|seconds| self.now.plus_seconds(-i64::from(seconds)))
    }

    /// Returns whether an event is not listed yet. Later events are not listed either, because otherwise a cursor would skip this
    /// event.
    fn holds_back(&self, event: &Object) -> bool {
        let newest = self.now.minus(Duration::from_millis(self.faults.hold_back_ms));
        Timestamp::parse(text(event, "created_at")).is_some_and(|at| at > newest)
    }

    fn remembers(&self, event: &Object) -> bool {
        let created_at = Timestamp::parse(text(event, "created_at"));
        created_at.is_none_or(|at| self.oldest().is_none_or(|oldest| at >= oldest))
    }

    /// Returns whether the event is a valid cursor.
    fn knows(&self, events: &[Object], id: &str) -> bool {
        let event = events.binary_search_by(|event| text(event, "id").cmp(id)).ok().and_then(|at| events.get(at));
        event
            .and_then(|event| Timestamp::parse(text(event, "created_at")))
            .is_some_and(|at| self.oldest().is_none_or(|oldest| at >= oldest) && self.lost.is_none_or(|lost| at > lost))
    }
}

/// `GET /events`: always oldest first, even with another `order`, as observed at WorkOS. Event types are required.
pub(super) fn events(events: &[Object], parameters: &Parameters, window: &Window) -> Result<Value, Fault> {
    let limit = limit(parameters, &window.faults)?;
    let named = parameters.iter().filter(|(key, _)| key == "events" || key == "events[]");
    let types: Vec<&str> = named.flat_map(|(_, value)| value.split(',')).filter(|name| !name.is_empty()).collect();
    if types.is_empty() {
        return Err(Fault::bad("invalid_events_request", "At least one event name has to be given."));
    }
    if types.iter().any(|name| window.faults.unknown_types.iter().any(|unknown| unknown == name)) {
        return Err(Fault::bad("invalid_events_request", "One of the event names is unknown."));
    }
    let mut after = parameter(parameters, "after");
    let since = parameter(parameters, "range_start").map(Timestamp::parse);
    if since == Some(None) {
        return Err(Fault::invalid("invalid", "range_start"));
    }
    if after.is_some() && since.is_some() {
        return Err(Fault::bad("invalid_events_request", "The parameters after and range_start cannot be combined."));
    }
    if since.flatten().is_some_and(|since| window.oldest().is_some_and(|oldest| since < oldest)) {
        return Err(Fault::invalid("out_of_range", "range_start"));
    }
    if after.is_some_and(|id| !window.knows(events, id)) {
        if !window.faults.lost_cursors_start_over {
            return Err(Fault::invalid("invalid_cursor", "after"));
        }
        after = None;
    }
    let wanted = |event: &&Object| {
        let recent = since.is_none_or(|since| Timestamp::parse(text(event, "created_at")) >= since);
        types.contains(&text(event, "event")) && recent && window.remembers(event)
    };
    // IDs ascend, so the events that were read before are skipped without a scan.
    let first = after.map_or(0, |after| events.partition_point(|event| text(event, "id") <= after));
    let events = events.get(first..).unwrap_or_default();
    let shown = events.iter().take_while(|event| !window.holds_back(event)).filter(wanted);
    let mut rest: Vec<&Object> = if window.faults.backwards {
        let mut all: Vec<&Object> = shown.collect();
        all.reverse();
        all.truncate(limit + 1);
        all
    } else {
        shown.take(limit + 1).collect()
    };
    let more = rest.len() > limit;
    rest.truncate(limit);
    let after = rest.last().filter(|_| more).map(|event| text(event, "id"));
    let mut page = json!({"object": "list", "data": rest, "list_metadata": {"after": after}});
    spoil_ids(&mut page, &window.faults);
    Ok(page)
}

/// Removes the ID of the events that the faults select.
fn spoil_ids(page: &mut Value, faults: &ApiFaults) {
    let events = page.get_mut("data").and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default();
    let first = match events.len() {
        _ if faults.unreadable_page => 0,
        count if faults.unreadable_last => count.saturating_sub(1),
        count => count,
    };
    for event in events.iter_mut().skip(first) {
        event["id"] = Value::Null;
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::State;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::parse("2026-09-01T08:15:30.412Z").unwrap().plus_seconds(second)
    }

    fn window() -> Window {
        Window { faults: ApiFaults::default(), lost: None, now: at(0) }
    }

    fn asked(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn ids(page: &Value) -> Vec<&str> {
        page["data"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn users_are_listed_in_the_order_of_creation() {
        let mut state = State::new(7, at(0));
        for (second, id) in ["user_z", "user_m", "user_a"].iter().enumerate() {
            let given = json!({"id": id, "email": format!("{id}@example.test")});
            state.create(given.as_object().unwrap(), at(i64::try_from(second).unwrap())).unwrap();
        }
        let page = |state: &State, query: &[(&str, &str)]| {
            let (parameters, faults) = (asked(query), ApiFaults::default());
            let read = Read { state, path: &[], parameters: &parameters, faults: &faults, now: at(9) };
            let present = |user: &Object| Value::Object(user.clone());
            read.page(&state.users, state.users.keys(), |_| true, present).unwrap()
        };
        assert_eq!(ids(&page(&state, &[("order", "asc")])), ["user_z", "user_m", "user_a"]);
        assert_eq!(ids(&page(&state, &[])), ["user_a", "user_m", "user_z"]);
        assert_eq!(ids(&page(&state, &[("order", "asc"), ("before", "user_a"), ("limit", "1")])), ["user_m"]);
        // A scan continues even if the user of its cursor was deleted.
        state.delete("user_z", at(9)).unwrap();
        assert_eq!(ids(&page(&state, &[("order", "asc"), ("after", "user_z")])), ["user_m", "user_a"]);
    }

    #[test]
    fn a_range_start_that_is_not_a_time_is_rejected() {
        let query = |since: &str| asked(&[("events", "user.created"), ("range_start", since)]);
        assert!(events(&[], &query("yesterday"), &window()).is_err());
        assert!(events(&[], &query("2026-09-01T08:15:30.412Z"), &window()).is_ok());
    }

    #[test]
    fn newest_events_are_not_listed_yet_and_unknown_cursors_are_rejected() {
        let mut state = State::new(7, at(0));
        for second in 0..4 {
            state.emit("user.updated", json!({}), None, at(second * 10));
        }
        let list = |state: &State, after: Option<&str>, faults: ApiFaults| {
            let mut query = vec![("events", "user.updated")];
            query.extend(after.map(|after| ("after", after)));
            let window = Window { faults, lost: None, now: at(31) };
            events(&state.events, &asked(&query), &window).map(|page| page["data"].as_array().unwrap().len())
        };
        let faults = ApiFaults { hold_back_ms: 5_000, retention_s: Some(25), ..ApiFaults::default() };
        assert_eq!(list(&state, None, faults.clone()).unwrap(), 2);
        let forgotten = state.events[0]["id"].as_str().unwrap();
        assert!(list(&state, Some(forgotten), faults.clone()).is_err());
        let starts_over = ApiFaults { lost_cursors_start_over: true, ..faults };
        assert_eq!(list(&state, Some(forgotten), starts_over).unwrap(), 2);
        let unknown = ApiFaults { unknown_types: vec!["user.updated".to_owned()], ..ApiFaults::default() };
        assert!(list(&state, None, unknown).is_err());
    }
}
