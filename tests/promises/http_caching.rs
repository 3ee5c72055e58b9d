//! HTTP features for browsers and caches: validators, origins, request IDs.

use authkit_sync::AuthKit;
use reqwest::{Method, StatusCode};
use tokio::net::TcpListener;

use crate::support::lab::Lab;

const ORIGIN: &str = "https://app.example.com";

fn authkit(lab: &Lab) -> AuthKit {
    AuthKit::builder(lab.service_pool(), lab.workos.client_id())
        .api_base(lab.workos.base_url())
        .clock(lab.clock.clone())
        .cors_origins(&[ORIGIN.to_owned()])
        .build()
        .unwrap()
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// The routes as an application mounts them.
async fn serve(lab: &Lab) -> String {
    let (listener, url) = listener().await;
    let app = authkit(lab).router();
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// The same as `authkit-sync serve` runs them.
async fn serve_whole(lab: &Lab) -> String {
    let (listener, url) = listener().await;
    tokio::spawn(authkit(lab).run(listener, None, std::future::pending()));
    url
}

fn client() -> reqwest::Client {
    authkit_sync::workos::http::http_client().unwrap()
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn an_unchanged_response_is_304_only_after_all_checks() {
    let lab = Lab::new().await;
    let id = lab.create_user("Ada");
    lab.backfill().await;
    let (url, token) = (serve(&lab).await, lab.workos.sign_in(&id).unwrap());
    let ask = async |method: Method, tag: &str, token: &str| {
        let request = client().request(method, format!("{url}/auth/user")).bearer_auth(token);
        request.header("if-none-match", tag).send().await.unwrap()
    };
    let first = ask(Method::GET, "\"other\"", &token).await;
    let tag = header(&first, "etag").to_owned();
    assert_eq!((first.status(), tag.len()), (StatusCode::OK, 34));
    assert_eq!(header(&first, "cache-control"), "private, no-cache");
    assert!(header(&first, "vary").contains("authorization") && header(&first, "vary").contains("origin"));
    for held in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let again = ask(Method::GET, &held, &token).await;
        assert_eq!((again.status(), header(&again, "etag")), (StatusCode::NOT_MODIFIED, tag.as_str()));
        assert!(again.bytes().await.unwrap().is_empty());
    }
    let refused = ask(Method::GET, &tag, "not.a.token").await;
    assert_eq!((refused.status(), header(&refused, "cache-control")), (StatusCode::UNAUTHORIZED, "no-store"));
    let head = ask(Method::HEAD, "", &token).await;
    assert_eq!((head.status(), header(&head, "etag")), (StatusCode::OK, tag.as_str()));
    assert!(head.bytes().await.unwrap().is_empty());
    lab.clock.set(lab.clock.now().plus_seconds(5));
    lab.rename(&id, "Renamed");
    lab.free_leases().await;
    lab.backfill().await;
    assert_eq!(ask(Method::GET, &tag, &token).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn only_configured_origins_may_send_requests() {
    let lab = Lab::new().await;
    for host in [serve(&lab).await, serve_whole(&lab).await] {
        let url = format!("{host}/auth/user");
        for (origin, allowed) in [(ORIGIN, ORIGIN), ("https://evil.example.com", ""), ("null", "")] {
            let preflight = client()
                .request(Method::OPTIONS, &url)
                .header("origin", origin)
                .header("access-control-request-method", "GET")
                .header("access-control-request-headers", "authorization");
            let preflight = preflight.send().await.unwrap();
            assert_eq!(preflight.status(), StatusCode::OK, "{host}: no browser goes on after another answer");
            assert_eq!(header(&preflight, "access-control-allow-origin"), allowed, "{origin}");
            assert_eq!(header(&preflight, "access-control-allow-credentials"), "");
            let refused = client().get(&url).header("origin", origin).send().await.unwrap();
            assert_eq!(
                (refused.status(), header(&refused, "access-control-allow-origin")),
                (StatusCode::UNAUTHORIZED, allowed)
            );
            let exposed = header(&refused, "access-control-expose-headers");
            for name in [
                "www-authenticate",
                "etag",
                "retry-after",
                "x-request-id",
                "authkit-sync-synced-through",
                "authkit-sync-position",
            ] {
                assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name}: {exposed}");
            }
            let vary: Vec<_> = refused.headers().get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
            assert!(vary.join(",").contains("origin") && header(&refused, "cache-control") == "no-store", "{vary:?}");
        }
    }
}

#[tokio::test]
async fn a_request_keeps_its_own_plain_id_and_gets_one_otherwise() {
    let lab = Lab::new().await;
    let url = format!("{}/auth/user", serve(&lab).await);
    let id = async |given: &str| {
        let response = client().get(&url).header("x-request-id", given).send().await.unwrap();
        header(&response, "x-request-id").to_owned()
    };
    assert_eq!(id("req-1.a_B").await, "req-1.a_B");
    for odd in ["", "a b", "<script>", &"x".repeat(65)] {
        let made = id(odd).await;
        assert_eq!((made.len(), made == odd), (32, false), "{odd}");
    }
    let whole = serve_whole(&lab).await;
    for (method, path, status) in [(Method::GET, "/nowhere", 404), (Method::POST, "/auth/user", 405)] {
        let asked = client().request(method, format!("{whole}{path}")).header("x-request-id", "req-2").send();
        let refused = asked.await.unwrap();
        assert_eq!((refused.status().as_u16(), header(&refused, "x-request-id")), (status, "req-2"), "{path}");
    }
}
