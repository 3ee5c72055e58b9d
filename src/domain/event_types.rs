//! The event types that WorkOS documents (its OpenAPI description of August 2026).

/// The documented types, in alphabetic order.
const DOCUMENTED: &[&str] = &[
    "action.authentication.denied",
    "action.user_registration.denied",
    "agent.registration.claim.attempt.created",
    "agent.registration.claim.completed",
    "agent.registration.created",
    "agent.registration.credential.issued",
    "agent.registration.deleted",
    "agent.registration.expired",
    "agent.registration.organization.switched",
    "agent.registration.refreshed",
    "agent.registration.revoked",
    "api_key.created",
    "api_key.revoked",
    "api_key.updated",
    "authentication.email_verification_failed",
    "authentication.email_verification_succeeded",
    "authentication.magic_auth_failed",
    "authentication.magic_auth_succeeded",
    "authentication.mfa_failed",
    "authentication.mfa_succeeded",
    "authentication.oauth_failed",
    "authentication.oauth_succeeded",
    "authentication.passkey_failed",
    "authentication.passkey_succeeded",
    "authentication.password_failed",
    "authentication.password_succeeded",
    "authentication.radar_risk_detected",
    "authentication.reauthentication_succeeded",
    "authentication.sso_failed",
    "authentication.sso_started",
    "authentication.sso_succeeded",
    "authentication.sso_timed_out",
    "connection.activated",
    "connection.deactivated",
    "connection.deleted",
    "connection.saml_certificate_renewal_required",
    "connection.saml_certificate_renewed",
    "dsync.activated",
    "dsync.deleted",
    "dsync.group.created",
    "dsync.group.deleted",
    "dsync.group.updated",
    "dsync.group.user_added",
    "dsync.group.user_removed",
    "dsync.token.created",
    "dsync.token.revoked",
    "dsync.user.created",
    "dsync.user.deleted",
    "dsync.user.updated",
    "email_verification.created",
    "flag.created",
    "flag.deleted",
    "flag.rule_updated",
    "flag.updated",
    "group.created",
    "group.deleted",
    "group.member_added",
    "group.member_removed",
    "group.updated",
    "invitation.accepted",
    "invitation.created",
    "invitation.resent",
    "invitation.revoked",
    "magic_auth.created",
    "organization.created",
    "organization.deleted",
    "organization.updated",
    "organization_domain.created",
    "organization_domain.deleted",
    "organization_domain.updated",
    "organization_domain.verification_failed",
    "organization_domain.verified",
    "organization_membership.created",
    "organization_membership.deleted",
    "organization_membership.updated",
    "organization_role.created",
    "organization_role.deleted",
    "organization_role.updated",
    "password_reset.created",
    "password_reset.succeeded",
    "permission.created",
    "permission.deleted",
    "permission.updated",
    "pipes.connected_account.connected",
    "pipes.connected_account.connection_failed",
    "pipes.connected_account.disconnected",
    "pipes.connected_account.reauthorization_needed",
    "radar.challenge_created",
    "role.created",
    "role.deleted",
    "role.updated",
    "session.created",
    "session.revoked",
    "user.created",
    "user.deleted",
    "user.updated",
    "vault.byok_key.deleted",
    "vault.byok_key.verification_completed",
    "vault.data.created",
    "vault.data.deleted",
    "vault.data.read",
    "vault.data.updated",
    "vault.dek.decrypted",
    "vault.dek.read",
    "vault.kek.created",
    "vault.kek.deleted",
    "vault.metadata.read",
    "vault.names.listed",
    "waitlist_user.approved",
    "waitlist_user.created",
    "waitlist_user.denied",
];

/// Returns whether a name or pattern (`user.*`, `*`) selects a documented type. WorkOS adds types without notice.
#[must_use]
pub fn is_documented(name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(stem) => DOCUMENTED.iter().any(|known| known.starts_with(stem)),
        None => DOCUMENTED.contains(&name),
    }
}

/// Returns the documented types.
pub fn documented() -> impl Iterator<Item = &'static str> {
    DOCUMENTED.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::kinds::Kinds;

    #[test]
    fn what_is_synced_is_documented_and_a_misspelled_type_is_not() {
        let synced = Kinds { sign_ins: true, ..Kinds::ALL }.event_types();
        assert!(synced.into_iter().all(is_documented));
        for name in ["*", "user.*", "dsync.*", "dsync.user.*", "authentication.sso_failed", "vault.data.read"] {
            assert!(is_documented(name), "{name}");
        }
        for name in ["user.create", "users.*", "user", "User.created", "session.*.created"] {
            assert!(!is_documented(name), "{name}");
        }
    }
}
