//! The command line and the settings that operators use in scripts.

use std::io::Write;
use std::process::Stdio;

use authkit_sync::config::SETTINGS;
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::signature::{Secret, SignatureHeader, WEBHOOK_TOLERANCE};
use bytes::Bytes;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::binary::{Served, binary, free_address, run, said};
use crate::support::database::TestDatabase;
use crate::support::lab::Lab;
use crate::support::service::{CLIENT_ID, SECRET, until};
use crate::support::{fixture_bytes, migrations};

#[test]
fn the_command_line_is_well_formed() {
    authkit_sync::cli::command().debug_assert();
}

#[test]
fn help_says_every_setting_and_version_says_the_version() {
    let help = run(&["serve", "--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    for setting in SETTINGS.iter().map(|setting| setting.description()) {
        assert!(said(&help).contains(setting.name), "serve --help lacks {}", setting.name);
    }
    let version = run(&["--version"], &[]);
    assert_eq!(said(&version).trim(), concat!("authkit-sync ", env!("CARGO_PKG_VERSION")));
    for command in ["migrate", "healthcheck", "dev", "webhook"] {
        assert_eq!(run(&[command, "--help"], &[]).status.code(), Some(0), "{command}");
    }
}

#[test]
fn usage_errors_are_64_and_configuration_errors_78_all_at_once() {
    for wrong in [&["nonsense"][..], &["serve", "--nonsense"], &[], &["migrate", "sideways"], &["webhook"]] {
        assert_eq!(run(wrong, &[]).status.code(), Some(64), "{wrong:?}");
    }
    let bare = run(&["serve"], &[]);
    assert_eq!(bare.status.code(), Some(78));
    for name in ["DATABASE_URL", "WORKOS_CLIENT_ID", "WORKOS_API_KEY"] {
        assert!(said(&bare).contains(&format!("{name} is not set")), "{}", said(&bare));
    }
    let malformed = run(
        &["serve", "--listen", "here", "--signature-tolerance", "5"],
        &[
            ("DATABASE_URL", "mysql://root:hunter2@localhost/x"),
            ("WORKOS_CLIENT_ID", "sk_test_not_a_client"),
            ("WORKOS_API_KEY", "client_not_a_key"),
            ("WORKOS_WEBHOOK_SECRET", "sk_live_hunter2"),
            ("AUTHKIT_SYNC_CATCH_UP", "perhaps"),
            ("AUTHKIT_SYNC_BACKFILL", "on"),
            ("AUTHKIT_SYNC_RECONCILE_INTERVAL", "1s"),
            ("AUTHKIT_SYNC_RETENTION", "for ever"),
            ("AUTHKIT_SYNC_READ_THROUGH", "sometimes"),
            ("AUTHKIT_SYNC_API_KEYS", "crm:hunter2"),
            ("AUTHKIT_SYNC_CORS_ORIGINS", "*"),
            ("AUTHKIT_SYNC_EVENT_TYPES", "Session Created"),
            ("AUTHKIT_SYNC_BODY_LIMIT", "lots"),
            ("AUTHKIT_SYNC_DB_POOL", "0"),
            ("AUTHKIT_SYNC_LOG_FORMAT", "xml"),
        ],
    );
    assert_eq!(malformed.status.code(), Some(78));
    let text = said(&malformed);
    for name in [
        "DATABASE_URL",
        "WORKOS_CLIENT_ID",
        "WORKOS_API_KEY",
        "WORKOS_WEBHOOK_SECRET",
        "_CATCH_UP",
        "_BACKFILL",
        "_RECONCILE_INTERVAL",
        "_RETENTION",
        "_READ_THROUGH",
        "_API_KEYS",
        "_CORS_ORIGINS",
        "_EVENT_TYPES",
        "AUTHKIT_SYNC_LISTEN",
        "_SIGNATURE_TOLERANCE",
        "_BODY_LIMIT",
        "_DB_POOL",
        "_LOG_FORMAT",
    ] {
        assert!(text.contains(name), "{name} is not reported: {text}");
    }
    assert!(!text.contains("hunter2"), "a secret is shown: {text}");
    let same = "a-key-of-at-least-32-characters-1";
    let both = [("WORKOS_API_KEY", same), ("AUTHKIT_SYNC_API_KEYS", "crm:a-key-of-at-least-32-characters-1")];
    assert!(said(&run(&["serve"], &both)).contains("contains WORKOS_API_KEY"));
}

/// Incomplete settings of actions, and secrets that are used twice, are refused.
#[test]
fn an_incomplete_configuration_of_actions_is_78_and_names_what_is_missing() {
    let said_by = |more: &[(&str, &str)]| {
        let output = run(&["serve"], more);
        assert_eq!(output.status.code(), Some(78));
        said(&output)
    };
    let key = "an-endpoint-key-of-32-characters-";
    let webhook = [("WORKOS_WEBHOOK_SECRET", "whsec_new,whsec_old")];
    let own = [("WORKOS_ACTION_SECRET", "actsec_1"), ("AUTHKIT_SYNC_ACTION_URL", "https://decide.example.com/")];
    let with = |more: &[(&'static str, &'static str)]| said_by(&[&webhook[..], &own[..], more].concat());
    assert!(with(&[("WORKOS_ACTION_SECRET", "actsec_1,whsec_old")]).contains("contain the same secret"));
    assert!(with(&[("WORKOS_ACTION_SECRET", "sk_test_1")]).contains("WORKOS_ACTION_SECRET is malformed: it must be the signing secret of the endpoint from the dashboard, but it contains an API key"));
    let bare = with(&[]);
    for name in ["AUTHKIT_SYNC_ACTION_URL_FAILURE is not set", "AUTHKIT_SYNC_ACTION_URL_SECRET is not set"] {
        assert!(bare.contains(name), "{bare}");
    }
    let complete = [("AUTHKIT_SYNC_ACTION_URL_FAILURE", "deny"), ("AUTHKIT_SYNC_ACTION_URL_SECRET", key)];
    let with = |more: &[(&'static str, &'static str)]| with(&[&complete[..], more].concat());
    assert!(!with(&[]).contains("ACTION"), "{}", with(&[]));
    for (name, value, says) in [
        ("AUTHKIT_SYNC_ACTION_URL_FAILURE", "perhaps", "it must be allow or deny"),
        ("AUTHKIT_SYNC_ACTION_URL_TIMEOUT", "5s", "at most 1500ms"),
        ("AUTHKIT_SYNC_ACTION_URL_PRIVATE", "maybe", "true or false"),
        ("AUTHKIT_SYNC_ACTION_URL_SECRET", "short", "at least 32 characters"),
        ("AUTHKIT_SYNC_ACTION_URL", "http://decide.example.com/", "AUTHKIT_SYNC_ACTION_URL_PRIVATE=true"),
        ("AUTHKIT_SYNC_ACTION_URL", "https://10.0.0.1/", "not public"),
        ("AUTHKIT_SYNC_ACTION_URL", "https://me:hunter2@decide.example.com/", "a user name or password"),
        ("AUTHKIT_SYNC_ACTION_URL", "decide.example.com", "absolute"),
        ("AUTHKIT_SYNC_ACTION_RULES", "allow * *; deny sign-up hunter2@example.com", "rule 2 has a wrong second word"),
        ("WORKOS_ACTION_SECRET", "an-endpoint-key-of-32-characters-", "also a secret of WorkOS"),
        ("AUTHKIT_SYNC_WEBHOOK_PATH", "/workos/action", "the path of actions"),
    ] {
        let text = with(&[(name, value)]);
        assert!(text.contains(says) && !text.contains("hunter2"), "{name}={value}: {text}");
    }
    let unheard = said_by(&[("AUTHKIT_SYNC_ACTION_RULES", "deny * *")]);
    assert!(
        unheard.contains("AUTHKIT_SYNC_ACTION_RULES has no effect, because WORKOS_ACTION_SECRET is not set"),
        "{unheard}"
    );
}

#[test]
fn each_command_requires_only_the_settings_that_it_uses() {
    let migrate = run(&["migrate"], &[]);
    assert_eq!(migrate.status.code(), Some(78));
    assert!(said(&migrate).contains("DATABASE_URL") && !said(&migrate).contains("WORKOS"), "{}", said(&migrate));
    let away = run(
        &["migrate"],
        &[("DATABASE_URL", "postgres://nobody:hunter2@127.0.0.1:9/x"), ("AUTHKIT_SYNC_DB_TIMEOUT", "300ms")],
    );
    assert_eq!(away.status.code(), Some(69), "{}", said(&away));
    assert!(!said(&away).contains("hunter2"));
}

#[tokio::test]
async fn migrate_runs_and_status_answers_yes_or_no() {
    let database = TestDatabase::empty().await;
    let url = database.url();
    let environment = [("DATABASE_URL", url.as_str())];
    let status = || run(&["migrate", "status"], &environment);
    assert_eq!(status().status.code(), Some(1));
    let dry = run(&["migrate", "--dry-run"], &environment);
    assert_eq!((dry.status.code(), said(&dry).contains("pending 0001 users")), (Some(0), true));
    assert_eq!(status().status.code(), Some(1), "a dry run applies nothing");
    let serve = run(
        &["serve"],
        &[
            ("DATABASE_URL", &url),
            ("WORKOS_CLIENT_ID", CLIENT_ID),
            ("WORKOS_API_KEY", "sk_test_key"),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("AUTHKIT_SYNC_LISTEN", &free_address().to_string()),
            ("AUTHKIT_SYNC_OPS_LISTEN", &free_address().to_string()),
        ],
    );
    assert_eq!(serve.status.code(), Some(78), "{}", said(&serve));
    assert!(said(&serve).contains("run `authkit-sync migrate`"), "{}", said(&serve));
    let applied = run(&["migrate"], &environment);
    assert_eq!(
        (applied.status.code(), said(&applied).contains("applied 0001 users")),
        (Some(0), true),
        "{}",
        said(&applied)
    );
    assert_eq!(status().status.code(), Some(0));
    let json: serde_json::Value =
        serde_json::from_slice(&run(&["migrate", "status", "--json"], &environment).stdout).unwrap();
    assert_eq!(
        (json["pending"].as_array().unwrap().len(), json["applied"].as_array().unwrap().len()),
        (0, migrations())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_migrates_with_the_flag_and_healthcheck_and_sign_reach_it() {
    let database = TestDatabase::empty().await;
    let address = free_address();
    let listen = address.to_string();
    let well = |arguments: &[&str]| run(arguments, &[("AUTHKIT_SYNC_LISTEN", &listen)]).status.code();
    assert_eq!(well(&["healthcheck"]), Some(1), "nothing listens yet");
    let workos = crate::support::lab::another_workos(&Clock::system(), fastrand::u64(..), None).await;
    let port = reqwest::Url::parse(workos.base_url()).unwrap().port().unwrap().to_string();
    let client_id = workos.client_id();
    let json = [
        ("AUTHKIT_SYNC_LOG_FORMAT", "json"),
        ("WORKOS_CLIENT_ID", &*client_id),
        ("WORKOS_API_HOSTNAME", "127.0.0.1"),
        ("WORKOS_API_PORT", &*port),
        ("WORKOS_API_HTTPS", "false"),
    ];
    let mut served = Served::start_with(&["serve", "--migrate"], &database.url(), address, &json);
    until("it has migrated and is ready", async || well(&["healthcheck", "--ready"]) == Some(0)).await;
    until("it is healthy", async || well(&["healthcheck"]) == Some(0)).await;
    let taken = run(
        &["serve"],
        &[
            ("DATABASE_URL", &database.url()),
            ("WORKOS_CLIENT_ID", CLIENT_ID),
            ("WORKOS_API_KEY", "sk_test_key"),
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("AUTHKIT_SYNC_LISTEN", &listen),
        ],
    );
    assert_eq!(taken.status.code(), Some(69), "the port is in use: {}", said(&taken));
    let mut send = binary()
        .args(["webhook", "sign", "--send", &served.url("/workos/webhook")])
        .env("WORKOS_WEBHOOK_SECRET", SECRET)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    send.stdin.take().unwrap().write_all(&fixture_bytes("event.user.created")).unwrap();
    let sent = send.wait_with_output().unwrap();
    assert_eq!((sent.status.code(), said(&sent).starts_with("200\n")), (Some(0), true), "{}", said(&sent));
    assert_eq!(served.terminate().code(), Some(0));
    let log = served.log();
    let line = log.lines().find(|line| line.contains("event.outcome")).unwrap_or_else(|| panic!("no wide line: {log}"));
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((line["http.route"].as_str(), line["http.status"].as_u64()), (Some("/workos/webhook"), Some(200)));
    assert_eq!((line["event.type"].as_str(), line["event.outcome"].as_str()), (Some("user.created"), Some("applied")));
}

#[test]
fn sign_prints_the_header_workos_would_send() {
    let body = fixture_bytes("event.user.created");
    let mut sign = binary()
        .args(["webhook", "sign"])
        .env("WORKOS_WEBHOOK_SECRET", format!("{SECRET},older"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sign.stdin.take().unwrap().write_all(&body).unwrap();
    let signed = sign.wait_with_output().unwrap();
    assert_eq!(signed.status.code(), Some(0));
    let text = String::from_utf8(signed.stdout).unwrap();
    let header = text.trim().strip_prefix("WorkOS-Signature: ").unwrap();
    let parsed = SignatureHeader::parse(Some(header.as_bytes()), Clock::system().now(), WEBHOOK_TOLERANCE).unwrap();
    assert!(parsed.verify(&[Secret::new(SECRET)], Bytes::from(body)).is_ok());
}

#[test]
fn a_dotenv_file_is_read_and_the_environment_beats_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "DATABASE_URL=mysql://from-the-file\nWORKOS_CLIENT_ID=client_1\n")
        .unwrap();
    let output = binary().arg("serve").current_dir(folder.path()).output().unwrap();
    let text = said(&output);
    assert!(text.contains("DATABASE_URL is malformed") && !text.contains("WORKOS_CLIENT_ID"), "{text}");
    let output = binary()
        .arg("serve")
        .current_dir(folder.path())
        .env("DATABASE_URL", "postgres://localhost/x")
        .output()
        .unwrap();
    assert!(!said(&output).contains("DATABASE_URL"), "{}", said(&output));
}

/// The binary on a terminal. All other tests use pipes.
#[tokio::test]
async fn on_a_terminal_a_scan_shows_its_progress() {
    let lab = Lab::new().await;
    lab.create_users(3);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let terminal = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = std::fs::OpenOptions::new().read(true).write(true).open(terminal).unwrap();
    let mut command = binary();
    command.arg("backfill").envs(lab.environment()).stderr(terminal.try_clone().unwrap()).stdout(Stdio::piped());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    drop(terminal);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("users: 3 new"), "{output:?}");
}

#[tokio::test]
async fn without_an_api_key_the_log_says_what_does_not_run() {
    let database = TestDatabase::new().await;
    let served = Served::start(&database.url(), free_address(), &[]);
    until("it is logged", async || served.log().contains("there is no API key")).await;
    let log = served.log();
    assert!(log.contains("does not poll, backfill, reconcile") && log.contains("Only webhooks are synced"), "{log}");
}
