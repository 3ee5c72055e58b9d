//! Only bodies that WorkOS signed are accepted. Vectors of the signature.

use std::time::Duration;

use authkit_sync::domain::timestamp::Timestamp;
use authkit_sync::workos::signature::{Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use base64::Engine;
use bytes::Bytes;
use serde_json::Value;

use crate::support::fixture;

fn at(millis: &str) -> Timestamp {
    Timestamp::from_unix_micros(millis.parse::<i64>().unwrap() * 1_000)
}

fn accepted(header: &str, secret: &str, body: &Bytes, now: Timestamp, tolerance: Duration) -> bool {
    SignatureHeader::parse(Some(header.as_bytes()), now, tolerance)
        .and_then(|header| header.verify(&[Secret::new(secret)], body.clone()))
        .is_ok()
}

fn body(vector: &Value) -> Bytes {
    let encoded = vector["body_base64"].as_str().unwrap();
    Bytes::from(base64::engine::general_purpose::STANDARD.decode(encoded).unwrap())
}

#[test]
fn every_genuine_vector_verifies_and_is_what_we_would_sign() {
    let vectors = fixture("signature_vectors");
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 10);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        let (secret, t) = (vector["secret"].as_str().unwrap(), vector["timestamp"].as_str().unwrap());
        let header = vector["header"].as_str().unwrap();
        let body = body(vector);
        assert!(accepted(header, secret, &body, at(t), WEBHOOK_TOLERANCE), "{name}");
        let expected = format!("t={t}, v1={}", vector["expected_v1"].as_str().unwrap());
        assert_eq!(Secret::new(secret).sign(at(t), &body), expected, "{name}");
        assert!(!accepted(header, "another secret", &body, at(t), WEBHOOK_TOLERANCE), "{name}");
        let longer = Bytes::from([&body[..], b" "].concat());
        assert!(!accepted(header, secret, &longer, at(t), WEBHOOK_TOLERANCE), "{name} with a space more");
    }
}

#[test]
fn every_invalid_header_is_refused() {
    let vectors = fixture("signature_vectors");
    let of = vectors["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == "plain").unwrap();
    let (secret, t) = (of["secret"].as_str().unwrap(), of["timestamp"].as_str().unwrap());
    let headers = vectors["negative_headers"].as_array().unwrap();
    assert_eq!(headers.len(), 11);
    for negative in headers {
        let name = negative["name"].as_str().unwrap();
        let header = negative["header"].as_str().unwrap();
        // These three headers differ from WorkOS's own format, but contain a valid signature. They should be accepted.
        let harmless = matches!(name, "uppercase_hex" | "no_space_after_comma" | "unknown_component");
        assert_eq!(accepted(header, secret, &body(of), at(t), WEBHOOK_TOLERANCE), harmless, "{name}");
    }
}

#[test]
fn a_signature_is_valid_within_the_tolerance_in_both_directions() {
    let cases = fixture("signature_vectors");
    let cases = cases["clock_tests_now_minus_t"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    let secret = Secret::new("whsec_x");
    let signed_at = at("1788250530456");
    let header = secret.sign(signed_at, b"{}");
    for case in cases {
        let now = Timestamp::from_unix_micros(signed_at.unix_micros() + case["age_ms"].as_i64().unwrap() * 1_000);
        for (tolerance, verdict) in [(180, "webhook_180s"), (30, "actions_30s")] {
            let expected = case[verdict].as_str().unwrap().starts_with("accept");
            let fresh = accepted(&header, "whsec_x", &Bytes::from_static(b"{}"), now, Duration::from_secs(tolerance));
            assert_eq!(fresh, expected, "{case} {verdict}");
        }
    }
}

#[test]
fn during_a_rotation_any_secret_and_any_signature_is_accepted() {
    let (old, new) = (Secret::new("old"), Secret::new("new"));
    let now = at("1788250530456");
    let body = Bytes::from_static(b"{}");
    let header = old.sign(now, &body);
    let parsed = SignatureHeader::parse(Some(header.as_bytes()), now, WEBHOOK_TOLERANCE).unwrap();
    assert!(parsed.verify(&[new.clone(), old.clone()], body.clone()).is_ok());
    assert!(parsed.verify(std::slice::from_ref(&new), body.clone()).is_err());
    assert!(parsed.verify(&[], body.clone()).is_err());
    let two = format!("{}, v1={}", new.sign(now, b"other"), header.rsplit('=').next().unwrap());
    let parsed = SignatureHeader::parse(Some(two.as_bytes()), now, WEBHOOK_TOLERANCE).unwrap();
    assert!(parsed.verify(&[old], body).is_ok());
}

#[test]
fn a_hostile_header_is_refused_without_work() {
    let now = at("1788250530456");
    let v1 = "a".repeat(64);
    let five = format!("t=1788250530456{}", format!(", v1={v1}").repeat(5));
    let long = format!("t=1788250530456, v1={v1}, {}", "x".repeat(1_100));
    let huge = format!("t={}, v1={v1}", "9".repeat(40));
    let twice = format!("t=1788250530456, t=1788250530456, v1={v1}");
    let signed = format!("t=-1788250530456, v1={v1}");
    for header in [five, long, huge, twice, signed, String::new(), "=".into(), ",,,".into(), "t=, v1=".into()] {
        assert!(SignatureHeader::parse(Some(header.as_bytes()), now, WEBHOOK_TOLERANCE).is_err(), "{header}");
    }
    assert!(SignatureHeader::parse(Some(b"t=1788250530456, v1=\xFF"), now, WEBHOOK_TOLERANCE).is_err());
    assert!(SignatureHeader::parse(None, now, WEBHOOK_TOLERANCE).is_err());
}
