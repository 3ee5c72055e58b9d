//! The parameters and answers of WorkOS's lists: `limit`, `order`, `before`, `after`, and the filters of each list.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::headers::POSITION;
use super::workos_error::WorkosRejection;
use crate::domain::change::Position;
use crate::store::pages::{Order, Page, PageOf};

/// The query of a request, as axum extracts it.
pub(super) type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// Maximum number of values of one filter.
const MAX_VALUES: usize = 100;

/// The filters of a list.
pub(super) struct Filters {
    /// Filters with one value.
    pub(super) single: &'static [&'static str],
    /// Filters with several values: repeated, separated by commas, or both. Their names may end with `[]`.
    pub(super) several: &'static [&'static str],
}

/// The parameters of a list.
pub(super) struct ListQuery {
    limit: usize,
    order: Order,
    before: Option<String>,
    after: Option<String>,
    /// `order=normal`: newest first, and `before` means older objects, `after` newer ones.
    swapped: bool,
    /// The values of the filters.
    values: BTreeMap<String, Vec<String>>,
}

impl ListQuery {
    pub(super) fn read(parameters: Parameters, filters: &Filters) -> Result<Self, WorkosRejection> {
        let Query(parameters) = parameters.map_err(|_| WorkosRejection::parameter("invalid", "query"))?;
        let mut values = BTreeMap::new();
        for (name, value) in parameters {
            if value.contains('\0') {
                return Err(WorkosRejection::parameter("invalid", &name));
            }
            let base = name.strip_suffix("[]").unwrap_or(&name);
            if filters.several.contains(&base) {
                let values: &mut Vec<String> = values.entry(base.to_owned()).or_default();
                values.extend(value.split(',').map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned));
                if values.len() > MAX_VALUES {
                    return Err(WorkosRejection::parameter("too_many_values", base));
                }
            } else if !["limit", "order", "before", "after"].contains(&&*name) && !filters.single.contains(&&*name) {
                return Err(WorkosRejection::unsupported(&name));
            } else if values.insert(name.clone(), vec![value]).is_some() {
                return Err(WorkosRejection::parameter("given_twice", &name));
            }
        }
        Self::of(values)
    }

    fn of(mut values: BTreeMap<String, Vec<String>>) -> Result<Self, WorkosRejection> {
        let mut single = |name: &str| values.remove(name).and_then(|mut values| values.pop());
        let limit = single("limit").map_or(Some(10), |limit| limit.parse().ok());
        let limit = limit.filter(|limit| (1..=100).contains(limit));
        let limit = limit.ok_or_else(|| WorkosRejection::parameter("limit_out_of_range", "limit"))?;
        let (order, swapped) = match single("order").as_deref() {
            Some("asc") => (Order::Ascending, false),
            Some("desc") | None => (Order::Descending, false),
            Some("normal") => (Order::Descending, true),
            Some(_) => return Err(WorkosRejection::parameter("invalid_order", "order")),
        };
        let (mut before, mut after) = (single("before"), single("after"));
        if before.is_some() && after.is_some() {
            return Err(WorkosRejection::parameter("exclusive", "before"));
        }
        if swapped {
            std::mem::swap(&mut before, &mut after);
        }
        Ok(Self { limit, order, before, after, swapped, values })
    }

    pub(super) fn page(&self) -> PageOf<'_> {
        PageOf { order: self.order, before: self.before.as_deref(), after: self.after.as_deref(), limit: self.limit }
    }

    /// Returns the value of a filter.
    pub(super) fn single(&self, name: &str) -> Option<&str> {
        self.several(name)?.first().map(String::as_str)
    }

    /// Returns the values of a filter, or `None` if the request does not contain it.
    pub(super) fn several(&self, name: &str) -> Option<&[String]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// Returns the answer: the page, its cursors, and the position of the change feed.
    pub(super) fn answer<T: Serialize>(&self, page: Page<T>, position: Position) -> Response {
        let Page { items, mut before, mut after } = page;
        if self.swapped {
            std::mem::swap(&mut before, &mut after);
        }
        let list = List { object: "list", data: &items, list_metadata: Some(Metadata { before, after }) };
        ([(POSITION, position.to_string())], Json(list)).into_response()
    }
}

/// Returns the answer of a list without pages.
pub(super) fn whole<T: Serialize>(items: &[T], position: Position) -> Response {
    let list = List { object: "list", data: items, list_metadata: None };
    ([(POSITION, position.to_string())], Json(list)).into_response()
}

/// Rejects all parameters, for a list that has none.
pub(super) fn no_parameters(parameters: Parameters) -> Result<(), WorkosRejection> {
    let Query(parameters) = parameters.map_err(|_| WorkosRejection::parameter("invalid", "query"))?;
    parameters.first().map_or(Ok(()), |(name, _)| Err(WorkosRejection::unsupported(name)))
}

#[derive(Serialize)]
struct List<'a, T> {
    object: &'static str,
    data: &'a [T],
    #[serde(skip_serializing_if = "Option::is_none")]
    list_metadata: Option<Metadata>,
}

#[derive(Serialize)]
struct Metadata {
    before: Option<String>,
    after: Option<String>,
}

/// The type of a list, in WorkOS's format.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "a constant in WorkOS's format")]
pub(super) enum ListObject {
    List,
}

/// IDs to pass as `before` and `after` to get the previous and the next page. Null at the end of the list.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) struct Cursors {
    #[schema(required)]
    before: Option<String>,
    #[schema(required)]
    after: Option<String>,
}

/// The values of `order`.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only for /openapi.json")]
pub(super) enum Direction {
    Asc,
    Desc,
    Normal,
}
