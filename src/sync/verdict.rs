//! What one observation comes to: in the inbox's words, and as a change of its user.

use std::borrow::Cow;

use super::Applied;
use super::batch::Inbox;
use crate::domain::change::Difference;
use crate::domain::decide::{Decision, Seen, Stored, decide};
use crate::domain::event::{Content, Event, Observation, Origin, Outcome};
use crate::domain::timestamp::Timestamp;
use crate::domain::user::LAST_SIGN_IN_AT;
use crate::store::changes::NewChange;
use crate::workos::wire;

/// What of an observation goes into the inbox: an event always, a snapshot only when it could not be applied, or is being
/// tried again.
pub(super) fn inbox_event<'a>(observation: &'a Observation, outcome: Outcome, inbox: Inbox) -> Option<Cow<'a, Event>> {
    match observation {
        Observation::Event(event) => Some(Cow::Borrowed(event)),
        Observation::Snapshot(snapshot) if outcome == Outcome::Quarantined || matches!(inbox, Inbox::Retry) => {
            Some(Cow::Owned(wire::kept_snapshot(snapshot)))
        }
        Observation::Snapshot(_) | Observation::Gone { .. } => None,
    }
}

/// A user's state, as far as a change is told by it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Unknown,
    Live,
    Deleted,
}

impl Life {
    pub(super) fn of(stored: &Stored) -> Self {
        match stored {
            Stored::Absent => Self::Unknown,
            Stored::Live { .. } => Self::Live,
            Stored::Tombstone { .. } => Self::Deleted,
        }
    }

    pub(super) fn difference(before: Option<Self>, after: Option<Self>) -> Option<Difference> {
        match (before?, after?) {
            (Self::Unknown, Self::Live) => Some(Difference::Created),
            (Self::Live, Self::Live) => Some(Difference::Updated),
            (Self::Unknown | Self::Live, Self::Deleted) => Some(Difference::Deleted),
            // A tombstone whose instant moved is no news to anybody.
            _ => None,
        }
    }
}

/// What an observation does to its user, in the inbox's words.
pub(super) struct Verdict<'a> {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<&'a str>,
    /// The user is not what it was; with the names of the fields in which a live one differs.
    pub(super) news: Option<Vec<String>>,
}

impl<'a> Verdict<'a> {
    pub(super) fn not_applied(outcome: Outcome, reason: Option<&'a str>) -> Self {
        Self { outcome, reason, news: None }
    }
}

/// Joins the observation into its user, and says what that did.
pub(super) fn judge(observation: &Observation, user: Option<&mut Stored>) -> Verdict<'static> {
    let seen = match observation {
        Observation::Snapshot(snapshot) => Seen::Live(&snapshot.user, &snapshot.version),
        Observation::Gone { confirmed_at, .. } => Seen::Deleted(Some(*confirmed_at)),
        Observation::Event(event) => match &event.content {
            Content::Live { user, version } => Seen::Live(user, version),
            Content::Deleted => Seen::Deleted(event.created_at),
            Content::SignedIn(_) | Content::Other => return Verdict::not_applied(Outcome::Ignored, None),
            Content::Unusable(reason) => return Verdict::not_applied(Outcome::Quarantined, Some(reason)),
        },
    };
    let applied = |news| Verdict { outcome: Outcome::Applied, reason: None, news };
    let stale = |reason| Verdict::not_applied(Outcome::Stale, Some(reason));
    match user.map(|stored| decide(stored, seen)) {
        Some(Decision::Applied { changed }) => applied(Some(changed)),
        Some(Decision::Confirmed) => applied(None),
        Some(Decision::Older) => stale("the row stands on this observation or a later one"),
        Some(Decision::Deleted) => stale("the user is deleted"),
        None => Verdict::not_applied(Outcome::Quarantined, Some("it names no user")),
    }
}

/// The sign-in an observation tells of.
pub(super) fn sign_in(observation: &Observation) -> Option<(&str, Timestamp)> {
    match observation {
        Observation::Event(Event { user_id: Some(user), content: Content::SignedIn(at), .. }) => Some((user, *at)),
        _ => None,
    }
}

/// What a batch has to tell downstream: every difference in a user but for a sign-in, and every event of another type that is
/// new here. What is tried again counts as caught up; a snapshot among it as found by comparing.
pub(super) fn news<'a>(inbox: Inbox, observations: &'a [Observation], applied: &'a [Applied]) -> Vec<NewChange<'a>> {
    let told = observations.iter().zip(applied).filter_map(|(observation, applied)| {
        let event = match observation {
            Observation::Event(event) => Some(event),
            Observation::Snapshot(_) | Observation::Gone { .. } => None,
        };
        let kind = match (applied.difference, event) {
            (Some(Difference::Updated), _) if applied.changed == [LAST_SIGN_IN_AT] => return None,
            (Some(difference), _) => difference.as_str(),
            (None, Some(event)) if applied.outcome == Outcome::Ignored && !applied.duplicate => &event.event_type,
            (None, _) => return None,
        };
        let origin = match (inbox, event) {
            (Inbox::Record(origin), _) => origin,
            (Inbox::Retry, Some(_)) => Origin::CatchUp,
            (Inbox::Retry, None) => Origin::Reconcile,
        };
        Some(NewChange { kind, user_id: observation.user_id(), changed: changed(applied), event, origin })
    });
    told.collect()
}

/// A user who was not here before differs in everything, which goes without saying.
fn changed(applied: &Applied) -> &[String] {
    if applied.difference == Some(Difference::Updated) { &applied.changed } else { &[] }
}
