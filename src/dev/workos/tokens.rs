//! Signing keys, their JWKS, and access tokens in WorkOS's format.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::SimulationError;

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
