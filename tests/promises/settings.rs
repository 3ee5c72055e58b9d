//! Each setting is defined once: the guide, the example file, the help and the commands follow the definitions.

use std::collections::BTreeSet;
use std::path::Path;

use authkit_sync::config::{Description, SETTINGS, Source};
use authkit_sync::domain::clock::Clock;
use authkit_sync::workos::signature::Secret;
use clap::Command;
use futures_util::future::join_all;
use sqlx::Executor;

use crate::guides::{file, texts};
use crate::support::binary::{Served, binary, free_address, run, said};
use crate::support::database::TestDatabase;
use crate::support::fixture_bytes;
use crate::support::service::{SECRET, until};

fn descriptions() -> impl Iterator<Item = &'static Description> {
    SETTINGS.iter().map(|setting| setting.description())
}

/// Compares a file with its generated text, or writes the file if `UPDATE` is set.
fn assert_generated(name: &str, generated: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), generated).unwrap();
    }
    assert!(
        file(name) == generated,
        "{name} differs from the definitions: run `UPDATE=1 cargo test --test promises settings`"
    );
}

#[test]
fn the_table_of_settings_in_the_guide_is_generated() {
    let (name, start) = ("src/docs/operating.md", "| variable | default | meaning |\n|---|---|---|\n");
    let guide = file(name);
    let (before, rest) = guide.split_once(start).unwrap();
    let after = rest.split_once("\n\n").unwrap().1;
    let row = |setting: &Description| {
        let default = setting.default().map(|default| format!("`{default}` ")).unwrap_or_default();
        let file = setting.file_variable().map(|name| format!(" or `{name}`")).unwrap_or_default();
        format!("| `{}`{file} | {default}| {} |\n", setting.name, setting.help())
    };
    let rows: String = descriptions().map(row).collect();
    assert_generated(name, &format!("{before}{start}{rows}\n{after}"));
}

/// Splits a text into comment lines of at most 120 characters.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split(' ') {
        if lines.last().unwrap().len() + word.len() >= 120 {
            lines.push(String::from("#"));
        }
        let line = lines.last_mut().unwrap();
        line.push(' ');
        line.push_str(word);
    }
    lines.join("\n")
}

#[test]
fn the_example_file_is_generated() {
    let (name, start) = ("deploy/env.example", "# --- Settings ---\n");
    let example = file(name);
    let (before, _) = example.split_once(start).unwrap();
    let entry = |setting: &Description| {
        let line = match setting.example {
            Some(example) => format!("{}={example}", setting.name),
            None => format!("# {}={}", setting.name, setting.default().unwrap_or_default()),
        };
        let file = setting.file_variable().map(|name| format!("# {name}=\n")).unwrap_or_default();
        format!("\n{}\n{line}\n{file}", comment(&setting.help()))
    };
    let entries: String = descriptions().map(entry).collect();
    assert_generated(name, &format!("{before}{start}{entries}"));
}

#[test]
fn every_variable_of_ours_that_a_document_names_is_a_setting() {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_';
    for (document, text) in texts(false) {
        for name in text.split(|char| !is_plain(char)).filter(|word| word.starts_with("AUTHKIT_SYNC_")) {
            // The second prefix is that of the variables of the tests.
            let is_known = name == "AUTHKIT_SYNC_"
                || name.starts_with("AUTHKIT_SYNC_TEST_")
                || descriptions()
                    .any(|setting| setting.name == name || setting.file_variable().as_deref() == Some(name));
            assert!(is_known, "{document} names {name}, which is no setting");
        }
    }
}

/// The paths of all commands with their flags: `events list` and so on.
fn commands(command: &Command, path: &str, found: &mut Vec<(String, BTreeSet<String>)>) {
    for subcommand in command.get_subcommands() {
        let path = format!("{path} {}", subcommand.get_name()).trim_start().to_owned();
        let flags = subcommand.get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect();
        found.push((path.clone(), flags));
        commands(subcommand, &path, found);
    }
}

#[test]
fn each_command_has_the_flags_of_the_settings_that_it_uses_and_no_others() {
    let mut found = Vec::new();
    commands(&authkit_sync::cli::command(), "", &mut found);
    for setting in descriptions() {
        assert!(setting.required_by.iter().all(|command| setting.is_used_by(command)), "{}", setting.name);
        for command in setting.used_by {
            assert!(found.iter().any(|(path, _)| path == command), "{} names {command}", setting.name);
        }
        let Some(flag) = setting.flag() else { continue };
        for (path, flags) in &found {
            let has_subcommands = found.iter().any(|(other, _)| other.starts_with(&format!("{path} ")));
            let is_used = setting.is_used_by(path) && !has_subcommands;
            assert_eq!(flags.contains(&flag), is_used, "{path} and --{flag}");
        }
    }
}

#[test]
fn every_default_is_well_formed() {
    let source = Source::default();
    for setting in SETTINGS.iter().filter(|setting| setting.description().default().is_some()) {
        assert_eq!(setting.problem(&source, "serve"), None);
    }
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_closest_name_and_variables_of_kubernetes_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "AUTHKIT_SYNC_RETENTON=30d\n").unwrap();
    let output = binary()
        .args(["healthcheck", "--listen", &free_address().to_string()])
        .current_dir(folder.path())
        .envs([
            ("AUTHKIT_SYNC_CATCHUP", "hunter2"),
            // All of them are in the unit test of `config/unknown.rs`.
            ("AUTHKIT_SYNC_SERVICE_HOST", "10.0.0.1"),
            ("AUTHKIT_SYNC_PORT", "tcp://10.0.0.1:8080"),
        ])
        .output()
        .unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "nothing listens, and that is all: {text}");
    let warnings: Vec<&str> = text.lines().filter(|line| line.contains("no such setting")).collect();
    assert_eq!(warnings.len(), 2, "{text}");
    for (name, closest) in [("CATCHUP", "CATCH_UP"), ("RETENTON", "RETENTION")] {
        let says = [format!("AUTHKIT_SYNC_{name} is set"), format!("Did you mean AUTHKIT_SYNC_{closest}?")];
        assert!(warnings.iter().any(|line| says.iter().all(|part| line.contains(part))), "{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_process_with_too_few_connections_is_refused_with_the_minimum() {
    let output = run(&["serve"], &[("AUTHKIT_SYNC_DB_POOL", "7")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(said(&output).contains("AUTHKIT_SYNC_DB_POOL is malformed: it must be a number of connections from 8 to"));
    let help = descriptions().find(|setting| setting.name == "AUTHKIT_SYNC_DB_POOL").unwrap().help();
    assert!(help.contains("At least 8"), "{help}");
}

/// Webhooks and lookups wait for a lock, more of each than the process has connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_opens_no_more_connections_than_configured() {
    let database = TestDatabase::new().await;
    let key = "a-service-key-of-at-least-32-characters";
    let keys = format!("test:{key}");
    let settings = [("AUTHKIT_SYNC_DB_POOL", "8"), ("AUTHKIT_SYNC_DB_TIMEOUT", "2s"), ("AUTHKIT_SYNC_API_KEYS", &keys)];
    let served = Served::start(&database.url(), free_address(), &settings);
    let pool = database.pool(2).await;
    let count = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity where application_name = 'authkit-sync' and datname = current_database()";
        sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap()
    };
    let client = authkit_sync::workos::http::http_client().unwrap();
    let body = fixture_bytes("event.user.created");
    let signature = Secret::new(SECRET).sign(Clock::system().now(), &body);
    let webhook =
        || client.post(served.url("/workos/webhook")).header("WorkOS-Signature", &signature).body(body.clone());
    let lookup = || client.get(served.url("/changes")).bearer_auth(key);
    until("it works", async || webhook().send().await.unwrap().status() == 200).await;
    let mut open = pool.acquire().await.unwrap();
    open.execute("begin; lock table workos.events, workos.changes").await.unwrap();
    let requests = (0..40).map(|number| if number % 2 == 0 { webhook().send() } else { lookup().send() });
    let requests = tokio::spawn(join_all(requests.collect::<Vec<_>>()));
    let mut most = 0;
    while !requests.is_finished() {
        most = most.max(count().await);
    }
    open.execute("rollback").await.unwrap();
    until("webhooks work again", async || webhook().send().await.unwrap().status() == 200).await;
    until("lookups work again", async || lookup().send().await.unwrap().status() == 200).await;
    assert!((4..=8).contains(&most), "{most} connections");
}

/// The default comes from the table of the guide, which another test compares with the settings.
#[test]
fn three_replicas_at_defaults_stay_within_the_default_limit_of_postgres_also_during_a_deployment() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/operating.md")).unwrap();
    let row = guide.lines().find(|line| line.starts_with("| `AUTHKIT_SYNC_DB_POOL`")).unwrap();
    let pool: u32 = row.split('`').nth(3).unwrap().parse().unwrap();
    // 100, without those that PostgreSQL reserves for superusers.
    let limit = 100 - 3;
    // Connections that a process opens in addition to its pools when it starts, and connections of a command.
    let (start, command) = (8, 4);
    assert!(3 * (pool + start) <= limit, "three processes that start at the same time");
    assert!(4 * pool + start + command <= limit, "a fourth one starts, while `migrate` runs");
}
