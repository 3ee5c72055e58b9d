//! A walk over WorkOS's list of users, oldest first.
//!
//! A page is asked for by the last user of the page before. That user may be deleted meanwhile, and what WorkOS does then
//! is not known: it may go on, refuse, or silently begin again ([facts](crate::docs::protocol#list-of-users)). So a page that does not lie
//! behind its cursor is asked for again by an earlier user, and at worst the walk begins again, a bounded number of times.

use std::collections::VecDeque;

use super::job::JobError;
use crate::domain::event::Observation;
use crate::domain::timestamp::Timestamp;
use crate::workos::api::{Api, ApiError, Page};

/// A user that was listed, and when WorkOS created it.
pub(super) type ListPosition = (String, Option<Timestamp>);

/// Earlier users kept to step back to.
const TRAIL: usize = 200;

/// A walk steps back so often without getting further, then it begins again; and that so often.
const SETBACKS: u32 = 32;
const RESTARTS: u32 = 5;

/// A walk under way.
#[derive(Clone, Debug, Default)]
pub(super) struct ListScan {
    /// The user whose successors are asked for; none at the beginning.
    at: Option<ListPosition>,
    /// Users before that one, latest last.
    trail: VecDeque<ListPosition>,
    /// The latest creation met.
    furthest: Option<Timestamp>,
    setbacks: u32,
    restarts: u32,
}

/// One page of it.
#[derive(Debug)]
pub(super) struct ScannedPage {
    /// The users, as observations for the write path.
    pub(super) observations: Vec<Observation>,
    /// Where the walk stands behind it.
    pub(super) position: Option<ListPosition>,
    /// Nothing follows.
    pub(super) end: bool,
    /// WorkOS's clock.
    pub(super) observed_at: Timestamp,
}

impl ListScan {
    /// Goes on behind a user, or begins.
    pub(super) fn from(at: Option<ListPosition>) -> Self {
        Self { at, ..Self::default() }
    }

    /// Asks for the next page; `None` when it has to be asked for again, from elsewhere.
    pub(super) async fn next(&mut self, api: &Api) -> Result<Option<ScannedPage>, JobError> {
        let after = self.at.as_ref().map(|(id, _)| id.as_str());
        let page = match api.users(after).await {
            Ok(page) if self.starts_over(&page) => return self.step_back(),
            Err(ApiError::Refused { .. }) if after.is_some() => return self.step_back(),
            other => other?,
        };
        let listed: Vec<ListPosition> = page.items.iter().filter_map(position).collect();
        // A page of which nothing can be read is no reason to stop.
        let last = listed.last().cloned().or_else(|| page.resume.clone().map(|id| (id, None)));
        let stands_still = last.is_none() || last.as_ref().map(|(id, _)| id) == self.at.as_ref().map(|(id, _)| id);
        let end = !page.more || stands_still;
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

    /// The page lies before its cursor, or has been here already.
    fn starts_over(&self, page: &Page<Observation>) -> bool {
        let Some((_, before)) = &self.at else { return false };
        let Some((first, created_at)) = page.items.iter().find_map(position) else { return false };
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
            tracing::warn!("the last user of a page is gone and WorkOS's list starts over; so does the walk");
        }
        Ok(None)
    }
}

fn position(listed: &Observation) -> Option<ListPosition> {
    let created_at = match listed {
        Observation::Snapshot(snapshot) => snapshot.user.created_at,
        _ => None,
    };
    Some((listed.user_id()?.to_owned(), created_at))
}
