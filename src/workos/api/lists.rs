//! Lists of objects: snapshots, and events for objects that cannot be applied.

use reqwest::Url;
use serde_json::value::RawValue;

use super::{Api, ApiError, PAGE, Page, list, reading};
use crate::domain::event::Observation;
use crate::domain::membership::STATUSES;
use crate::domain::object::Kind;
use crate::workos::wire;

impl Api {
    /// Returns a page of users after the user `after`, oldest first.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn users(&self, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        self.objects(Kind::User, self.url(&["user_management", "users"]), after).await
    }

    /// Returns a page of organizations after the organization `after`, oldest first.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn organizations(&self, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        self.objects(Kind::Organization, self.url(&["organizations"]), after).await
    }

    /// Returns a page of the memberships of an organization, of every status, after the membership `after`, oldest first. WorkOS
    /// has no list of the memberships of all organizations.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn memberships(&self, organization_id: &str, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        self.objects(Kind::Membership, self.memberships_url(&[("organization_id", organization_id)]), after).await
    }

    /// Returns the memberships of a user in an organization, of every status, oldest first. There is more than one if WorkOS lists
    /// an ended membership in addition to the current one. An empty page does not prove that a stored membership has ended.
    ///
    /// # Errors
    /// [`ApiError`]
    pub async fn memberships_of(&self, user_id: &str, organization_id: &str) -> Result<Page<Observation>, ApiError> {
        let url = self.memberships_url(&[("user_id", user_id), ("organization_id", organization_id)]);
        self.objects(Kind::Membership, url, None).await
    }

    fn memberships_url(&self, filters: &[(&str, &str)]) -> Url {
        let mut url = self.url(&["user_management", "organization_memberships"]);
        url.query_pairs_mut().extend_pairs(filters).append_pair("statuses", &STATUSES.join(","));
        url
    }

    async fn objects(&self, kind: Kind, mut url: Url, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        url.query_pairs_mut().append_pair("order", "asc").append_pair("limit", &PAGE.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        let answer = self.get(url).await?;
        let read = |item: &RawValue| wire::listed(kind, item, answer.observed_at);
        list(&answer, |item| reading(item, read).unwrap_or_else(|panicked| Observation::Event(*panicked)))
    }
}
