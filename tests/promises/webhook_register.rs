//! `webhook register` creates or updates the endpoint at WorkOS, and prints the changes first.

use std::os::unix::fs::PermissionsExt;

use authkit_sync::Kinds;
use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::api::{Api, ApiKey};
use authkit_sync::workos::webhook_endpoints::WebhookEndpoint;
use serde_json::Value;

use crate::support::binary::{Served, free_address};
use crate::support::lab::Lab;
use crate::support::service::until;

const URL: &str = "https://sync.example.test/workos/webhook";

async fn endpoints(lab: &Lab) -> Vec<WebhookEndpoint> {
    let api = Api::new(lab.workos.base_url(), ApiKey::new(lab.workos.api_key()), Clock::system()).unwrap();
    api.webhook_endpoints().await.unwrap()
}

async fn register(lab: &Lab, more: &[&str]) -> (i32, String) {
    let (code, out, err) = lab.run(&[&["webhook", "register", "--url", URL], more].concat()).await;
    (code, out + &err)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_endpoint_is_created_once_with_every_type_and_its_secret_is_printed_once() {
    let lab = Lab::new().await;
    let (code, text) = register(&lab, &["--dry-run"]).await;
    assert_eq!((code, endpoints(&lab).await.len()), (1, 0), "{text}");
    assert!(text.contains(&format!("+ endpoint {URL}")) && text.contains("+ event organization.created"), "{text}");
    let (code, text) = register(&lab, &[]).await;
    let all = endpoints(&lab).await;
    assert_eq!((code, all.len(), all[0].missing(&Kinds::ALL.event_types()).len()), (0, 1, 0), "{text}");
    assert!(text.contains("created: ") && text.matches(all[0].secret().unwrap()).count() == 1, "{text}");
    let (code, again) = register(&lab, &[]).await;
    assert_eq!((code, endpoints(&lab).await.len()), (0, 1), "{again}");
    assert!(again.starts_with("unchanged: ") && !again.contains("whsec"), "{again}");
    assert_eq!(register(&lab, &["--dry-run"]).await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_endpoint_with_missing_types_is_completed_and_keeps_its_other_types() {
    let lab = Lab::new().await;
    lab.workos.add_endpoint_for(URL, "whsec_of_this_endpoint", &["user.created", "invitation.created"]);
    lab.workos.add_endpoint_for("https://other.example.test/hook", "whsec_of_the_other", &["user.created"]);
    lab.workos.disable_endpoints();
    let (code, text) = register(&lab, &[]).await;
    assert_eq!(code, 0, "{text}");
    for part in ["~ status disabled -> enabled", "+ event user.deleted", "updated: "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("+ event user.created") && !text.contains("whsec"), "{text}");
    let all = endpoints(&lab).await;
    assert!(all[0].is_enabled() && all[0].missing(&Kinds::ALL.event_types()).is_empty());
    assert!(all[0].events.iter().any(|name| name == "invitation.created"));
    assert!(!all[1].is_enabled() && all[1].events == ["user.created"], "another endpoint is not touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_file_is_new_and_readable_for_its_owner_alone() {
    let lab = Lab::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("webhook-secret");
    let text_of = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
    let file = path.to_str().unwrap();
    std::fs::write(&path, "of somebody else").unwrap();
    let (code, text) = register(&lab, &["--secret-file", file]).await;
    assert_eq!(
        (code, endpoints(&lab).await.len()),
        (78, 0),
        "nothing is created if the secret cannot be stored: {text}"
    );
    assert_eq!(text_of(&path), "of somebody else");
    std::fs::remove_file(&path).unwrap();
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    assert_eq!(register(&lab, &["--secret-file", file]).await.0, 69);
    lab.workos.set_api_faults(ApiFaults { unknown_types: vec!["role.created".to_owned()], ..ApiFaults::default() });
    let (code, text) = register(&lab, &["--secret-file", file]).await;
    assert!(code == 78 && text.contains("status 422"), "{code} {text}");
    assert!(!path.exists(), "a failed attempt leaves no file");
    lab.workos.set_api_faults(ApiFaults::default());
    let (code, text) = register(&lab, &["--secret-file", file, "--json"]).await;
    let result: Value = serde_json::from_str(text.trim()).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!((code, &result["result"], &result["secret"]), (0, &"created".into(), &Value::Null));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(text_of(&path).trim(), endpoints(&lab).await[0].secret().unwrap());
    assert_eq!(register(&lab, &["--secret-file", file]).await.0, 0, "a second run leaves the file");
    lab.workos.set_api_faults(ApiFaults { mask_secrets: true, ..ApiFaults::default() });
    let other = folder.path().join("other");
    let (code, text) = register(&lab, &["--secret-file", other.to_str().unwrap()]).await;
    assert!(code == 0 && text.contains("does not show the signing secret") && !other.exists(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_arguments_and_a_wrong_key_are_refused_with_the_reason() {
    let lab = Lab::new().await;
    for url in ["http://sync.example.test/hook", "sync.example.test", "ftp://sync.example.test/"] {
        let (code, _, err) = lab.run(&["webhook", "register", "--url", url]).await;
        assert!(code == 64 && err.contains("https://"), "{url}: {err}");
    }
    let (code, _, err) = lab.run_with(&["webhook", "register", "--url", URL], &[("WORKOS_API_KEY", "sk_wrong")]).await;
    assert!(code == 78 && err.contains("rejected the API key"), "{code} {err}");
}

/// The complete procedure: register, start with the secret, receive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_endpoint_receives_the_events() {
    let lab = Lab::new().await;
    sqlx::query("insert into workos.environment (client_id) values ($1)")
        .bind(lab.workos.client_id())
        .execute(&lab.pool)
        .await
        .unwrap();
    let address = free_address();
    let url = format!("http://{address}/workos/webhook");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let (code, out, err) =
        lab.run(&["webhook", "register", "--url", &url, "--secret-file", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{out}{err}");
    let secret = std::fs::read_to_string(&file).unwrap();
    let environment = lab.environment();
    let settings: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let settings = [&settings[..], &[("WORKOS_WEBHOOK_SECRET", secret.trim())]].concat();
    let mut served = Served::start(&lab.database.url(), address, &settings);
    lab.create_user("Ada");
    until("the webhook arrives", async || lab.count("select count(*) from workos.users").await == 1).await;
    assert!(served.terminate().success());
}
