//! The simulated WorkOS behaves like the real one: shapes, pages, deliveries, tokens.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use authkit_sync::AuthKit;
use authkit_sync::dev::workos::{ApiFaults, Faults, Options, SimulatedWorkos};
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::http::http_client;
use authkit_sync::workos::signature::Secret;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::database::TestDatabase;
use crate::support::fixture;
use crate::support::lab::object;
use crate::support::service::Answer;

pub(crate) async fn workos(state: Option<PathBuf>) -> SimulatedWorkos {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    SimulatedWorkos::start(Options { listen, clock: Clock::system(), seed: 7, state }).await.unwrap()
}

pub(crate) fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A simulated WorkOS and a client of its API.
pub(crate) struct Api {
    client: reqwest::Client,
    pub(crate) workos: SimulatedWorkos,
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self { client: http_client().unwrap(), workos: workos(None).await }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let url = format!("{}{path}", self.workos.base_url());
        let mut request = self.client.request(method.parse().unwrap(), url).bearer_auth(self.workos.api_key());
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::of(request.send().await.unwrap()).await
    }
}

#[tokio::test]
async fn users_and_events_have_the_formats_of_workos() {
    let api = Api::start().await;
    let created = api
        .call(
            "POST",
            "/user_management/users",
            Some(json!({"email": "a@example.test", "metadata": {"a": "1", "b": "2"}})),
        )
        .await;
    assert_eq!(created.status, 201);
    assert!(!created.header("x-request-id").is_empty() && !created.header("date").is_empty());
    let user = created.json();
    assert_eq!(keys(&user), keys(&fixture("event.user.created")["data"]));
    let path = format!("/user_management/users/{}", user["id"].as_str().unwrap());
    let taken = api.call("POST", "/user_management/users", Some(json!({"email": "A@Example.test"}))).await;
    assert_eq!(taken.status, 422);
    let updated = api
        .call(
            "PUT",
            &path,
            Some(json!({"first_name": "Ada", "external_id": "crm-1", "metadata": {"a": null, "c": "3"}})),
        )
        .await
        .json();
    assert_eq!(updated["metadata"], json!({"b": "2", "c": "3"}), "metadata is partial, null deletes");
    assert_eq!(updated["name"], "Ada");
    assert_eq!(api.call("GET", "/user_management/users/external_id/crm-1", None).await.json(), updated);
    assert_eq!(api.call("DELETE", &path, None).await.status, 200);
    let gone = api.call("GET", &path, None).await;
    assert_eq!((gone.status, gone.json()["code"].clone()), (404, json!("entity_not_found")));
    let events = api.workos.users();
    assert!(events.is_empty());
    let events = api.call("GET", "/events?events=user.created,user.updated,user.deleted&limit=100", None).await.json();
    let types: Vec<&str> =
        events["data"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(types, ["user.created", "user.updated", "user.deleted"]);
    assert_eq!(keys(&events["data"][1]), keys(&fixture("event.user.updated")));
    assert_eq!(events["data"][1]["context"]["previous_attributes"]["first_name"], Value::Null);
    assert_eq!(events["data"][2]["data"]["first_name"], "Ada", "a deletion carries the whole user");
    let unauthorized = api.client.get(format!("{}{path}", api.workos.base_url())).send().await.unwrap();
    assert_eq!(Answer::of(unauthorized).await.json(), fixture("errors")["bad_key_401"]["body"]);
}

#[tokio::test]
async fn lists_page_both_ways_and_events_only_forward() {
    let api = Api::start().await;
    let mut ids = Vec::new();
    for at in 0..25 {
        let user = api.workos.create_user(&object(json!({"email": format!("u{at}@example.test")}))).unwrap();
        ids.push(user["id"].as_str().unwrap().to_owned());
    }
    let page = async |query: &str| {
        let page = api.call("GET", &format!("/user_management/users?{query}"), None).await.json();
        let ids: Vec<String> =
            page["data"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
        (ids, page["list_metadata"].clone())
    };
    let (first, meta) = page("order=asc&limit=10").await;
    assert_eq!((&first[..], &meta["before"], &meta["after"]), (&ids[..10], &Value::Null, &json!(ids[9])));
    let (last, meta) = page(&format!("order=asc&limit=10&after={}", ids[19])).await;
    assert_eq!((&last[..], &meta["after"]), (&ids[20..], &Value::Null));
    let (back, _) = page(&format!("order=asc&limit=10&before={}", ids[20])).await;
    assert_eq!(back, ids[10..20]);
    let (newest, _) = page("limit=3").await;
    assert_eq!(newest, [ids[24].clone(), ids[23].clone(), ids[22].clone()], "newest first by default");
    assert_eq!(page("email=U7@EXAMPLE.test").await.0, [ids[7].clone()]);
    for bad in ["limit=0", "limit=101", "limit=x", "order=up"] {
        assert_eq!(api.call("GET", &format!("/user_management/users?{bad}"), None).await.status, 422, "{bad}");
    }
    let unnamed = api.call("GET", "/events", None).await;
    assert_eq!((unnamed.status, unnamed.json()), (400, fixture("errors")["events_param_missing_400"]["body"].clone()));
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        // `order` is ignored, as observed at WorkOS.
        let page =
            api.call("GET", &format!("/events?events=user.created&order=desc&limit=10{after}"), None).await.json();
        seen.extend(
            page["data"].as_array().unwrap().iter().map(|event| event["data"]["id"].as_str().unwrap().to_owned()),
        );
        match page["list_metadata"]["after"].as_str() {
            Some(cursor) => after = format!("&after={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn deliveries_are_retried_until_accepted_and_as_unreliable_as_configured() {
    let workos = workos(None).await;
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    let endpoint = Router::new().route(
        "/hook",
        post(move || {
            let hit = counted.fetch_add(1, Ordering::SeqCst);
            async move { if hit < 2 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK } }
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, endpoint).await });
    workos.add_endpoint(&url);
    workos.create_user(&object(json!({"email": "a@example.test"}))).unwrap();
    workos.wait_until_delivered().await;
    let statuses: Vec<_> = workos.attempts().iter().map(|attempt| attempt.status).collect();
    assert_eq!(statuses, [Some(503), Some(503), Some(200)]);
    workos.set_faults(Faults { duplicate: 100, ..Faults::default() });
    workos.create_user(&object(json!({"email": "b@example.test"}))).unwrap();
    workos.wait_until_delivered().await;
    assert_eq!(hits.load(Ordering::SeqCst), 5);
    workos.set_faults(Faults { drop: 100, ..Faults::default() });
    workos.create_user(&object(json!({"email": "c@example.test"}))).unwrap();
    workos.wait_until_delivered().await;
    assert_eq!(hits.load(Ordering::SeqCst), 5);
    server.abort();
}

#[tokio::test]
async fn the_api_is_late_wrongly_dated_and_unreadable_as_configured() {
    let api = Api::start().await;
    let get = async |path: &str| api.call("GET", path, None).await;
    let list = async || get("/events?events=user.created&limit=100").await.json()["data"].clone();
    let create =
        |name: &str| api.workos.create_user(&object(json!({"email": format!("{name}@example.test")}))).unwrap();
    let told = |faults: ApiFaults| api.workos.set_api_faults(faults);
    create("first");
    told(ApiFaults { late: 100, late_by_s: 300, ..ApiFaults::default() });
    create("late");
    told(ApiFaults { unreadable_last: true, ..ApiFaults::default() });
    create("last");
    let events = list().await;
    let created = |at: usize| events[at]["created_at"].as_str().unwrap();
    assert!(created(1) < created(0) && created(0) <= created(2), "{events}");
    assert!(events[0]["id"].as_str() < events[1]["id"].as_str(), "IDs keep the listing order");
    assert_eq!((events[1]["id"].is_string(), &events[2]["id"]), (true, &Value::Null));
    told(ApiFaults { unreadable_page: true, ..ApiFaults::default() });
    assert!(list().await.as_array().unwrap().iter().all(|event| event["id"].is_null()));
    let year = async || -> u32 {
        get("/events?events=user.created").await.header("date").split(' ').nth(3).unwrap().parse().unwrap()
    };
    let this_year = year().await;
    told(ApiFaults { date_offset_s: 2 * 366 * 86_400, ..ApiFaults::default() });
    assert!(year().await > this_year);
    for (faults, status) in [
        (ApiFaults { rate_limit: 100, retry_after_s: Some(30), ..ApiFaults::default() }, 429),
        (ApiFaults { error: 100, retry_after_s: Some(30), ..ApiFaults::default() }, 503),
    ] {
        told(faults);
        let answer = get("/user_management/users").await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, "30"));
    }
    told(ApiFaults { emulator_not_found: true, ..ApiFaults::default() });
    let unknown = get("/user_management/users/user_1").await;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("not_found")));
    assert_eq!(unknown.json().get("entity_id"), None);
    let missing_routes = vec!["/user_management/users/".to_owned()];
    for missing_routes_html in [false, true] {
        told(ApiFaults { missing_routes: missing_routes.clone(), missing_routes_html, ..ApiFaults::default() });
        let missing = get("/user_management/users/user_1").await;
        assert_eq!((missing.status, missing.text.contains("Cannot GET /")), (404, !missing_routes_html));
        assert_eq!(get("/user_management/users").await.status, 200);
    }
}

#[tokio::test]
async fn the_state_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = Some(folder.path().join("workos.json"));
    let first = workos(file.clone()).await;
    let user = first.create_user(&object(json!({"email": "a@example.test"}))).unwrap();
    let before = (first.client_id(), first.api_key(), first.webhook_secret(), first.jwks(), first.users());
    first.stop().await;
    let second = workos(file).await;
    assert_eq!((second.client_id(), second.api_key(), second.webhook_secret(), second.jwks(), second.users()), before);
    let updated = second.update_user(user["id"].as_str().unwrap(), &object(json!({"first_name": "Ada"}))).unwrap();
    assert!(updated["updated_at"].as_str() > user["updated_at"].as_str());
}

/// The service against the simulation, with duplicated, reordered and late deliveries: the users are always the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_follows_it_through_unreliable_deliveries() {
    let workos = workos(None).await;
    let database = TestDatabase::unbound().await;
    let pool = database.pool(6).await;
    let authkit = AuthKit::builder(pool.clone(), workos.client_id())
        .api_base(workos.base_url())
        .webhook_secrets(vec![Secret::new(workos.webhook_secret())])
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    workos.add_endpoint(&format!("http://{}/workos/webhook", listener.local_addr().unwrap()));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(authkit.clone().run(listener, None, async {
        let _ = stopped.await;
    }));
    workos.set_faults(Faults { duplicate: 40, reorder: 60, delay_ms: 3, ..Faults::default() });
    let mut ids = Vec::new();
    for at in 0..20 {
        let user = workos
            .create_user(&object(json!({"email": format!("u{at}@example.test"), "external_id": format!("crm-{at}")})))
            .unwrap();
        ids.push(user["id"].as_str().unwrap().to_owned());
    }
    for round in 0..5 {
        for id in &ids {
            workos.update_user(id, &object(json!({"first_name": format!("Round {round}")}))).unwrap();
        }
    }
    for id in ids.iter().step_by(3) {
        workos.delete_user(id).unwrap();
    }
    workos.wait_until_delivered().await;
    let stored: Vec<(String, String)> =
        sqlx::query_as("select id, first_name from workos.users order by id").fetch_all(&pool).await.unwrap();
    let expected: Vec<(String, String)> =
        workos.users().iter().map(|user| (user["id"].as_str().unwrap().to_owned(), "Round 4".to_owned())).collect();
    assert_eq!(stored, expected);
    let alive = workos.users()[0].clone();
    let token = workos.sign_in(alive["id"].as_str().unwrap()).unwrap();
    let user = authkit.get_auth_user(&token).await.unwrap();
    assert_eq!(serde_json::to_value(&user).unwrap(), alive);
    let expired = workos.token(&user.id, "session_1", -60).unwrap();
    assert!(authkit.identity(&expired).await.unwrap_err().to_string().starts_with("the token expired "));
    let _ = stop.send(());
    running.await.unwrap().unwrap();
    workos.stop().await;
}
