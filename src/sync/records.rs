//! What a batch records in addition to the objects: events in the inbox, sign-ins and changes.

use std::borrow::Cow;

use super::Applied;
use crate::domain::change::Difference;
use crate::domain::decide::Effect;
use crate::domain::event::{Content, Event, Observation, Origin};
use crate::domain::object::Kind;
use crate::domain::timestamp::Timestamp;
use crate::domain::user::LAST_SIGN_IN_AT;
use crate::store::changes::NewChange;
use crate::store::memberships::Ended;
use crate::workos::wire;

/// What a batch does to the inbox.
#[derive(Clone, Copy)]
pub(super) enum Inbox {
    /// Records its events.
    Record(Origin),
    /// Replaces the outcomes of its observations that are quarantined.
    Retry,
}

/// Returns the inbox's entry for an observation. An event always has one. A snapshot has one only if it cannot be applied, or if it
/// is retried.
pub(super) fn inbox_event<'a>(observation: &'a Observation, effect: &Effect, inbox: Inbox) -> Option<Cow<'a, Event>> {
    match observation {
        Observation::Event(event) => Some(Cow::Borrowed(event)),
        Observation::Snapshot(snapshot)
            if matches!(effect, Effect::Quarantined(_)) || matches!(inbox, Inbox::Retry) =>
        {
            Some(Cow::Owned(wire::kept_snapshot(snapshot)))
        }
        Observation::Snapshot(_) | Observation::Gone { .. } => None,
    }
}

/// Returns the user and the time of a sign-in.
pub(super) fn sign_in(observation: &Observation) -> Option<(&str, Timestamp)> {
    match observation {
        Observation::Event(Event { user_id: Some(user), content: Content::SignedIn(at), .. }) => Some((user, *at)),
        _ => None,
    }
}

/// Returns the changes that a batch adds to the feed: every difference in an object except a sign-in alone, and every new event of
/// a type that describes no object. For a retry, the origin of an event is catch-up, and that of a snapshot is reconcile.
///
/// Whether the inbox already held an event is known only after it was written, so that such a change depends on it.
pub(super) fn new_changes<'a>(
    inbox: Inbox,
    observations: &'a [Observation],
    applied: &'a [Applied],
) -> Vec<NewChange<'a>> {
    let changes = observations.iter().zip(applied).filter_map(|(observation, applied)| {
        let event = match observation {
            Observation::Event(event) => Some(event),
            Observation::Snapshot(_) | Observation::Gone { .. } => None,
        };
        let changed = applied.effect.changed_fields();
        let object = observation.object();
        let mut only_if_new = false;
        let kind = match (applied.effect.difference(), event) {
            (Some(Difference::Updated), _) if changed == [LAST_SIGN_IN_AT] => return None,
            (Some(difference), _) => object?.0.word_of_change(difference),
            (None, Some(event)) if is_passed_on(&applied.effect, event) && !applied.is_duplicate => {
                only_if_new = matches!(inbox, Inbox::Record(_));
                &*event.event_type
            }
            (None, _) => return None,
        };
        let object_id =
            if only_if_new { None } else { object.filter(|(kind, _)| *kind != Kind::User).map(|(_, id)| id) };
        let origin = match (inbox, event) {
            (Inbox::Record(origin), _) => origin,
            (Inbox::Retry, Some(_)) => Origin::CatchUp,
            (Inbox::Retry, None) => Origin::Reconcile,
        };
        Some(NewChange { kind, user_id: observation.user_id(), object_id, changed, event, origin, only_if_new })
    });
    changes.collect()
}

/// Returns whether the event itself is a change of the feed, because it describes no object. An event about a role or a domain is
/// not: its change enters the feed when the changed object has been read.
fn is_passed_on(effect: &Effect, event: &Event) -> bool {
    *effect == Effect::Ignored || matches!(event.content, Content::SessionRevoked(_))
}

/// Returns the changes of memberships that ended because their users were deleted.
pub(super) fn ended_changes(ended: &[Ended], origin: Origin) -> Vec<NewChange<'_>> {
    let changes = ended.iter().map(|ended| NewChange {
        kind: Kind::Membership.word_of_change(Difference::Deleted),
        user_id: Some(&ended.user_id),
        object_id: Some(&ended.id),
        changed: &[],
        event: None,
        origin,
        only_if_new: false,
    });
    changes.collect()
}
