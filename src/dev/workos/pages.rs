//! Lists in pages, as WorkOS cuts them.

use serde_json::{Value, json};

use super::fault::Fault;
use super::state::{Object, State, creation, text};
use crate::domain::timestamp::Timestamp;

type Parameters = [(String, String)];

fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn limit(parameters: &Parameters) -> Result<usize, Fault> {
    let limit = parameter(parameters, "limit").map_or(Ok(10), str::parse).unwrap_or(0);
    if (1..=100).contains(&limit) { Ok(limit) } else { Err(Fault::invalid("limit_out_of_range", "limit")) }
}

/// `GET /user_management/users`: newest first unless told otherwise; cursors are user ids.
///
/// A cursor whose user was deleted meanwhile keeps its place; one that was never a user starts the list over.
pub(super) fn users(state: &State, parameters: &Parameters) -> Result<Value, Fault> {
    let limit = limit(parameters)?;
    let ascending = match parameter(parameters, "order") {
        Some("asc") => true,
        None | Some("desc" | "normal") => false,
        Some(_) => return Err(Fault::invalid("invalid_order", "order")),
    };
    let mut all = state.oldest_first();
    if !ascending {
        all.reverse();
    }
    if let Some(email) = parameter(parameters, "email").map(str::to_lowercase) {
        all.retain(|user| text(user, "email").to_lowercase() == email);
    }
    let place = |name: &str| parameter(parameters, name).and_then(|id| state.place(id));
    let ahead = |user: &Object, place| if ascending { creation(user) < place } else { creation(user) > place };
    let (start, end) = if let Some(before) = place("before") {
        let end = all.partition_point(|user| ahead(user, before));
        (end.saturating_sub(limit), end)
    } else {
        let passed = |user: &Object| place("after").is_some_and(|after| ahead(user, after) || creation(user) == after);
        let start = all.partition_point(|user| passed(user));
        (start, all.len().min(start + limit))
    };
    let page = all.get(start..end).unwrap_or_default();
    let before = page.first().filter(|_| start > 0).map(|user| text(user, "id"));
    let after = page.last().filter(|_| end < all.len()).map(|user| text(user, "id"));
    Ok(json!({"object": "list", "data": page, "list_metadata": {"before": before, "after": after}}))
}

/// `GET /events`: always oldest first, whatever `order` says, as observed of the real one; types must be named.
pub(super) fn events(events: &[Object], parameters: &Parameters) -> Result<Value, Fault> {
    let limit = limit(parameters)?;
    let named = parameters.iter().filter(|(key, _)| key == "events" || key == "events[]");
    let types: Vec<&str> = named.flat_map(|(_, value)| value.split(',')).filter(|name| !name.is_empty()).collect();
    if types.is_empty() {
        return Err(Fault::bad("invalid_events_request", "At least one event name has to be given."));
    }
    let after = parameter(parameters, "after");
    let since = parameter(parameters, "range_start").map(Timestamp::parse);
    if since == Some(None) {
        return Err(Fault::invalid("invalid", "range_start"));
    }
    if after.is_some() && since.is_some() {
        return Err(Fault::bad("invalid_events_request", "after and range_start exclude each other."));
    }
    let wanted = |event: &&Object| {
        let recent = since.is_none_or(|since| Timestamp::parse(text(event, "created_at")) >= since);
        types.contains(&text(event, "event")) && after.is_none_or(|after| text(event, "id") > after) && recent
    };
    let rest: Vec<&Object> = events.iter().filter(wanted).take(limit + 1).collect();
    let page = rest.get(..limit.min(rest.len())).unwrap_or_default();
    let after = page.last().filter(|_| rest.len() > limit).map(|event| text(event, "id"));
    Ok(json!({"object": "list", "data": page, "list_metadata": {"after": after}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::parse("2026-09-01T08:15:30.412Z").unwrap().plus_seconds(second)
    }

    fn asked(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn ids(page: &Value) -> Vec<&str> {
        page["data"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn users_stand_in_the_order_of_creation_whatever_their_ids() {
        let mut state = State::new(7, at(0));
        for (second, id) in ["user_z", "user_m", "user_a"].iter().enumerate() {
            let given = json!({"id": id, "email": format!("{id}@example.test")});
            state.create(given.as_object().unwrap(), at(i64::try_from(second).unwrap())).unwrap();
        }
        let page = |state: &State, query: &[(&str, &str)]| users(state, &asked(query)).unwrap();
        assert_eq!(ids(&page(&state, &[("order", "asc")])), ["user_z", "user_m", "user_a"]);
        assert_eq!(ids(&page(&state, &[])), ["user_a", "user_m", "user_z"]);
        assert_eq!(ids(&page(&state, &[("order", "asc"), ("before", "user_a"), ("limit", "1")])), ["user_m"]);
        // A walk goes on where it stood although its last user was deleted meanwhile.
        state.delete("user_z", at(9)).unwrap();
        assert_eq!(ids(&page(&state, &[("order", "asc"), ("after", "user_z")])), ["user_m", "user_a"]);
    }

    #[test]
    fn a_range_that_is_no_time_is_refused() {
        let query = |since: &str| asked(&[("events", "user.created"), ("range_start", since)]);
        assert!(events(&[], &query("yesterday")).is_err());
        assert!(events(&[], &query("2026-09-01T08:15:30.412Z")).is_ok());
    }
}
