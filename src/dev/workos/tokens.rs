//! Signing keys, their JWKS, and access tokens in WorkOS's format.

use std::sync::PoisonError;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaPublicKeyComponents};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::SimulatedWorkos;
use super::collection::{Object, object, text};
use super::fault::{Fault, SimulationError};
use super::roles::slugs_of;
use super::state::State;

/// Lifetime of an access token in seconds, the default of WorkOS.
const TOKEN_LIFE: i64 = 300;

/// What an access token contains.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenRequest {
    /// The organization. `role`, `roles` and `permissions` are then those of the user's active membership.
    pub org_id: Option<String>,
    /// The ID of a session. Default: the user signs in, which creates a session.
    pub session_id: Option<String>,
    /// Replaces the role.
    pub role: Option<String>,
    /// Replaces the roles.
    pub roles: Option<Vec<String>>,
    /// Replaces the permissions.
    pub permissions: Option<Vec<String>>,
    /// Lifetime in seconds. Default: 300.
    pub expires_in_s: Option<i64>,
    /// Additional or replaced claims, as a JWT template adds them. A claim that is null is removed.
    pub claims: Object,
}

impl SimulatedWorkos {
    /// Signs the user in and returns an access token.
    ///
    /// # Errors
    /// [`Fault`] if the user does not exist.
    pub fn sign_in(&self, id: &str) -> Result<String, Fault> {
        self.issue_token(id, TokenRequest::default())
    }

    /// Signs the user in to an organization and returns an access token.
    ///
    /// # Errors
    /// [`Fault`] if the user does not exist, or is not an active member of the organization.
    pub fn sign_in_to(&self, id: &str, organization_id: &str) -> Result<String, Fault> {
        self.issue_token(id, TokenRequest { org_id: Some(organization_id.to_owned()), ..TokenRequest::default() })
    }

    /// Returns an access token of a user. With a session, it is the token that a refresh of this session returns, also for another
    /// organization.
    ///
    /// # Errors
    /// [`Fault`] if the user does not exist, is not an active member of the organization, or the session has ended or belongs to
    /// another user.
    pub fn issue_token(&self, user_id: &str, request: TokenRequest) -> Result<String, Fault> {
        let organization = request.org_id.as_deref();
        let session = match &request.session_id {
            Some(id) => self.read(|state| state.check_session(user_id, id)).map(|()| id.clone())?,
            None => self.change(|state, now| state.sign_in(user_id, organization, now))?,
        };
        let mut claims = object(json!({"sub": user_id, "sid": session}));
        if let Some(organization) = organization {
            claims.extend(self.read(|state| state.organization_claims(user_id, organization))?);
        }
        claims.extend(request.role.map(|role| ("role".to_owned(), json!(role))));
        claims.extend(request.roles.map(|roles| ("roles".to_owned(), json!(roles))));
        claims.extend(request.permissions.map(|permissions| ("permissions".to_owned(), json!(permissions))));
        claims.extend(request.claims);
        let token = self.token_with(Value::Object(claims), request.expires_in_s.unwrap_or(TOKEN_LIFE));
        token.map_err(|_| Fault::bad("internal", "the token could not be signed"))
    }

    /// Returns an access token with a lifetime of `life` seconds. The user and the session need not exist.
    ///
    /// # Errors
    /// [`SimulationError`] if it cannot be signed.
    pub fn token(&self, user: &str, session: &str, life: i64) -> Result<String, SimulationError> {
        self.token_with(json!({"sub": user, "sid": session}), life)
    }

    /// Returns a token with additional or replaced claims. A claim that is null is removed.
    ///
    /// # Errors
    /// [`SimulationError`] if it cannot be signed.
    pub fn token_with(&self, more: Value, life: i64) -> Result<String, SimulationError> {
        let now = self.0.clock.now();
        let (client_id, jti, now) = (self.client_id(), self.state().ids.ulid(now), now.unix_seconds());
        let issuer = format!("{}/user_management/{client_id}", self.0.base_url);
        let mut claims = json!({"iss": issuer, "jti": jti, "client_id": client_id, "iat": now, "exp": now + life});
        if let (Value::Object(claims), Value::Object(more)) = (&mut claims, more) {
            claims.extend(more);
            claims.retain(|_, value| !value.is_null());
        }
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.last().ok_or_else(|| SimulationError::new("the simulated WorkOS has no signing key"))?.sign(&claims)
    }

    /// Signs new tokens with a new key. Older keys stay published, as during a rotation at WorkOS.
    ///
    /// # Errors
    /// [`SimulationError`] if no key can be generated.
    pub fn rotate_keys(&self) -> Result<(), SimulationError> {
        let key = SigningKey::generate(self.next_id("sso_oidc_key_pair"))?;
        self.state().signing_keys.push((key.kid.clone(), key.export()?));
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key);
        self.save();
        Ok(())
    }

    /// Answers requests for the keys with this status. `None` serves the keys again.
    pub fn refuse_keys(&self, status: Option<StatusCode>) {
        *self.0.refuse_keys.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// Returns the published keys.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "keys": keys.iter().map(SigningKey::jwk).collect::<Vec<_>>() })
    }
}

impl State {
    /// Checks that a user can refresh a session.
    fn check_session(&self, user_id: &str, session_id: &str) -> Result<(), Fault> {
        self.user(user_id)?;
        let session = self.sessions.get(session_id).ok_or_else(|| Fault::not_found("Session", session_id))?;
        if text(session, "status") != "active" || text(session, "user_id") != user_id {
            return Err(Fault::grant("The session is over."));
        }
        Ok(())
    }

    /// Returns the claims about the user's current membership in an organization.
    fn organization_claims(&self, user_id: &str, organization_id: &str) -> Result<Object, Fault> {
        let membership = self.active_membership(user_id, organization_id)?;
        let roles: Vec<&str> = slugs_of(membership).collect();
        let role = membership.get("role").and_then(|role| role.get("slug"));
        let permissions = self.permissions_of(organization_id, &roles);
        Ok(object(json!({"org_id": organization_id, "role": role, "roles": roles, "permissions": permissions})))
    }
}

/// An RSA key.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub(super) kid: String,
    pair: KeyPair,
}

fn key_error(_: impl Sized) -> SimulationError {
    SimulationError::new("a signing key could not be generated, read or used")
}

impl SigningKey {
    pub(super) fn generate(kid: String) -> Result<Self, SimulationError> {
        Ok(Self { kid, pair: KeyPair::generate(KeySize::Rsa2048).map_err(key_error)? })
    }

    /// Reads a key that [`SigningKey::export`] wrote.
    pub(super) fn import(kid: &str, pkcs8: &str) -> Result<Self, SimulationError> {
        let der = STANDARD.decode(pkcs8).map_err(key_error)?;
        Ok(Self { kid: kid.to_owned(), pair: KeyPair::from_pkcs8(&der).map_err(key_error)? })
    }

    pub(super) fn export(&self) -> Result<String, SimulationError> {
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&self.pair).map_err(key_error)?;
        Ok(STANDARD.encode(der.as_ref()))
    }

    /// Returns its entry in the JWKS document.
    pub(super) fn jwk(&self) -> Value {
        let public: RsaPublicKeyComponents<Vec<u8>> = self.pair.public_key().into();
        let (n, e) = (URL_SAFE_NO_PAD.encode(public.n), URL_SAFE_NO_PAD.encode(public.e));
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": n, "e": e})
    }

    /// Returns a compact JWS of the claims.
    pub(super) fn sign(&self, claims: &Value) -> Result<String, SimulationError> {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.kid}).to_string();
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
            .map_err(key_error)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
