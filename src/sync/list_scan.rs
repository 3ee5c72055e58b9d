//! A scan of one of WorkOS's lists, oldest first. Backfill and reconcile use it.
//!
//! A page is requested with the ID of the last object of the previous page. That object may be deleted meanwhile. It is unknown
//! what WorkOS does then: it may continue, reject the request, or silently start from the first page
//! ([facts](crate::docs::protocol#list-of-users)). So a page that does not follow its cursor is requested again with the ID of an
//! earlier object. At worst the scan restarts, a bounded number of times.

use std::collections::VecDeque;

use super::job::JobError;
use crate::domain::event::Observation;
use crate::domain::timestamp::Timestamp;
use crate::workos::api::{Api, ApiError, Page};

/// A listed object, and when WorkOS created it.
pub(super) type ListPosition = (String, Option<Timestamp>);

/// A list of WorkOS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// All users.
    Users,
    /// All organizations.
    Organizations,
    /// The memberships of the organization with this ID.
    Memberships(String),
}

impl List {
    async fn page(&self, api: &Api, after: Option<&str>) -> Result<Page<Observation>, ApiError> {
        match self {
            Self::Users => api.users(after).await,
            Self::Organizations => api.organizations(after).await,
            Self::Memberships(organization_id) => api.memberships(organization_id, after).await,
        }
    }

    fn position(&self, listed: &Observation) -> Option<ListPosition> {
        let created_at = match listed {
            Observation::Snapshot(snapshot) => snapshot.object.created_at(),
            _ => None,
        };
        // A user that cannot be applied is known by its ID too.
        let user = listed.user_id().filter(|_| *self == Self::Users);
        Some((listed.object().map(|(_, id)| id).or(user)?.to_owned(), created_at))
    }
}

/// Number of earlier objects that the scan keeps, so that it can step back to them.
const TRAIL: usize = 200;

/// Limits: steps back without progress before the scan restarts, and restarts.
const SETBACKS: u32 = 32;
const RESTARTS: u32 = 5;

/// A scan in progress.
#[derive(Clone, Debug)]
pub(super) struct ListScan {
    list: List,
    /// The object after which the next page starts. `None` for the first page.
    at: Option<ListPosition>,
    /// Objects before it, in the order of the list.
    trail: VecDeque<ListPosition>,
    /// The latest creation time listed so far.
    furthest: Option<Timestamp>,
    setbacks: u32,
    restarts: u32,
}

/// One page of a scan.
#[derive(Debug)]
pub(super) struct ScannedPage {
    /// The objects, as observations for the write path.
    pub(super) observations: Vec<Observation>,
    /// The position after the page.
    pub(super) position: Option<ListPosition>,
    /// Whether the page is the last one.
    pub(super) end: bool,
    /// WorkOS's time of the request.
    pub(super) observed_at: Timestamp,
}

impl ListScan {
    /// Continues after an object, or starts from the first page.
    pub(super) fn from(list: List, at: Option<ListPosition>) -> Self {
        Self { list, at, trail: VecDeque::new(), furthest: None, setbacks: 0, restarts: 0 }
    }

    /// Starts from the first page.
    pub(super) fn of(list: List) -> Self {
        Self::from(list, None)
    }

    /// Requests the next page. Returns `None` if the scan has stepped back. Then call it again.
    pub(super) async fn next(&mut self, api: &Api) -> Result<Option<ScannedPage>, JobError> {
        let after = self.at.as_ref().map(|(id, _)| id.as_str());
        let page = match self.list.page(api, after).await {
            Ok(page) if self.starts_over(&page) => return self.step_back(),
            Err(ApiError::Refused { .. }) if after.is_some() => return self.step_back(),
            other => other?,
        };
        let listed: Vec<ListPosition> = page.items.iter().filter_map(|listed| self.list.position(listed)).collect();
        // A page without a readable object does not end the scan.
        let last = listed.last().cloned().or_else(|| page.resume.clone().map(|id| (id, None)));
        let is_stuck = last.is_none() || last.as_ref().map(|(id, _)| id) == self.at.as_ref().map(|(id, _)| id);
        let end = !page.more || is_stuck;
        let newest = last.as_ref().and_then(|(_, created_at)| *created_at);
        if newest > self.furthest {
            (self.furthest, self.setbacks) = (newest, 0);
        }
        self.trail.extend(listed.into_iter().rev().skip(1).take(TRAIL / 2).rev());
        self.trail.drain(..self.trail.len().saturating_sub(TRAIL));
        self.at = last.or_else(|| self.at.take());
        Ok(Some(ScannedPage {
            observations: page.items,
            position: self.at.clone(),
            end,
            observed_at: page.observed_at,
        }))
    }

    /// Returns whether the page starts before its cursor, or was listed before.
    fn starts_over(&self, page: &Page<Observation>) -> bool {
        let Some((_, before)) = &self.at else { return false };
        let Some((first, created_at)) = page.items.iter().find_map(|listed| self.list.position(listed)) else {
            return false;
        };
        let older = matches!((before, created_at), (Some(before), Some(first)) if first < *before);
        older || self.trail.iter().any(|(id, _)| *id == first)
    }

    fn step_back(&mut self) -> Result<Option<ScannedPage>, JobError> {
        self.setbacks += 1;
        self.at = self.trail.pop_back().filter(|_| self.setbacks <= SETBACKS);
        if self.at.is_none() {
            self.trail.clear();
            self.setbacks = 0;
            self.restarts += 1;
            if self.restarts > RESTARTS {
                return Err(JobError::Endless);
            }
            tracing::warn!(
                "a list of WorkOS started again from the first page, probably because the object of the cursor was \
                 deleted; the scan restarts"
            );
        }
        Ok(None)
    }
}
