//! WorkOS's read API, answered from the table: tested with WorkOS's SDK, and with plain requests where the SDK has no method.

use authkit_sync::AuthKit;
use authkit_sync::dev::workos::ApiFaults;
use authkit_sync::domain::event::Origin;
use authkit_sync::sync::apply;
use authkit_sync::sync::read_through::{Answer as Read, ReadThrough, Wanted};
use authkit_sync::workos::api::ApiKey;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt;
use workos::user_management::ListUsersParams;
use workos::{Client, PaginationOrder};

use crate::support::events::{observed, unique, user};
use crate::support::lab::{Lab, object};
use crate::support::service::Answer;

const KEY: &str = "a-service-key-of-at-least-32-characters";

/// The library with the table and the WorkOS of a lab.
fn authkit(lab: &Lab, read_through: bool, backfill: bool) -> AuthKit {
    AuthKit::builder(lab.service_pool(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .api_key(ApiKey::new(lab.workos.api_key()))
        .clock(lab.clock.clone())
        .service_key("crm", KEY)
        .read_through(read_through)
        .backfill(backfill)
        .build()
        .unwrap()
}

/// The same over HTTP.
async fn serve(lab: &Lab, read_through: bool, backfill: bool) -> String {
    let authkit = authkit(lab, read_through, backfill);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = authkit.router();
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn sdk(url: &str, key: &str) -> Client {
    Client::builder().api_key(key).client_id("client_1").base_url(url).max_retries(0).build()
}

fn params(order: PaginationOrder, limit: i64) -> ListUsersParams {
    ListUsersParams { order: Some(order), limit: Some(limit), ..ListUsersParams::default() }
}

/// Reads every page with the SDK, forward.
async fn all(client: &Client, order: PaginationOrder, limit: i64) -> Vec<Value> {
    let mut users = Vec::new();
    let mut params = params(order, limit);
    loop {
        let page = client.user_management().list_users(params.clone()).await.unwrap();
        users.extend(page.data.iter().map(|user| serde_json::to_value(user).unwrap()));
        params.after = page.list_metadata.after;
        if params.after.is_none() {
            return users;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workos_own_sdk_reads_the_same_users_here_and_there() {
    let lab = Lab::new().await;
    for number in 0..1_000 {
        let given = json!({
            "email": format!("u{number}@example.test"), "first_name": format!("n{number}"),
            "external_id": format!("crm-{number}"), "metadata": {"plan": "team"},
        });
        lab.workos.create_user(&object(given)).unwrap();
        lab.clock.set(lab.clock.now().plus_micros(1_000));
    }
    lab.backfill().await;
    let (here, there) = (serve(&lab, false, true).await, lab.workos.base_url().to_owned());
    let (here, there) = (sdk(&here, KEY), sdk(&there, &lab.workos.api_key()));
    for (order, limit) in [(PaginationOrder::Asc, 100), (PaginationOrder::Desc, 37)] {
        let (ours, theirs) = (all(&here, order.clone(), limit).await, all(&there, order, limit).await);
        assert_eq!(ours.len(), 1_000);
        assert_eq!(ours, theirs);
    }
    // Back from the middle, in either order.
    let ids: Vec<String> = lab.workos.users().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
    for order in [PaginationOrder::Asc, PaginationOrder::Desc] {
        let mut back = params(order, 20);
        back.before = Some(ids[500].clone());
        let ours = here.user_management().list_users(back.clone()).await.unwrap();
        let theirs = there.user_management().list_users(back).await.unwrap();
        assert_eq!(serde_json::to_value(&ours).unwrap(), serde_json::to_value(&theirs).unwrap());
    }
    let one = here.user_management().get_user(&ids[7]).await.unwrap();
    assert_eq!(one.email, "u7@example.test");
    let one = here.user_management().get_user_by_external_id("crm-8").await.unwrap();
    assert_eq!(one.id, ids[8]);
    let by_email = ListUsersParams { email: Some("U9@EXAMPLE.test".to_owned()), ..ListUsersParams::default() };
    let found = here.user_management().list_users(by_email).await.unwrap();
    assert_eq!((found.data.len(), found.data[0].id.as_str()), (1, ids[9].as_str()));
    for client in [&here, &there] {
        let missing = client.user_management().get_user("user_nobody").await.unwrap_err();
        let workos::Error::Api(error) = missing else { panic!("{missing}") };
        assert_eq!((error.status, error.code.as_deref()), (404, Some("entity_not_found")));
    }
}

/// `normal`: newest first, with the meaning of the cursors reversed.
#[tokio::test]
async fn normal_order_pages_to_older_users_with_before() {
    let lab = Lab::new().await;
    let ids = lab.create_users(5);
    lab.backfill().await;
    let url = serve(&lab, false, true).await;
    let list = async |query: &str| -> Value {
        let request = lab_client().get(format!("{url}/user_management/users?{query}")).bearer_auth(KEY);
        Answer::of(request.send().await.unwrap()).await.json()
    };
    let names = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = list("order=normal&limit=2").await;
    assert_eq!(names(&first), [ids[4].clone(), ids[3].clone()]);
    assert_eq!(first["list_metadata"], json!({"before": ids[3], "after": null}));
    let older = list(&format!("order=normal&limit=2&before={}", ids[3])).await;
    assert_eq!(names(&older), [ids[2].clone(), ids[1].clone()]);
    let newer = list(&format!("order=normal&limit=1&after={}", ids[1])).await;
    assert_eq!(names(&newer), [ids[2].clone()]);
}

fn lab_client() -> reqwest::Client {
    authkit_sync::workos::http::http_client().unwrap()
}

#[tokio::test]
async fn unsupported_requests_are_rejected_in_the_format_of_workos() {
    let lab = Lab::new().await;
    lab.create_users(1);
    lab.backfill().await;
    let url = serve(&lab, false, true).await;
    let client = lab_client();
    let users = format!("{url}/user_management/users");
    let ask = async |method: &str, url: &str, key: &str| {
        let request = client.request(method.parse().unwrap(), url).bearer_auth(key);
        Answer::of(request.send().await.unwrap()).await
    };
    for (query, status, code, field) in [
        ("limit=0", 422, "limit_out_of_range", "limit"),
        ("limit=101", 422, "limit_out_of_range", "limit"),
        ("limit=ten", 422, "limit_out_of_range", "limit"),
        ("email=a%00b", 422, "invalid", "email"),
        ("after=%00", 422, "invalid", "after"),
        ("order=up", 422, "invalid_order", "order"),
        ("organization_id=org_1", 422, "unsupported_parameter", "organization_id"),
        ("before=a&after=b", 422, "exclusive", "before"),
        ("limit=1&limit=2", 422, "given_twice", "limit"),
    ] {
        let answer = ask("GET", &format!("{users}?{query}"), KEY).await;
        let error = &answer.json()["errors"][0];
        assert_eq!((answer.status, &error["code"], &error["field"]), (status, &json!(code), &json!(field)), "{query}");
    }
    for (method, path) in [("POST", ""), ("PUT", "/user_1"), ("DELETE", "/user_1")] {
        assert_eq!(ask(method, &format!("{users}{path}"), KEY).await.code(), (405, "read_only".to_owned()));
    }
    let sign_in = format!("{url}/user_management/authenticate");
    assert_eq!(ask("POST", &sign_in, KEY).await.code(), (405, "read_only".to_owned()));
    assert_eq!(ask("GET", &format!("{url}/user_management/invitations"), KEY).await.code(), (404, "not_served".into()));
    for key in ["", "a-service-key-of-at-least-32-character", &lab.workos.api_key()] {
        let answer = ask("GET", &users, key).await;
        assert_eq!((answer.status, &answer.json()["message"]), (401, &json!("Unauthorized")));
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"authkit-sync\"");
    }
    // An access token is not accepted as a service key, and a service key is not accepted as an access token.
    assert_eq!(ask("GET", &format!("{url}/auth/user"), KEY).await.code().0, 401);
}

#[tokio::test]
async fn of_two_users_with_one_external_id_the_higher_version_is_returned_and_odd_ids_are_not_found() {
    let lab = Lab::new().await;
    let store = lab.context().store;
    let (first, second) = (unique("user"), unique("user"));
    let with = |id: &str, ms| {
        let mut user = user(id, "Ada", ms);
        user["external_id"] = json!("crm/7 ü");
        observed("user.updated", ms, &user)
    };
    apply(&store, Origin::Webhook, &[with(&first, 5), with(&second, 9)]).await.unwrap();
    let url = serve(&lab, false, false).await;
    let ask = async |path: &str| {
        let request = lab_client().get(format!("{url}/user_management/users/{path}")).bearer_auth(KEY);
        Answer::of(request.send().await.unwrap()).await
    };
    let answer = ask("external_id/crm%2F7%20%C3%BC").await;
    assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(second)));
    for odd in ["%00", "%F0%9F%A6%80", "..%2F..%2Fetc", "%27%20or%201%3D1", &"x".repeat(4_000)] {
        assert_eq!(ask(odd).await.status, 404, "{odd}");
        assert_eq!(ask(&format!("external_id/{odd}")).await.status, 404, "{odd}");
    }
}

#[tokio::test]
async fn before_the_first_backfill_an_incomplete_list_is_not_returned() {
    let lab = Lab::new().await;
    lab.create_users(2);
    let url = serve(&lab, false, true).await;
    for path in ["users", "users?email=a@example.test", "users/user_1", "users/external_id/crm-1"] {
        let request = lab_client().get(format!("{url}/user_management/{path}")).bearer_auth(KEY);
        let answer = Answer::of(request.send().await.unwrap()).await;
        assert_eq!(answer.code(), (503, "user_not_synced".to_owned()), "{path}");
        assert!(!answer.header("retry-after").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_of_a_new_user_cause_one_request_to_workos() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    let token = lab.workos.sign_in(&id).unwrap();
    let routes = authkit(&lab, true, true).router();
    // Without sockets, because many machines do not allow one process to open two thousand of them.
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let request = Request::get("/auth/user").header("authorization", format!("Bearer {token}"));
        let answer = routes.clone().oneshot(request.body(Body::empty()).unwrap());
        requests.spawn(async move {
            let answer = answer.await.unwrap();
            let (status, body) = (answer.status().as_u16(), to_bytes(answer.into_body(), 65_536).await.unwrap());
            (status, serde_json::from_slice::<Value>(&body).unwrap()["first_name"].clone())
        });
    }
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), (200, json!("Ada")));
    }
    assert_eq!(lab.workos.requests(&format!("/user_management/users/{id}")), 1);
    let origin = "select count(*) from workos.user_records where synced_observation_id like 'snapshot:%'";
    assert_eq!(lab.count(origin).await, 1);
}

/// Found with a thousand concurrent requests: one had read the table just before another one committed the user.
#[tokio::test]
async fn a_caller_that_read_the_table_just_before_the_commit_sends_no_second_request() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    let read_through = ReadThrough::new(lab.context());
    for _ in 0..3 {
        assert_eq!(read_through.read(Wanted::User(id.clone())).await, Ok(Read::Stored));
    }
    assert_eq!(lab.workos.requests(&format!("/user_management/users/{id}")), 1);
}

#[tokio::test]
async fn an_unknown_user_is_read_from_workos_and_only_a_valid_answer_counts() {
    let lab = Lab::new().await;
    let url = serve(&lab, true, true).await;
    let stranger = lab.workos.token("user_nobody", "session_1", 300).unwrap();
    let ask = async |token: &str| {
        let request = lab_client().get(format!("{url}/auth/user")).bearer_auth(token);
        Answer::of(request.send().await.unwrap()).await
    };
    for _ in 0..3 {
        assert_eq!(ask(&stranger).await.code(), (404, "user_not_found".to_owned()));
    }
    let asked = lab.workos.requests("/user_management/users/user_nobody");
    assert_eq!(asked, 1, "a no is remembered for some seconds");
    assert_eq!(lab.count("select count(*) from workos.user_records").await, 0, "and makes no tombstone");
    // The user's event arrives. The cached answer does not prevent that the user is found.
    apply(&lab.context().store, Origin::Webhook, &[observed("user.created", 1, &user("user_nobody", "Ada", 1))])
        .await
        .unwrap();
    assert_eq!(ask(&stranger).await.status, 200);
    // WorkOS is unreachable.
    let late = lab.create_user("Grace");
    let token = lab.workos.sign_in(&late).unwrap();
    lab.workos.set_api_faults(ApiFaults { error: 100, ..ApiFaults::default() });
    let answer = ask(&token).await;
    assert_eq!(answer.code(), (503, "user_not_synced".to_owned()));
    assert!(!answer.header("retry-after").is_empty());
    lab.workos.set_api_faults(ApiFaults::default());
    assert_eq!(ask(&token).await.status, 200);
    // The same holds with a service key.
    let third = lab.create_user("Edsger");
    let request = lab_client().get(format!("{url}/user_management/users/{third}")).bearer_auth(KEY);
    assert_eq!(request.send().await.unwrap().status(), 200);
}

/// A key can change to another environment while the process runs. It is checked again after a rejection, and after an hour.
#[tokio::test]
async fn read_through_checks_its_key_again() {
    let lab = Lab::new().await;
    let ada = lab.create_user("Ada");
    lab.backfill().await;
    let authkit = authkit(&lab, true, true);
    let judged = || lab.workos.requests(&format!("/user_management/users/{ada}"));
    let known = async |name: &str| authkit.get_user(&lab.create_user(name)).await.is_ok();
    assert!(known("Grace").await && judged() == 1, "once before the first question");
    assert!(known("Edsger").await && judged() == 1, "and not before every one");
    lab.workos.set_api_faults(ApiFaults { refuse_key: true, ..ApiFaults::default() });
    assert!(!known("Barbara").await);
    lab.workos.set_api_faults(ApiFaults::default());
    let before = judged();
    assert!(known("Frances").await && judged() > before, "the key has been refused since");
    let before = judged();
    lab.clock.set(lab.clock.now().plus_seconds(3_599));
    assert!(known("Ken").await && judged() == before);
    lab.clock.set(lab.clock.now().plus_seconds(2));
    assert!(known("Dennis").await && judged() > before, "an hour has passed");
}

/// An ID from a caller does not change the path of a request to WorkOS, and is not echoed unchanged.
#[tokio::test]
async fn an_impossible_id_causes_no_request() {
    let lab = Lab::new().await;
    lab.create_users(3);
    lab.backfill().await;
    let routes = authkit(&lab, true, true).router();
    let listed = lab.workos.requests("/user_management/users");
    let long = "x".repeat(8_000);
    for odd in
        ["%2e%2e", "%2e", "..%2F..%2Fevents", "external_id%2Fcrm-1", "a%20b", "%F0%9F%A6%80%22", "%FF", "%00", &long]
    {
        for path in [odd.to_owned(), format!("external_id/{odd}")] {
            // The path is sent unchanged. An HTTP client library would normalize it.
            let request = Request::get(format!("/user_management/users/{path}"));
            let request = request.header("authorization", format!("Bearer {KEY}")).body(Body::empty()).unwrap();
            let answer = routes.clone().oneshot(request).await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["cache-control"]),
                (404, &"no-store".parse().unwrap())
            );
            let text = String::from_utf8(to_bytes(answer.into_body(), 65_536).await.unwrap().to_vec()).unwrap();
            assert!(text.contains("\"code\":\"entity_not_found\""), "{odd}: {text}");
            assert!(text.is_ascii() && text.len() < 500, "{text}");
        }
    }
    assert_eq!(lab.workos.requests("/user_management/users"), listed, "the list was not read for an id of dots");
    assert_eq!(lab.count("select count(*) from workos.events").await, 0, "and nothing of it was kept");
}

#[tokio::test]
async fn short_service_keys_and_wildcard_origins_are_refused() {
    let lab = Lab::new().await;
    let builder = || AuthKit::builder(lab.service_pool(), lab.workos.client_id());
    assert!(builder().service_key("crm", "").build().unwrap_err().to_string().contains("32"));
    let authkit = builder().cors_origins(&["*".to_owned(), "null".to_owned()]).build().unwrap();
    let request = Request::get("/healthz").header("origin", "null").body(Body::empty()).unwrap();
    let answer = authkit.router().oneshot(request).await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}
