//! The consequences of the end of a user, an organization or a membership, and whether WorkOS creates events for them.

use serde::{Deserialize, Serialize};

use super::SimulatedWorkos;

/// The events that WorkOS creates for consequences of a change. WorkOS does not document whether it creates them, so by default
/// there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cascades {
    /// `organization_membership.deleted` when the user or the organization is deleted, `organization_domain.deleted` when the
    /// organization is deleted, and `organization_membership.updated` when a role of the member is deleted.
    pub memberships: bool,
    /// `session.revoked` when the user or the organization is deleted, or the membership is deactivated.
    pub sessions: bool,
}

impl SimulatedWorkos {
    /// Selects the events of consequences.
    pub fn set_cascades(&self, cascades: Cascades) {
        self.state().cascades = cascades;
    }
}
