//! Writes a batch: live users, inbox and feed in one statement, for a batch of any length.
//!
//! One statement is one round trip, planned once per session, and durable on its own where no transaction is open.

use std::borrow::Cow;
use std::collections::HashSet;

use sqlx::types::Json;
use time::OffsetDateTime;

use super::DbConnection;
use super::StoreError;
use super::changes::{LOCK, NewChange};
use crate::domain::event::{Event, Origin, Outcome};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::User;
use crate::domain::version::Version;

/// An event for the inbox.
pub(crate) struct NewEvent<'a> {
    pub(crate) event: Cow<'a, Event>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    /// Whether the user of the event is deleted, so that the payload must not be stored.
    pub(crate) erased: bool,
}

/// A live user to write.
pub(crate) struct LiveUser<'a> {
    pub(crate) user: &'a User,
    pub(crate) version: &'a Version,
    /// Whether the user has no row yet.
    pub(crate) is_new: bool,
}

/// What a write without a transaction must check: the client ID, and the stored state of the users from which the batch was
/// decided. It is empty if a transaction has checked the client ID and locked the rows.
#[derive(Default)]
pub(crate) struct DecidedFrom<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) ids: Vec<String>,
    /// The revision of each user's row; `None` if the user has no row.
    pub(crate) revisions: Vec<Option<String>>,
}

/// What a batch writes.
pub(crate) struct Writes<'a> {
    pub(crate) decided_from: DecidedFrom<'a>,
    /// Live users, in ID order.
    pub(crate) users: Vec<LiveUser<'a>>,
    /// Whether the write time of every version is updated, also of an unchanged one. Then no scan that is in progress confirms
    /// these versions.
    pub(crate) restamp: bool,
    pub(crate) origin: Origin,
    /// Events, in ID order, each ID once.
    pub(crate) events: Vec<NewEvent<'a>>,
    /// Changes, in the order of the feed.
    pub(crate) changes: Vec<NewChange<'a>>,
}

impl<'a> Writes<'a> {
    /// Returns a write of changes alone, inside a transaction.
    pub(crate) fn of_changes(changes: Vec<NewChange<'a>>) -> Self {
        Self {
            decided_from: DecidedFrom::default(),
            users: Vec::new(),
            restamp: false,
            origin: Origin::CatchUp,
            events: Vec::new(),
            changes,
        }
    }

    /// Returns whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.events.is_empty() && self.changes.is_empty()
    }
}

/// Writes a batch and returns the IDs of the events that were new.
///
/// Either the caller has locked the rows of the updated users, or `decided_from` names every user of the batch. Users and events
/// are written in ID order, so that concurrent transactions cannot deadlock.
///
/// # Errors
/// [`StoreError::Conflict`] if a user has changed since it was read, or if another transaction inserted it first.
pub(crate) async fn write(
    connection: &mut DbConnection<'_>,
    writes: &Writes<'_>,
) -> Result<HashSet<String>, StoreError> {
    let users = &writes.users;
    let live = |value: fn(&User) -> Option<Timestamp>| -> Vec<Option<OffsetDateTime>> {
        users.iter().map(|live| value(live.user).map(OffsetDateTime::from)).collect()
    };
    let observed: Vec<OffsetDateTime> = users.iter().map(|live| live.version.observed_at.into()).collect();
    let events = &writes.events;
    let created: Vec<Option<OffsetDateTime>> =
        events.iter().map(|new| new.event.created_at.map(OffsetDateTime::from)).collect();
    let payloads: Vec<Option<&[u8]>> =
        events.iter().map(|new| (!new.erased).then_some(&new.event.payload[..])).collect();
    let changes = &writes.changes;
    let inserted = users.iter().filter(|live| live.is_new).count();
    let new_events = sqlx::query_file_scalar!(
        "src/store/batch.sql",
        writes.decided_from.client_id,
        &writes.decided_from.ids,
        &writes.decided_from.revisions as _,
        &users.iter().map(|live| &*live.user.id).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.is_new).collect::<Vec<_>>(),
        &users.iter().map(|live| &*live.user.email).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.user.email_verified).collect::<Vec<_>>(),
        &users.iter().map(|live| live.user.first_name.as_deref()).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.user.last_name.as_deref()).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.user.name.as_deref()).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.user.profile_picture_url.as_deref()).collect::<Vec<_>>() as _,
        &users.iter().map(|live| live.user.external_id.as_deref()).collect::<Vec<_>>() as _,
        &users.iter().map(|live| Json(&live.user.metadata)).collect::<Vec<_>>() as _,
        &live(|user| user.last_sign_in_at) as _,
        &users.iter().map(|live| live.user.locale.as_deref()).collect::<Vec<_>>() as _,
        &live(|user| user.created_at) as _,
        &live(|user| Some(user.updated_at)) as _,
        &users.iter().map(|live| Json(&live.user.extra)).collect::<Vec<_>>() as _,
        &observed,
        &users.iter().map(|live| &*live.version.id).collect::<Vec<_>>() as _,
        writes.restamp,
        writes.origin.as_str(),
        &events.iter().map(|new| &*new.event.id).collect::<Vec<_>>() as _,
        &events.iter().map(|new| &*new.event.event_type).collect::<Vec<_>>() as _,
        &events.iter().map(|new| new.event.user_id.as_deref()).collect::<Vec<_>>() as _,
        &created as _,
        &payloads as _,
        &events.iter().map(|new| new.outcome.as_str()).collect::<Vec<_>>() as _,
        &events.iter().map(|new| new.reason.as_deref()).collect::<Vec<_>>() as _,
        LOCK,
        &changes.iter().map(|change| change.kind).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| change.user_id).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| Json(change.changed)).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| change.event.map(|event| &*event.id)).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| change.event.map(|event| &*event.event_type)).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| change.origin.as_str()).collect::<Vec<_>>() as _,
        &changes.iter().map(|change| change.only_if_new).collect::<Vec<_>>(),
        &changes.iter().map(|change| change.object_id).collect::<Vec<_>>() as _,
        i64::try_from(inserted).unwrap_or(i64::MAX)
    )
    .fetch_one(connection)
    .await?;
    Ok(new_events.into_iter().collect())
}
