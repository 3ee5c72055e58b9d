//! `GET /openapi.json`: real responses of the service are compared with the described schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use authkit_sync::authkit::ACTION_BODY_LIMIT;
use authkit_sync::domain::user::FIELDS;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::auth_session::{membership, organization};
use crate::openapi_workos::hold_workos_routes;
use crate::support::actions::{ACTION_SECRET, fresh, registration, secrets};
use crate::support::database::TestDatabase;
use crate::support::events::{body, unique, user};
use crate::support::fixture;
use crate::support::pgbouncer::as_the_run_wants;
use crate::support::service::{Answer, SECRET, Service};

const KEY: &str = "a-service-key-of-at-least-32-characters";
const USER: &str = "user_01M1E0K8KTSGG8REDJXJJNWG5C";

/// The document with closed schemas: an answer may contain no field that is not described, unless its schema allows it.
pub(crate) struct Described {
    document: Value,
    /// The answers that were received: method and path, status.
    seen: BTreeSet<(String, String)>,
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

impl Described {
    async fn by(service: &Service) -> Self {
        let answer = service.get("/openapi.json").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("cache-control"), "public, max-age=300");
        assert!(!answer.header("etag").is_empty());
        let mut document = answer.json();
        close(&mut document["components"]["schemas"]);
        let wrong = json!({"$ref": "#/components/schemas/User", "components": document["components"]});
        assert!(!jsonschema::is_valid(&wrong, &json!({})), "the schemas are really applied");
        Self { document, seen: BTreeSet::new() }
    }

    /// Asserts that the document describes the answer, with its body, its code and its headers.
    pub(crate) fn hold(&mut self, method: &str, path: &str, answer: &Answer) {
        let operation = format!("{method} {path}");
        let status = answer.status.to_string();
        let described = &self.document["paths"][path][method]["responses"][&status];
        assert!(described.is_object(), "{operation} answers {status}, which is not described: {}", answer.text);
        for (name, header) in described["headers"].as_object().into_iter().flatten() {
            let optional = name == "AuthKit-Sync-Synced-Through";
            assert!(optional || !answer.header(name).is_empty(), "{operation} {status} lacks {name}: {header}");
        }
        let schema = &described["content"]["application/json"]["schema"];
        if schema.is_null() {
            assert!(answer.text.is_empty(), "{operation} {status} has a body that is not described: {}", answer.text);
        } else {
            let body = answer.json();
            let mut schema = schema.clone();
            schema["components"] = self.document["components"].clone();
            let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            let errors: Vec<String> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{operation} {status}: {errors:?}: {body}");
            if let Some(code) = body["code"].as_str().filter(|_| answer.status >= 400) {
                let about = described["description"].as_str().unwrap();
                assert!(about.contains(&format!("`{code}`")), "{operation} {status} does not describe {code}: {about}");
            }
        }
        self.seen.insert((operation, status));
    }

    /// Every answer that the document describes.
    fn all(&self) -> BTreeSet<(String, String)> {
        let paths = self.document["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
        });
        let answers = operations.flat_map(|(operation, it)| {
            it["responses"].as_object().unwrap().keys().map(move |status| (operation.clone(), status.clone()))
        });
        answers.collect()
    }
}

fn token() -> String {
    let tokens = fixture("access_tokens");
    let vector = tokens["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == "per_client_issuer");
    vector.unwrap()["token"].as_str().unwrap().to_owned()
}

/// Requests each route of a path template, with a token or key, and with the `ETag` of a copy.
async fn get(service: &Service, path: &str, bearer: Option<&str>, tag: Option<&str>) -> Answer {
    let mut request = service.client.get(service.url(path));
    if let Some(bearer) = bearer {
        request = request.bearer_auth(bearer);
    }
    if let Some(tag) = tag {
        request = request.header("if-none-match", tag);
    }
    Answer::of(request.send().await.unwrap()).await
}

const ONE: &str = "/user_management/users/{id}";
const BY_EXTERNAL_ID: &str = "/user_management/users/external_id/{external_id}";
const LIST: &str = "/user_management/users";
const CHANGES: &str = "/changes";
const MEMBERSHIPS: &str = "/auth/memberships";
const ACTION: &str = "/workos/action";

/// Requests 200 and 304 of every route that can be read.
async fn hold_what_is_there(service: &Service, described: &mut Described) {
    let good = token();
    let external = format!("{LIST}/external_id/crm-1");
    let one = format!("{LIST}/{USER}");
    for (path, asked, bearer) in [
        ("/auth/user", "/auth/user", Some(good.as_str())),
        ("/auth/identity", "/auth/identity", Some(&good)),
        ("/auth/session", "/auth/session", Some(&good)),
        (MEMBERSHIPS, MEMBERSHIPS, Some(&good)),
        (ONE, &one, Some(KEY)),
        (BY_EXTERNAL_ID, &external, Some(KEY)),
        (LIST, "/user_management/users?limit=1&order=asc", Some(KEY)),
        (CHANGES, CHANGES, Some(KEY)),
        ("/openapi.json", "/openapi.json", None),
        ("/healthz", "/healthz", None),
        ("/readyz", "/readyz", None),
    ] {
        let answer = get(service, asked, bearer, None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        described.hold("get", path, &answer);
        let tag = answer.header("etag").to_owned();
        if !tag.is_empty() {
            let again = get(service, asked, bearer, Some(&tag)).await;
            assert_eq!(again.status, 304, "{path}");
            described.hold("get", path, &again);
        }
    }
}

/// A session in an organization, and its refusal once the membership is inactive.
async fn hold_memberships(pool: &sqlx::PgPool, described: &mut Described) {
    let service = Service::start_with(pool, |builder| {
        builder.api_key(authkit_sync::workos::api::ApiKey::new("sk_test")).read_through(false)
    })
    .await;
    let organization_id = "org_01M1BE6HKCX1KJMBSNH6QNGVQR";
    let created = body(&unique("event"), "organization.created", 0, &organization(organization_id, "Quill", 0));
    assert_eq!(service.deliver(&created).await.status, 200);
    for (at, status, expected) in [(1, "active", 200), (2, "inactive", 403)] {
        let changed = membership("om_1", USER, organization_id, status, at);
        let changed = body(&unique("event"), "organization_membership.updated", at, &changed);
        assert_eq!(service.deliver(&changed).await.status, 200);
        let answer = get(&service, "/auth/session", Some(&token()), None).await;
        assert_eq!(answer.status, expected, "{}", answer.text);
        described.hold("get", "/auth/session", &answer);
        described.hold("get", MEMBERSHIPS, &get(&service, MEMBERSHIPS, Some(&token()), None).await);
    }
    service.stop().await.unwrap();
}

/// Requests with mistakes of the caller.
async fn hold_refusals(service: &Service, described: &mut Described) {
    let good = token();
    described.hold("get", MEMBERSHIPS, &get(service, "/auth/memberships?limit=0", Some(&good), None).await);
    for path in ["/auth/user", "/auth/identity", "/auth/session", MEMBERSHIPS] {
        for bearer in [None, Some("not.a.token")] {
            described.hold("get", path, &get(service, path, bearer, None).await);
        }
    }
    for (path, asked) in [
        (ONE, format!("{LIST}/user_nobody")),
        (BY_EXTERNAL_ID, format!("{LIST}/external_id/nobody")),
        (LIST, format!("{LIST}?limit=0")),
        (LIST, format!("{LIST}?organization_id=org_1")),
        (CHANGES, format!("{CHANGES}?after=nowhere")),
        (CHANGES, format!("{CHANGES}?after=00000000-1")),
    ] {
        described.hold("get", path, &get(service, &asked, Some(KEY), None).await);
        described.hold("get", path, &get(service, &asked, Some(&good), None).await);
    }
    let post = "post";
    described.hold(post, "/workos/webhook", &service.deliver(&"{}".into()).await);
    described.hold(post, "/workos/webhook", &service.deliver_signed(&"{}".into(), None).await);
    described.hold(post, "/workos/webhook", &service.deliver(&vec![b' '; 3_000].into()).await);
    described.hold(post, "/workos/webhook", &slow(service, "/workos/webhook", SECRET).await);
}

/// The response to an action.
async fn hold_actions(service: &Service, described: &mut Described) {
    let answers = [
        service.act(&registration(&fresh(), "ada@example.test")).await,
        service.act(&registration(&fresh(), "eve@gmail.com")).await,
        service.act(&"{}".into()).await,
        service.act(&r#"{"object": "of_tomorrow", "id": "action_1"}"#.into()).await,
        service.act(&vec![b' '; ACTION_BODY_LIMIT + 1].into()).await,
        service.act_signed(&"{}".into(), None).await,
        slow(service, ACTION, ACTION_SECRET).await,
    ];
    for answer in &answers {
        described.hold("post", ACTION, answer);
    }
}

/// A delivery whose body never ends.
async fn slow(service: &Service, path: &str, secret: &str) -> Answer {
    let mut stream = tokio::net::TcpStream::connect(service.address).await.unwrap();
    let signature = authkit_sync::workos::signature::Secret::new(secret).sign(service.clock.now(), b"{}");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nworkos-signature: {signature}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers: reqwest::header::HeaderMap::new(), text: body.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_as_described_and_every_described_answer_is_given() {
    let database = TestDatabase::new().await;
    let pool = as_the_run_wants(&database.pool(4).await);
    let service = Service::start_with(&pool, |builder| {
        let rules = "deny registration @gmail.com".parse().unwrap();
        let builder = builder.action_secrets(secrets()).action_rules(rules);
        builder.service_key("crm", KEY).body_limit(2_048).body_timeout(Duration::from_secs(2))
    })
    .await;
    let mut described = Described::by(&service).await;
    let mut ada = user(USER, "Ada", 0);
    ada["external_id"] = json!("crm-1");
    ada["added_tomorrow"] = json!({"n": 1});
    for (kind, at) in [("user.created", 0), ("user.created", 0)] {
        let event = body("event_1", kind, at, &ada);
        described.hold("post", "/workos/webhook", &service.deliver(&event).await);
    }
    let quarantined = body(&unique("event"), "user.updated", 1, &json!("no object"));
    described.hold("post", "/workos/webhook", &service.deliver(&quarantined).await);
    let session = body(&unique("event"), "session.created", 2, &json!({"id": "session_1", "user_id": USER}));
    service.deliver(&session).await;
    let start =
        service.ask(CHANGES, KEY).await.json()["position"].as_str().unwrap().split_once('-').unwrap().0.to_owned();
    let changes = service.ask(&format!("{CHANGES}?after={start}-0"), KEY).await;
    assert_eq!(changes.json()["data"].as_array().unwrap().len(), 2, "a change of a user and another event");
    described.hold("get", CHANGES, &changes);
    hold_what_is_there(&service, &mut described).await;
    hold_refusals(&service, &mut described).await;
    hold_actions(&service, &mut described).await;
    hold_memberships(&pool, &mut described).await;
    let deleted = body(&unique("event"), "user.deleted", 9, &json!({"id": USER}));
    assert_eq!(service.deliver(&deleted).await.status, 200);
    for path in ["/auth/user", "/auth/session", MEMBERSHIPS] {
        described.hold("get", path, &get(&service, path, Some(&token()), None).await);
    }
    // Failures of the service: first the keys, then the database.
    service.keys.away.store(true, Ordering::SeqCst);
    service.clock.set(service.clock.now().plus_seconds(25 * 3_600));
    described.hold("get", "/auth/identity", &get(&service, "/auth/identity", Some(&token()), None).await);
    described.hold("get", "/auth/user", &get(&service, "/auth/user", Some(&token()), None).await);
    service.keys.away.store(false, Ordering::SeqCst);
    service.clock.set(service.clock.now().plus_seconds(60));
    pool.close().await;
    for (path, asked, bearer) in [
        ("/auth/user", "/auth/user", token()),
        ("/auth/session", "/auth/session", token()),
        (MEMBERSHIPS, MEMBERSHIPS, token()),
        (ONE, "/user_management/users/user_1", KEY.to_owned()),
        (BY_EXTERNAL_ID, "/user_management/users/external_id/1", KEY.to_owned()),
        (LIST, LIST, KEY.to_owned()),
        (CHANGES, CHANGES, KEY.to_owned()),
        ("/readyz", "/readyz", String::new()),
    ] {
        let answer = get(&service, asked, Some(&bearer), None).await;
        assert_eq!(answer.status, 503, "{path}");
        described.hold("get", path, &answer);
    }
    described.hold("post", "/workos/webhook", &service.deliver(&body("event_2", "user.created", 0, &ada)).await);
    described.hold("post", ACTION, &service.act(&registration(&fresh(), "ada@example.test")).await);
    hold_workos_routes(&mut described).await;
    let unseen: Vec<_> = described.all().difference(&described.seen).cloned().collect();
    assert!(unseen.is_empty(), "described, and never seen: {unseen:?}");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn exactly_the_routes_that_are_served_are_described() {
    let database = TestDatabase::new().await;
    let pool = database.pool(2).await;
    let plain = Service::start(&pool).await;
    let keyed = Service::start_with(&pool, |builder| {
        builder.service_key("crm", KEY).webhook_path("/hooks/workos").action_secrets(secrets())
    })
    .await;
    let deaf = Service::start_with(&pool, |builder| builder.webhook_secrets(Vec::new())).await;
    let paths = async |service: &Service| -> BTreeMap<String, Vec<String>> {
        let document = service.get("/openapi.json").await.json();
        let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect();
        document["paths"].as_object().unwrap().iter().map(|(path, item)| (path.clone(), methods(item))).collect()
    };
    let (of_plain, of_keyed, of_deaf) = (paths(&plain).await, paths(&keyed).await, paths(&deaf).await);
    assert!(of_keyed.contains_key("/hooks/workos") && !of_keyed.contains_key("/workos/webhook"), "{of_keyed:?}");
    assert!(of_keyed.contains_key(ACTION) && !of_plain.contains_key(ACTION));
    assert!(of_plain.contains_key("/workos/webhook") && !of_deaf.contains_key("/workos/webhook"));
    assert!(of_deaf.contains_key(LIST), "what a service key opens is described without one too");
    for (path, methods) in &of_keyed {
        for method in methods {
            let url = keyed.url(&path.replace(['{', '}'], ""));
            let request = keyed.client.request(method.to_uppercase().parse().unwrap(), url).bearer_auth(KEY);
            let answer = Answer::of(request.send().await.unwrap()).await;
            let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
            assert!(
                !["route_not_found", "not_served", "method_not_allowed"].contains(&code.as_str()),
                "{path}: {code}"
            );
        }
    }
    // Every served route is described, because a route is mounted only with its description.
    let source = include_str!("../../src/http.rs");
    let public = source.split("Returns the operator's routes").next().unwrap();
    assert!(!public.contains(".route(") && public.contains(".routes("), "mount public routes by routes!(handler)");
    for service in [plain, keyed, deaf] {
        service.stop().await.unwrap();
    }
}

#[tokio::test]
async fn the_document_holds_together() {
    let database = TestDatabase::new().await;
    let service = Service::start(&database.pool(2).await).await;
    let document = service.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
    }
    let fields = document["components"]["schemas"]["User"]["properties"].as_object().unwrap();
    assert_eq!(fields.keys().map(String::as_str).collect::<BTreeSet<_>>(), FIELDS.into_iter().collect());
    assert_eq!(document["components"]["schemas"]["User"]["required"].as_array().unwrap().len(), FIELDS.len());
    let mut ids = BTreeSet::new();
    for operation in document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values())
    {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "two operations have one name");
        for scheme in
            operation["security"].as_array().into_iter().flatten().flat_map(|it| it.as_object().unwrap().keys())
        {
            assert!(document["components"]["securitySchemes"][scheme].is_object(), "{scheme}");
        }
    }
    service.stop().await.unwrap();
}
