//! The event types that a webhook endpoint of this service must receive. `webhook register` registers them, and `doctor` checks
//! them.
//!
//! To add a type, add its name to [`WEBHOOK_EVENT_TYPES`]. WorkOS must offer it for webhook endpoints: not every type of the Events
//! API can be chosen there.

/// The types, grouped by object.
pub const WEBHOOK_EVENT_TYPES: [&str; 25] = [
    "user.created",
    "user.updated",
    "user.deleted",
    "session.created",
    "session.revoked",
    "organization.created",
    "organization.updated",
    "organization.deleted",
    "organization_domain.created",
    "organization_domain.updated",
    "organization_domain.deleted",
    "organization_domain.verified",
    "organization_domain.verification_failed",
    "organization_membership.created",
    "organization_membership.updated",
    "organization_membership.deleted",
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
