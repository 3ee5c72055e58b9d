//! The command `dev` of the real binary, without configuration.

use authkit_sync::workos::http::http_client;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::proxies::DEAD_PROXY;
use crate::support::binary::{binary, first_line, free_address, run, said};
use crate::support::service::until;

#[test]
fn the_tour_ends_well_and_ignores_every_real_setting() {
    // `dev` must not use or read any of these settings.
    let tour = run(
        &["dev", "--tour"],
        &[
            &DEAD_PROXY[..],
            &[
                ("DATABASE_URL", "postgres://production"),
                ("WORKOS_API_KEY", "sk_live"),
                ("WORKOS_CLIENT_ID", "x y"),
                ("PGPORT", "1"),
            ],
        ]
        .concat(),
    );
    assert_eq!(tour.status.code(), Some(0), "{}", said(&tour));
    let text = said(&tour);
    for step in [
        "user.created",
        "→ 200",
        "user.updated",
        "Adaline",
        "user.deleted",
        "404 user_deleted",
        "deleted stays deleted",
    ] {
        assert!(text.contains(step), "the tour lacks {step}: {text}");
    }
}

#[tokio::test]
async fn an_ephemeral_dev_prints_its_urls_for_tests_of_other_projects() {
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("users.json");
    let file = r#"{
        "permissions": [{"slug": "orders:read"}],
        "roles": [{"slug": "billing", "permissions": ["orders:read"]}],
        "organizations": [{"id": "org_ignored", "name": "Acme", "roles": [{"slug": "org-support"}]}],
        "users": [
            {"id": "user_seeded", "email": "seed@example.test", "first_name": "Seed",
             "memberships": [{"organization": "Acme", "roles": ["billing", "org-support"]}]}
        ]
    }"#;
    std::fs::write(&seed, file).unwrap();
    let mut child = binary()
        .args(["dev", "--ephemeral", "--json", "--seed"])
        .arg(&seed)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let line = first_line(child.stdout.take().unwrap());
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a line of JSON: {line}"));
    let text = |name: &str| ready[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}")).to_owned();
    let client = http_client().unwrap();
    let token = client.post(format!("{}/_simulate/users/user_seeded/token", text("workos_url"))).send().await.unwrap();
    let token = token.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let user = client.get(format!("{}/auth/user", text("url"))).bearer_auth(&token).send().await.unwrap();
    assert_eq!(user.json::<Value>().await.unwrap()["first_name"], "Seed", "the seed was synced before it said ready");
    let signed_in = client
        .post(format!("{}/user_management/authenticate", text("workos_url")))
        .json(&serde_json::json!({"grant_type": "password", "email": "seed@example.test", "password": "any",
            "client_id": text("client_id"), "client_secret": text("api_key")}))
        .send()
        .await
        .unwrap();
    assert!(signed_in.json::<Value>().await.unwrap()["access_token"].is_string());
    for (email, verdict) in [("eve@gmail.com", "Deny"), ("eve@example.test", "Allow")] {
        // On a busy machine one attempt may time out at WorkOS.
        until("the action is decided", async || {
            let request = client.post(format!("{}/_simulate/actions", text("workos_url")));
            let judged = request.json(&serde_json::json!({ "email": email })).send().await.unwrap();
            let judged = judged.json::<Value>().await.unwrap();
            assert!(judged["verdict"] == verdict || judged["failure"].is_string(), "{judged}");
            judged["failure"].is_null()
        })
        .await;
    }
    assert!(text("action_secret").starts_with("actsec_"));
    let ops = client.get(format!("{}/readyz", text("ops_url"))).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!((ops["status"].as_str(), ops["signing_keys"]["keys"].as_u64()), (Some("ready"), Some(1)));
    let pool = sqlx::PgPool::connect(&text("database_url")).await.unwrap();
    let roles = sqlx::query_scalar::<_, i64>(
        "select count(*) from pg_roles where rolname in ('workos_end_user', 'workos_reader')",
    );
    assert_eq!(roles.fetch_one(&pool).await.unwrap(), 2, "as after `migrate`");
    pool.close().await;
    // Any client can connect over TCP, and it needs the password.
    let tcp = text("database_tcp_url");
    let pool = sqlx::PgPool::connect(&tcp).await.unwrap();
    let synced = "select o.name, m.roles from workos.active_memberships m
        join workos.organizations o on o.id = m.organization_id where m.user_id = 'user_seeded'";
    until("the membership is synced with its roles", async || {
        sqlx::query_as::<_, (String, Vec<String>)>(synced).fetch_optional(&pool).await.unwrap()
            == Some(("Acme".to_owned(), vec!["billing".to_owned(), "org-support".to_owned()]))
    })
    .await;
    pool.close().await;
    assert!(sqlx::PgPool::connect(&tcp.replace("@", "wrong@")).await.is_err());
    let scratch = text("database_url").split("host=").nth(1).unwrap().to_owned();
    assert!(std::path::Path::new(&scratch).exists());
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!std::path::Path::new(&scratch).exists(), "it keeps nothing");
}

#[test]
fn an_invalid_seed_file_is_named() {
    let refused = run(&["dev", "--ephemeral", "--seed", "/nonexistent.json"], &[]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(said(&refused).contains("--seed /nonexistent.json"), "{}", said(&refused));
}

#[tokio::test]
async fn the_screen_shows_what_to_copy_and_its_feed_example_returns_changes() {
    let port = free_address().port();
    let mut child = binary()
        .args(["dev", "--ephemeral", "--port", &port.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut screen = String::new();
    let reading = tokio::task::spawn_blocking(move || {
        while !screen.contains("Press Ctrl-C") {
            screen.push_str(&lines.next().unwrap().unwrap());
            screen.push('\n');
        }
        screen
    });
    let screen = reading.await.unwrap();
    let after = |start: &str| {
        let rest = screen.split_once(start).unwrap_or_else(|| panic!("no {start}: {screen}")).1;
        rest.split(['\'', '\n', ' ']).next().unwrap().to_owned()
    };
    let database = after("PostgreSQL   psql '");
    assert!(database.ends_with(&format!("@127.0.0.1:{port}/app")), "{database}");
    let pool = sqlx::PgPool::connect(&database).await.unwrap();
    pool.close().await;
    for start in ["WORKOS_CLIENT_ID=client_", "WORKOS_API_KEY=sk_", "WORKOS_WEBHOOK_SECRET=", "TOKEN=", "handlers add "]
    {
        assert!(!after(start).is_empty(), "{start}: {screen}");
    }
    let (client, key) = (http_client().unwrap(), after("SERVICE_KEY="));
    let feed = format!("{}/changes?after={}", after("service      "), after("/changes?after="));
    until("the feed example returns changes", async || {
        let answer = client.get(&feed).bearer_auth(&key).send().await.unwrap().json::<Value>().await.unwrap();
        answer["data"].as_array().is_some_and(|data| !data.is_empty())
    })
    .await;
    let listed = client.get(after("WorkOS       ")).send().await.unwrap().json::<Value>().await.unwrap();
    assert!(listed["data"].as_array().unwrap().len() > 10, "{listed}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
