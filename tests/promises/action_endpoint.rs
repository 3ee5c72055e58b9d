//! The decision endpoint of an application: requests are signed, addresses are checked, and a failure gives the configured verdict.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener as Trap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use authkit_sync::AuthKit;
use authkit_sync::action_endpoint::{ActionEndpoint, EndpointError, HEADER, OnFailure};
use authkit_sync::domain::action::Verdict;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::signature::{Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use workos::ActionsHelper;

use crate::support::actions::{ACTION_SECRET, ENDPOINT_SECRET, authentication, endpoint, fresh, registration, secrets};
use crate::support::binary::{Served, binary, free_address};
use crate::support::database::TestDatabase;
use crate::support::service::{CLIENT_ID, Service};

/// A decision endpoint whose verdict depends on the email address of the action. It reports the requests that it got.
async fn application() -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (sender, asked) = mpsc::unbounded_channel();
    let decide = async move |headers: HeaderMap, body: Bytes| {
        let email = serde_json::from_slice::<Value>(&body).unwrap()["user_data"]["email"].clone();
        let _ = sender.send((headers, body));
        match email.as_str().unwrap_or_default().split('@').next().unwrap() {
            "allow" => json!({"verdict": "allow", "message": "not for reading"}).to_string().into_response(),
            "deny" => json!({"verdict": "Deny", "message": "Não é possível 🚫", "more": 1}).to_string().into_response(),
            "curt" => json!({"verdict": "DENY"}).to_string().into_response(),
            "silent" => StatusCode::NO_CONTENT.into_response(),
            "slow" => std::future::pending::<Response>().await,
            "error" => (StatusCode::INTERNAL_SERVER_ERROR, json!({"verdict": "allow"}).to_string()).into_response(),
            "created" => (StatusCode::CREATED, json!({"verdict": "allow"}).to_string()).into_response(),
            "elsewhere" => Redirect::temporary("/allow").into_response(),
            "huge" => format!("{{\"verdict\":\"allow\",\"x\":\"{}\"}}", "x".repeat(64 * 1024)).into_response(),
            "garbage" => "allow".into_response(),
            "perhaps" => json!({"verdict": "perhaps"}).to_string().into_response(),
            "listed" => json!(["allow"]).to_string().into_response(),
            "odd" => json!({"verdict": "deny", "message": {}}).to_string().into_response(),
            "torn" => r#"{"verdict":"deny","message":"Sorry \ud83d"}"#.into_response(),
            _ => json!({}).to_string().into_response(),
        }
    };
    let allow = post(async || json!({"verdict": "allow"}).to_string());
    let routes = Router::new().route("/decide", post(decide)).route("/allow", allow);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/decide", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, asked)
}

async fn message(service: &Service, who: &str) -> (String, String) {
    let (verdict, message) = service.verdict(&registration(&fresh(), &format!("{who}@example.com"))).await;
    (verdict, message.unwrap_or_default())
}

fn pair(verdict: &str, message: &str) -> (String, String) {
    (verdict.to_owned(), message.to_owned())
}

#[tokio::test]
async fn the_handler_decides_before_the_endpoint_and_the_endpoint_before_the_rules() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let (url, mut asked) = application().await;
    let service = Service::start_with(&pool, |builder| {
        let builder = builder.action_secrets(secrets()).action_endpoint(endpoint(&url, OnFailure::Deny));
        let builder = builder.action_rules("deny * silent@example.com \"By rule.\"".parse().unwrap());
        builder.on_action(|action| async move {
            Ok((action.email.starts_with("handler")).then(|| Verdict::deny("By handler.")))
        })
    })
    .await;
    assert_eq!(message(&service, "handler").await, pair("Deny", "By handler."));
    assert!(asked.try_recv().is_err(), "the endpoint was not asked");
    assert_eq!(message(&service, "allow").await, pair("Allow", ""));
    assert_eq!(message(&service, "deny").await, pair("Deny", "Não é possível 🚫"));
    assert_eq!(message(&service, "curt").await, pair("Deny", ""));
    assert_eq!(message(&service, "silent").await, pair("Deny", "By rule."));
    let page = service.metrics().await;
    for by in ["handler\"} 1", "endpoint\"} 2", "rule_1\"} 1"] {
        assert!(page.contains(&format!("verdict=\"deny\",decided_by=\"{by}")), "{by}: {page}");
    }
    service.stop().await.unwrap();
}

#[tokio::test]
async fn the_endpoint_gets_the_action_byte_for_byte_signed_with_its_own_secret() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let (url, mut asked) = application().await;
    let start = |builder: authkit_sync::authkit::Builder| {
        builder.action_secrets(secrets()).action_endpoint(endpoint(&url, OnFailure::Allow))
    };
    let service = Service::start_with(&pool, start).await;
    let body = Bytes::from(format!(" {}\n", String::from_utf8_lossy(&registration("action_1", "allow@example.com"))));
    service.verdict(&body).await;
    let (headers, received) = asked.recv().await.unwrap();
    assert_eq!(received, body);
    let header = headers.get(HEADER).unwrap();
    let parsed = SignatureHeader::parse(Some(header.as_bytes()), service.clock.now(), WEBHOOK_TOLERANCE).unwrap();
    assert!(parsed.verify(&[Secret::new(ENDPOINT_SECRET)], received.clone()).is_ok());
    assert!(parsed.verify(&secrets(), received.clone()).is_err());
    // WorkOS's own helper can check it: the scheme is the same.
    let now = std::time::UNIX_EPOCH + Duration::from_millis(service.clock.now().unix_millis().try_into().unwrap());
    let official = ActionsHelper::new().with_clock(move || now);
    let text = std::str::from_utf8(&received).unwrap();
    official.construct_action(text, header.to_str().unwrap(), ENDPOINT_SECRET).unwrap();
    assert!(headers.get("workos-signature").is_none(), "what WorkOS signed is not handed on");
    service.verdict(&body).await;
    assert!(asked.try_recv().is_err(), "the same action is not asked about again");
    service.stop().await.unwrap();
}

#[tokio::test]
async fn every_failure_of_the_endpoint_gives_the_configured_verdict_and_is_counted() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let (url, _asked) = application().await;
    let closed = Trap::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (on_failure, verdict) in [(OnFailure::Allow, "Allow"), (OnFailure::Deny, "Deny")] {
        let start = |url: String, timeout: Duration| {
            let endpoint = ActionEndpoint { timeout, ..endpoint(&url, on_failure) };
            // The rules do not decide after a failure.
            let rules = "deny * * \"By rule.\"".parse().unwrap();
            Service::start_with(&pool, |builder| {
                builder.action_secrets(secrets()).action_endpoint(endpoint).action_rules(rules)
            })
        };
        let service = start(url.clone(), Duration::from_secs(30)).await;
        for who in ["error", "created", "elsewhere", "huge", "garbage", "perhaps", "listed", "nothing"] {
            let (given, told) = message(&service, who).await;
            assert_eq!(given, verdict, "{who}");
            assert_eq!(told.contains("cannot be checked"), verdict == "Deny", "{who}: {told}");
        }
        for (who, says) in [("odd", ""), ("torn", "Sorry \u{FFFD}")] {
            assert_eq!(message(&service, who).await, pair("Deny", says), "a message does not undo a verdict");
        }
        let page = service.metrics().await;
        for counted in ["status\"} 2", "redirects\"} 1", "too_long\"} 1", "malformed\"} 4"] {
            let line = format!("authkit_sync_action_endpoint_failures_total{{failure=\"{counted}");
            assert!(page.contains(&line), "{line}: {page}");
        }
        assert!(page.contains("decided_by=\"endpoint_failure\"} 8"), "{page}");
        service.stop().await.unwrap();
        let hurried = start(url.clone(), Duration::from_millis(500)).await;
        assert_eq!(message(&hurried, "slow").await.0, verdict);
        assert!(hurried.metrics().await.contains("failure=\"timed_out\"} 1"));
        hurried.stop().await.unwrap();
        let away = start(format!("http://{closed}/decide"), Duration::from_secs(30)).await;
        assert_eq!(message(&away, "ada").await.0, verdict);
        assert!(away.metrics().await.contains("failure=\"unreachable\"} 1"));
        away.stop().await.unwrap();
        // The deadline of all deciders limits the request, even if the endpoint's own timeout is longer.
        let endpoint = ActionEndpoint { timeout: Duration::from_secs(3_600), ..endpoint(&url, on_failure) };
        let bounded = Service::start_with(&pool, |builder| {
            let builder = builder.action_secrets(secrets()).action_deadline(Duration::from_secs(2));
            builder.action_endpoint(endpoint)
        })
        .await;
        assert_eq!(message(&bounded, "slow").await.0, verdict);
        bounded.stop().await.unwrap();
    }
}

/// Asserts that no connection was made.
fn untouched(trap: &Trap) -> bool {
    trap.set_nonblocking(true).unwrap();
    trap.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Returns what was sent to the trap: of each connection, the data up to the first pause.
fn heard(trap: &Trap) -> Vec<String> {
    trap.set_nonblocking(true).unwrap();
    let mut heads = Vec::new();
    while let Ok((mut stream, _)) = trap.accept() {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut head = [0; 4_096];
        let length = stream.read(&mut head).unwrap();
        heads.push(String::from_utf8_lossy(&head[..length]).into_owned());
    }
    heads
}

#[tokio::test]
async fn a_host_name_with_a_private_address_is_refused_unless_private_addresses_are_allowed() {
    let database = TestDatabase::new().await;
    let pool = database.pool(4).await;
    let trap = Trap::bind("127.0.0.1:0").unwrap();
    let port = trap.local_addr().unwrap().port();
    let public = ActionEndpoint { private_addresses: false, ..endpoint("", OnFailure::Deny) };
    for name in ["localhost", "LOCALHOST.", "ip6-localhost"] {
        let endpoint = ActionEndpoint { url: format!("https://{name}:{port}/decide"), ..public.clone() };
        let service =
            Service::start_with(&pool, |builder| builder.action_secrets(secrets()).action_endpoint(endpoint)).await;
        assert_eq!(message(&service, "ada").await.0, "Deny");
        let page = service.metrics().await;
        // Every machine can resolve `localhost`.
        let unknown = name != "localhost" && page.contains("failure=\"unreachable\"} 1");
        assert!(unknown || page.contains("failure=\"address_refused\"} 1"), "{name}: {page}");
        service.stop().await.unwrap();
    }
    assert!(untouched(&trap));
    for url in [
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[fd00:ec2::254]/",
        "https://[fe80::1]/",
    ] {
        let endpoint = ActionEndpoint { url: url.to_owned(), ..public.clone() };
        assert_eq!(endpoint.check(), Err(EndpointError::Private), "{url}");
        let builder = AuthKit::builder(pool.clone(), CLIENT_ID).action_secrets(secrets()).action_endpoint(endpoint);
        assert!(builder.build().unwrap_err().to_string().contains("not public"), "{url}");
    }
    for (url, error) in [
        ("http://decide.example.com/", EndpointError::Plain),
        ("ftp://decide.example.com/", EndpointError::Malformed),
        ("https://", EndpointError::Malformed),
        ("unix:/run/decide", EndpointError::Malformed),
        ("https://user@decide.example.com/", EndpointError::Credentials),
    ] {
        let endpoint = ActionEndpoint { url: url.to_owned(), ..public.clone() };
        assert_eq!(endpoint.check(), Err(error), "{url}");
    }
    let short = ActionEndpoint { secret: Secret::new("short"), url: "https://decide.example.com/".into(), ..public };
    assert_eq!(short.check(), Err(EndpointError::Secret));
}

/// The real binary, with proxies in its environment that would see every action.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_uses_a_proxy_and_the_log_contains_no_personal_data() {
    let database = TestDatabase::new().await;
    let (url, mut asked) = application().await;
    let trap = Trap::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", trap.local_addr().unwrap());
    let mut served = Served::start(
        &database.url(),
        free_address(),
        &[
            ("RUST_LOG", "trace"),
            ("HTTP_PROXY", &proxy),
            ("http_proxy", &proxy),
            ("ALL_PROXY", &proxy),
            ("all_proxy", &proxy),
            ("WORKOS_ACTION_SECRET", ACTION_SECRET),
            ("AUTHKIT_SYNC_ACTION_URL", &url),
            ("AUTHKIT_SYNC_ACTION_URL_SECRET", ENDPOINT_SECRET),
            ("AUTHKIT_SYNC_ACTION_URL_FAILURE", "allow"),
            ("AUTHKIT_SYNC_ACTION_URL_PRIVATE", "true"),
        ],
    );
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut verdicts = Vec::new();
    for body in [
        registration(&fresh(), "deny@personal.example"),
        registration(&fresh(), "garbage@personal.example"),
        authentication(&fresh(), "user_personal"),
    ] {
        let header = Secret::new(ACTION_SECRET).sign(Clock::system().now(), &body);
        let request = client.post(served.url("/workos/action")).header("workos-signature", header).body(body);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        verdicts.push(answer["payload"]["verdict"].as_str().unwrap().to_owned());
        assert!(asked.try_recv().is_ok(), "the endpoint was asked, before the answer came");
    }
    assert_eq!(verdicts, ["Deny", "Allow", "Allow"]);
    assert!(served.terminate().success());
    // WorkOS's signing keys are requested through the proxy, as intended.
    let asked_of_proxy = heard(&trap);
    assert!(asked_of_proxy.iter().all(|head| head.contains("/sso/jwks/")), "{asked_of_proxy:?}");
    let log = served.log();
    assert!(log.contains("failure=\"malformed\""), "{log}");
    for word in ["ersonal", "Não", "203.0.113.9", ENDPOINT_SECRET, ACTION_SECRET] {
        let line = log.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "the log holds {word}: {line:?}");
    }
}

/// Two replicas send requests to one endpoint concurrently. Neither waits for the other.
#[tokio::test]
async fn actions_are_decided_concurrently() {
    let database = TestDatabase::new().await;
    let pool = database.pool(8).await;
    let (url, _asked) = application().await;
    let service = Service::start_with(&pool, |builder| {
        let builder = builder.action_secrets(secrets()).action_endpoint(endpoint(&url, OnFailure::Deny));
        builder.action_deadline(Duration::from_secs(5))
    })
    .await;
    let service = Arc::new(service);
    let slow = tokio::spawn({
        let service = service.clone();
        async move { message(&service, "slow").await }
    });
    for _ in 0..5 {
        assert_eq!(message(&service, "allow").await, pair("Allow", ""));
    }
    assert_eq!(slow.await.unwrap().0, "Deny");
    Arc::into_inner(service).unwrap().stop().await.unwrap();
}

/// Runs a command with this text on stdin, without blocking the endpoint of the test.
async fn run_with_stdin(arguments: &[&str], settings: &[(&str, &str)], stdin: &str) -> (i32, String, String) {
    let mut command = binary();
    command.args(arguments).envs(settings.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let stdin = stdin.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // A command that does not read stdin may have ended.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// `action try` decides as `serve` does, and stores nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn action_try_shows_what_the_endpoint_and_the_rules_decide() {
    let (url, mut asked) = application().await;
    let rules = ("AUTHKIT_SYNC_ACTION_RULES", "allow * @quill.example; deny registration * \"Members only.\"");
    let with_endpoint = [
        rules,
        ("AUTHKIT_SYNC_ACTION_URL", url.as_str()),
        ("AUTHKIT_SYNC_ACTION_URL_SECRET", ENDPOINT_SECRET),
        ("AUTHKIT_SYNC_ACTION_URL_FAILURE", "deny"),
        ("AUTHKIT_SYNC_ACTION_URL_PRIVATE", "true"),
    ];
    for (settings, arguments, stdin, code, says) in [
        (&[][..], &["ada@quill.example"][..], "", 0, "allow: no rule matches, and the default is to allow"),
        (&[rules], &["ada@quill.example", "--kind", "registration"], "", 0, "allow: rule 1 of"),
        (&[rules], &["eve@gmail.com", "--kind", "registration"], "", 1, "message for the person: Members only."),
        (&[rules], &["eve@gmail.com"], "", 0, "the default is to allow"),
        (&[rules], &["-", "--kind", "registration"], "eve@gmail.com\n", 1, "deny: rule 2 of"),
        (&with_endpoint, &["deny@quill.example", "--kind", "registration"], "", 1, "deny: the endpoint of"),
        (&with_endpoint, &["silent@quill.example", "--kind", "registration"], "", 0, "allow: rule 1 of"),
        (&with_endpoint, &["error@quill.example", "--kind", "registration"], "", 1, "the endpoint failed (status)"),
    ] {
        let arguments = [&["action", "try"], arguments].concat();
        let (exit, out, err) = run_with_stdin(&arguments, settings, stdin).await;
        assert_eq!((exit, out.contains(says)), (code, true), "{arguments:?}: {out}{err}");
    }
    let (headers, body) = asked.recv().await.unwrap();
    let now = Clock::system().now();
    let header =
        SignatureHeader::parse(headers.get(HEADER).map(|value| value.as_bytes()), now, WEBHOOK_TOLERANCE).unwrap();
    assert!(header.verify(&[Secret::new(ENDPOINT_SECRET)], body.clone()).is_ok(), "it is signed as by serve");
    assert!(String::from_utf8_lossy(&body).contains("action_try_"));
    let (exit, _, err) = run_with_stdin(&["action", "try", "ada@quill.example"], &with_endpoint[1..3], "").await;
    assert_eq!((exit, err.contains("AUTHKIT_SYNC_ACTION_URL_FAILURE is not set")), (78, true), "{err}");
    assert_eq!(run_with_stdin(&["action", "try", "-"], &[], " ").await.0, 64);
}
