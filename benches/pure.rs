//! The parts of a webhook and of a lookup that need neither the database nor the network. Run with `cargo bench --bench pure`.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use authkit_sync::KeyFetchError;
use authkit_sync::dev::workos::{Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::domain::decide::{Stored, decide};
use authkit_sync::domain::event::{Content, Observation};
use authkit_sync::tokens::{KeyCache, KeySource, TokenPolicy, TokenVerifier};
use authkit_sync::workos::signature::{Secret, SignatureHeader, VerifiedBody, WEBHOOK_TOLERANCE};
use authkit_sync::workos::wire;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;

/// The body of a webhook.
fn body(first_name: &str, updated_at: &str) -> Bytes {
    let event = json!({
        "object": "event", "id": "event_01KW", "event": "user.updated", "created_at": updated_at,
        "context": {"client_id": "client_bench"},
        "data": {
            "object": "user", "id": "user_01KW", "email": "ada@example.test", "email_verified": true,
            "first_name": first_name, "last_name": "Quill", "name": "Ada Quill", "profile_picture_url": null,
            "external_id": "crm-1", "metadata": {"plan": "team"}, "last_sign_in_at": null, "locale": "en-GB",
            "created_at": "2026-09-01T08:15:30.412Z", "updated_at": updated_at,
        },
    });
    Bytes::from(event.to_string())
}

fn verified(secret: &Secret, clock: &Clock, body: &Bytes) -> VerifiedBody {
    let header = secret.sign(clock.now(), body);
    let header = SignatureHeader::parse(Some(header.as_bytes()), clock.now(), WEBHOOK_TOLERANCE).unwrap();
    header.verify(std::slice::from_ref(secret), body.clone()).unwrap()
}

fn webhooks(criterion: &mut Criterion) {
    let (secret, clock) = (Secret::new("whsec_a_secret_of_the_usual_length"), Clock::system());
    let older = body("Ada", "2026-09-01T08:15:30.412Z");
    let newer = body("Grace", "2026-09-02T08:15:30.412Z");
    criterion.bench_function("signature check", |bencher| {
        let signed = secret.sign(clock.now(), &newer);
        let secrets = [secret.clone()];
        bencher.iter(|| {
            // The clock is read too, as in the receiver. A long run would exceed the tolerance of one signature.
            let now = black_box(clock.now());
            let header = SignatureHeader::parse(Some(signed.as_bytes()), now, WEBHOOK_TOLERANCE * 100).unwrap();
            header.verify(&secrets, newer.clone()).unwrap()
        });
    });
    let (older, newer) = (verified(&secret, &clock, &older), verified(&secret, &clock, &newer));
    criterion.bench_function("parsing of a webhook", |bencher| bencher.iter(|| wire::event(&newer).unwrap()));
    let Content::Live { object, version } = wire::event(&older).unwrap().content else { unreachable!() };
    let stored = Stored::Live { object, version };
    let observation = Observation::Event(wire::event(&newer).unwrap());
    criterion.bench_function("decide, an update", |bencher| {
        let decided = |mut stored: Stored| (decide(Some(&mut stored), false, &observation), stored);
        bencher.iter_batched(|| stored.clone(), decided, BatchSize::SmallInput);
    });
    let Content::Live { object, .. } = wire::event(&newer).unwrap().content else { unreachable!() };
    criterion.bench_function("user to JSON", |bencher| bencher.iter(|| serde_json::to_vec(&object).unwrap()));
}

/// A fixed set of keys.
struct Keys(Bytes);

impl KeySource for Keys {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, KeyFetchError>> {
        std::future::ready(Ok(self.0.clone())).boxed()
    }
}

fn tokens(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (clock, listen) = (Clock::system(), SocketAddr::from(([127, 0, 0, 1], 0)));
    let options = Options { listen, clock: clock.clone(), seed: 1, state: None };
    let workos = runtime.block_on(SimulatedWorkos::start(options)).unwrap();
    let jwks = Bytes::from(workos.jwks().to_string());
    let policy = TokenPolicy::new(&workos.client_id(), workos.base_url());
    let new_verifier = || {
        let keys = KeyCache::new(Arc::new(Keys(jwks.clone())), clock.clone());
        TokenVerifier::new(policy.clone(), keys, clock.clone())
    };
    let token = |number: usize| workos.token(&format!("user_{number}"), "session_1", 3_600).unwrap();
    let many: Vec<String> = (0..20_000).map(token).collect();
    let (mut number, mut verifier) = (0, new_verifier());
    criterion.bench_function("token verification, each token new", |bencher| {
        // When every token was used, a new verifier has seen none of them.
        let next = || {
            if number % many.len() == 0 {
                verifier = new_verifier();
            }
            number += 1;
            (verifier.clone(), &many[number % many.len()])
        };
        let verified = |(verifier, token): (TokenVerifier, &String)| {
            let identity = runtime.block_on(verifier.verify(token)).unwrap();
            (verifier, identity)
        };
        bencher.iter_batched(next, verified, BatchSize::SmallInput);
    });
    let verifier = new_verifier();
    criterion.bench_function("token verification, the same token", |bencher| {
        bencher.iter(|| runtime.block_on(verifier.verify(&many[0])).unwrap());
    });
    runtime.block_on(workos.stop());
}

criterion_group!(pure, webhooks, tokens);
criterion_main!(pure);
