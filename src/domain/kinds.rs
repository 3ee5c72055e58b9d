//! What is synced, and the event types that belong to it.

use super::event::{Content, Event, Observation};
use super::object::Kind;
use super::role::Refresh;

const ORGANIZATION_TYPES: [&str; 8] = [
    "organization.created",
    "organization.updated",
    "organization.deleted",
    "organization_domain.created",
    "organization_domain.updated",
    "organization_domain.deleted",
    "organization_domain.verified",
    "organization_domain.verification_failed",
];

const MEMBERSHIP_TYPES: [&str; 3] =
    ["organization_membership.created", "organization_membership.updated", "organization_membership.deleted"];

const ROLE_TYPES: [&str; 9] = [
    "role.created",
    "role.updated",
    "role.deleted",
    "organization_role.created",
    "organization_role.updated",
    "organization_role.deleted",
    "permission.created",
    "permission.updated",
    "permission.deleted",
];

/// What is synced (setting `AUTHKIT_SYNC_KINDS`). Users always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Organizations.
    pub organizations: bool,
    /// Memberships, which need organizations.
    pub memberships: bool,
    /// Roles and permissions, which need organizations.
    pub roles: bool,
    /// Ended sessions.
    pub sessions: bool,
    /// Sign-ins from `session.created`.
    pub sign_ins: bool,
}

impl Kinds {
    /// Users alone.
    pub const USERS: Self =
        Self { organizations: false, memberships: false, roles: false, sessions: false, sign_ins: false };

    /// Everything except sign-ins, which have a separate setting.
    pub const ALL: Self = Self { organizations: true, memberships: true, roles: true, sessions: true, ..Self::USERS };

    /// Returns the observation restricted to these kinds. An event about another kind is stored but changes nothing.
    #[must_use]
    pub fn restrict(self, observation: Observation) -> Observation {
        match observation {
            Observation::Event(event) if !self.contain(&event) => {
                Observation::Event(Event { content: Content::Other, ..event })
            }
            other => other,
        }
    }

    /// Returns the types of the events that describe what is synced. WorkOS must send them, and catch-up reads them.
    #[must_use]
    pub fn event_types(self) -> Vec<&'static str> {
        let groups: [(bool, &[&str]); 6] = [
            (true, &["user.created", "user.updated", "user.deleted"]),
            (self.organizations, &ORGANIZATION_TYPES),
            (self.memberships, &MEMBERSHIP_TYPES),
            (self.roles, &ROLE_TYPES),
            (self.sessions, &["session.revoked"]),
            (self.sign_ins, &["session.created"]),
        ];
        groups.into_iter().filter(|(is_synced, _)| *is_synced).flat_map(|(_, types)| types).copied().collect()
    }

    /// Returns whether objects of this kind are synced.
    #[must_use]
    pub fn contains(self, kind: Kind) -> bool {
        match kind {
            Kind::User => true,
            Kind::Organization => self.organizations,
            Kind::Membership => self.memberships,
        }
    }

    fn contain(self, event: &Event) -> bool {
        match &event.content {
            Content::Live { object, .. } => self.contains(object.kind()),
            Content::Deleted(deleted) => self.contains(deleted.kind),
            Content::SignedIn(_) => self.sign_ins,
            Content::SessionRevoked(_) => self.sessions,
            Content::Changed(Refresh::Organization(_)) => self.organizations,
            Content::Changed(Refresh::Roles | Refresh::OrganizationRoles(_)) => self.roles,
            Content::Unusable(_) => Kind::of_event_type(&event.event_type).is_none_or(|(kind, _)| self.contains(kind)),
            Content::Other => true,
        }
    }
}
