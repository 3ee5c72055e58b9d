//! Promise 9: no personal data and no secret in a log line at any level, or in the response to a rejected caller.

use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use bytes::Bytes;
use serde_json::json;
use sqlx::Executor;

use crate::support::binary::{Served, free_address};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::fixture;
use crate::support::service::{SECRET, until};

/// A whole run: applied, stale, quarantined and refused events, good and bad tokens, a failing database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_run_at_trace_logs_no_personal_data_and_no_secret() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let mut served = Served::start(
        &database.url(),
        free_address(),
        &[("RUST_LOG", "trace"), ("WORKOS_WEBHOOK_SECRET", "whsec_Rotated0ldSecret,whsec_QmFzZTY0TG9va2luZ0J1dE5vdA")],
    );
    let client = http_client().unwrap();
    let mut heard = String::new();
    let deliver = async |body: Bytes, secret: &str| {
        let signature = Secret::new(secret).sign(Clock::system().now(), &body);
        let v1 = signature.rsplit('=').next().unwrap().to_owned();
        let request = client.post(served.url("/workos/webhook")).header("workos-signature", signature);
        (v1, request.body(body).send().await.unwrap().text().await.unwrap())
    };
    let secret_user = |name: &str, ms| {
        let mut data = user("user_1", name, ms);
        data["email"] = json!("Ada.Personal@example.test");
        data["external_id"] = json!("crm-personal");
        data
    };
    let mut secrets = Vec::new();
    let mut long = secret_user("Adalovelace", 3);
    long["external_id"] = json!(
        (0..9_000_u32)
            .map(|at| char::from_u32(0x4E00 + at.wrapping_mul(2_654_435_761) % 20_000).unwrap())
            .collect::<String>()
    );
    for (event, secret) in [
        (body("event_1", "user.created", 1, &secret_user("Adalovelace", 1)), SECRET),
        (body("event_2", "user.updated", 1, &secret_user("Adalovelace", 0)), SECRET),
        (body("event_3", "user.updated", 3, &long), SECRET),
        (body("event_4", "user.updated", 3, &json!({"id": "user_1", "email": 7, "first_name": "Adalovelace"})), SECRET),
        (body("event_5", "user.updated", 9, &secret_user("Adalovelace", 9)), "whsec_not_ours"),
        (Bytes::from_static(b"{\"id\":\"Adalovelace"), SECRET),
    ] {
        let (v1, answer) = deliver(event, secret).await;
        secrets.push(v1);
        heard.push_str(&answer);
    }
    for event in with_secrets_of_workos() {
        heard.push_str(&deliver(event, SECRET).await.1);
    }
    // A database error whose text quotes the row.
    pool.execute(
        "create function fail() returns trigger language plpgsql as
        $$ begin raise exception 'Adalovelace Ada.Personal@example.test' using detail = 'Adalovelace', constraint = 'some_check', errcode = '23514'; end $$;
        create trigger fail before insert on workos.events for each row execute function fail()",
    )
    .await
    .unwrap();
    heard.push_str(&deliver(body("event_6", "user.updated", 20, &secret_user("Adalovelace", 20)), SECRET).await.1);
    for vector in fixture("access_tokens")["vectors"].as_array().unwrap() {
        let token = vector["token"].as_str().unwrap();
        let answer = client.get(served.url("/auth/user")).bearer_auth(token).send().await.unwrap();
        heard.push_str(&answer.text().await.unwrap());
        secrets.extend(token.rsplit('.').map(str::to_owned).filter(|part| part.len() > 20));
    }
    let page = client.get(format!("http://{}/metrics", served.ops)).send().await.unwrap().text().await.unwrap();
    until("the log has the last request", async || served.log().matches("http.route").count() >= 30).await;
    assert!(served.terminate().success());
    let log = served.log();
    assert!(
        log.contains("TRACE") && log.contains("some_check") && log.contains("23514"),
        "it logs at trace, and what failed"
    );
    secrets.extend(["198.51.100.77", "PersonalBrowser", "DomainSecret", "InvitationSecret"].map(str::to_owned));
    secrets.extend(["whsec_".into(), "QmFzZTY0TG9va2luZ0J1dE5vdA".into(), "Rotated0ldSecret".into()]);
    for (place, text) in [("the log", &log), ("an answer", &heard), ("a metric", &page)] {
        assert_no_personal_data(place, text, &secrets);
    }
}

/// Events with secrets that WorkOS puts into ordinary objects; the third one is quarantined.
fn with_secrets_of_workos() -> impl Iterator<Item = Bytes> {
    let session = json!({
        "id": "session_1", "user_id": "user_1", "created_at": "2026-09-01T08:00:00Z", "auth_method": "password",
        "ip_address": "198.51.100.77", "user_agent": "PersonalBrowser/5.0",
    });
    let organization = json!({
        "id": "org_1", "name": "Acme", "updated_at": "2026-09-01T08:00:00Z",
        "domains": [{"id": "org_domain_1", "organization_id": "org_1", "verification_token": "DomainSecret"}],
    });
    let invitation = json!({"id": "invitation_1", "token": "InvitationSecret", "accept_invitation_url": "https://InvitationSecret/"});
    [
        ("session.created", session.clone()),
        ("session.revoked", session.clone()),
        ("session.revoked", json!([session])),
        ("organization_domain.created", organization["domains"][0].clone()),
        ("organization.created", organization),
        ("invitation.created", invitation),
    ]
    .into_iter()
    .map(|(event_type, data)| body(&unique("event"), event_type, 1, &data))
}

fn assert_no_personal_data(place: &str, text: &str, secrets: &[String]) {
    let persons = ["Adalovelace", "Ada.Personal", "example.test", "Quill", "crm-personal", "support@"];
    // A fixture's issuer is a host under example.test, and an issuer is not personal data.
    let text = text.replace("customer.example.test", "");
    for word in persons.iter().copied().chain(secrets.iter().map(String::as_str)) {
        let line = text.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "{place} holds {word}: {line:?}");
    }
}
