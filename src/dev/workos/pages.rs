//! Lists in pages, as WorkOS cuts them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fault::Fault;
use super::state::Object;
use crate::domain::timestamp::Timestamp;

type Parameters = [(String, String)];

fn parameter<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a str> {
    parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn limit(parameters: &Parameters) -> Result<usize, Fault> {
    let limit = parameter(parameters, "limit").map_or(Ok(10), str::parse).unwrap_or(0);
    if (1..=100).contains(&limit) { Ok(limit) } else { Err(Fault::invalid("limit_out_of_range", "limit")) }
}

fn id(object: &Object) -> &str {
    object.get("id").and_then(Value::as_str).unwrap_or_default()
}

/// `GET /user_management/users`: newest first unless told otherwise; cursors are user ids.
pub(super) fn users(users: &BTreeMap<String, Object>, parameters: &Parameters) -> Result<Value, Fault> {
    let limit = limit(parameters)?;
    let ascending = match parameter(parameters, "order") {
        Some("asc") => true,
        None | Some("desc" | "normal") => false,
        Some(_) => return Err(Fault::invalid("invalid_order", "order")),
    };
    let email = parameter(parameters, "email").map(str::to_lowercase);
    let matches = |user: &&Object| {
        let held = user.get("email").and_then(Value::as_str).unwrap_or_default();
        email.as_ref().is_none_or(|email| held.to_lowercase() == *email)
    };
    let mut all: Vec<&Object> = users.values().filter(matches).collect();
    if !ascending {
        all.reverse();
    }
    // Whether `user` comes after `cursor` in this list's order; the cursor's own user may be gone.
    let beyond = |user: &Object, cursor: &str| if ascending { id(user) > cursor } else { id(user) < cursor };
    let (page, more_before, more_after): (Vec<&Object>, bool, bool) =
        if let Some(before) = parameter(parameters, "before") {
            let earlier: Vec<&Object> =
                all.iter().copied().filter(|user| !beyond(user, before) && id(user) != before).collect();
            let start = earlier.len().saturating_sub(limit);
            let page: Vec<&Object> = earlier.get(start..).unwrap_or_default().to_vec();
            (page, start > 0, true)
        } else {
            let after = parameter(parameters, "after");
            let rest: Vec<&Object> =
                all.iter().copied().filter(|user| after.is_none_or(|after| beyond(user, after))).collect();
            let page: Vec<&Object> = rest.iter().copied().take(limit).collect();
            (page, after.is_some(), rest.len() > limit)
        };
    let before = page.first().filter(|_| more_before).map(|user| id(user));
    let after = page.last().filter(|_| more_after).map(|user| id(user));
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
    let since = parameter(parameters, "range_start").and_then(Timestamp::parse);
    if after.is_some() && since.is_some() {
        return Err(Fault::bad("invalid_events_request", "after and range_start exclude each other."));
    }
    let text = |event: &Object, name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = |event: &&Object| {
        let recent = since.is_none_or(|since| Timestamp::parse(&text(event, "created_at")) >= Some(since));
        types.contains(&text(event, "event").as_str()) && after.is_none_or(|after| id(event) > after) && recent
    };
    let rest: Vec<&Object> = events.iter().filter(wanted).take(limit + 1).collect();
    let page = rest.get(..limit.min(rest.len())).unwrap_or_default();
    let after = page.last().filter(|_| rest.len() > limit).map(|event| id(event));
    Ok(json!({"object": "list", "data": page, "list_metadata": {"after": after}}))
}
