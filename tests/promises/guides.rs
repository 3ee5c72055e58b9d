//! Checks the documents: exit codes, metrics, routes, codes, files and sections that they name exist, and their SQL examples run.
//! [`super::documents`] checks headers and commands, [`super::settings`] settings.

use std::collections::BTreeSet;
use std::path::Path;

use authkit_sync::store::roles;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};

use crate::documents::{code, documents};
use crate::support::actions::secrets;
use crate::support::binary::{run, said};
use crate::support::database::TestDatabase;
use crate::support::service::{Service, http_ok};

const SERVICE_KEY: &str = "a-service-key-of-at-least-32-characters";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn file(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every document with its path from the project's root; source files only if `sources` is true.
pub(crate) fn texts(sources: bool) -> Vec<(String, String)> {
    let found = documents()
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), text));
    let mut found: Vec<_> = found.filter(|(name, _)| name.ends_with(".rs") == sources).collect();
    if !sources {
        found.extend(
            ["deploy/env.example", "deploy/compose.yaml", "deploy/compose.secrets.yaml"]
                .map(|name| (name.to_owned(), file(name))),
        );
    }
    assert!(found.len() >= 11, "only {} documents were found", found.len());
    found
}

/// The fenced blocks in a language, whole.
pub(crate) fn blocks<'a>(text: &'a str, language: &'a str) -> impl Iterator<Item = &'a str> {
    let fences = text.split("```").skip(1).step_by(2);
    fences.filter_map(move |block| block.trim_start().strip_prefix(language)?.strip_prefix('\n'))
}

/// The names of all metrics, read from the source, without the suffix of counters.
pub(crate) fn metric_names() -> BTreeSet<String> {
    let mut source = file("src/metrics.rs");
    for entry in std::fs::read_dir(root().join("src/metrics")).unwrap() {
        source += &std::fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    // A name, a comma, and a sentence.
    let literals: Vec<&str> = source.split('"').collect();
    let names = literals.windows(4).filter_map(|window| {
        let [_, name, between, help] = window else { return None };
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let sentence = between.trim() == "," && help.starts_with(|first: char| first.is_ascii_uppercase());
        let prefix = if name.starts_with("process_") { "" } else { "authkit_sync_" };
        (plain && sentence).then(|| format!("{prefix}{name}"))
    });
    let names: BTreeSet<String> = names.collect();
    assert!(names.len() > 10, "only {names:?} were found; this function no longer reads them");
    names
}

#[test]
fn the_metrics_are_the_programs_own() {
    let names = metric_names();
    let guide = file("src/docs/operating.md");
    let table: BTreeSet<String> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("authkit_sync_") || name.starts_with("process_"))
        .map(|name| name.trim_end_matches("_total").to_owned())
        .collect();
    assert_eq!(
        table, names,
        "left: the table of metrics in src/docs/operating.md; right: src/metrics.rs and its files"
    );
    for (document, text) in texts(false) {
        for name in
            code(&text).into_iter().filter(|span| span.starts_with("authkit_sync_") && !span.contains([' ', '…']))
        {
            assert!(names.contains(name.trim_end_matches("_total")), "{document} names {name}, which is no metric");
        }
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let help = said(&run(&["--help"], &[]));
    let about = help.split("Exit codes:").nth(1).expect("the help lists the exit codes");
    let numbers = |text: &str| -> BTreeSet<u8> {
        text.split(|char: char| !char.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let guide = file("src/docs/operating.md");
    let table = guide.split("## Exit codes").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split('|').nth(1));
    assert_eq!(rows.flat_map(numbers).collect::<BTreeSet<u8>>(), numbers(about));
}

/// Paths of requests in examples, without their query.
fn shown_paths(text: &str) -> impl Iterator<Item = String> {
    let lines = blocks(text, "sh").flat_map(str::lines).filter(|line| line.contains("curl"));
    // An action of the simulated WorkOS is no route of the service.
    let lines = lines.filter(|line| !line.contains("/_simulate/"));
    let urls = lines.flat_map(|line| line.split([' ', '"', '\''])).filter(|word| word.contains('/'));
    urls.filter_map(|url| {
        let url = url.split("://").last()?;
        Some(format!("/{}", url.split_once('/')?.1.split('?').next()?))
    })
}

#[tokio::test]
async fn every_route_and_code_that_a_document_shows_is_the_services() {
    let database = TestDatabase::new().await;
    let pool = database.pool(5).await;
    let service =
        Service::start_with(&pool, |builder| builder.service_key("test", SERVICE_KEY).action_secrets(secrets())).await;
    let described: Value = service.get("/openapi.json").await.json();
    let ops = http_ok(&format!("http://{}/readyz", service.ops)).await;
    let paths: BTreeSet<&str> = described["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let text = described.to_string();
    let mut shown = 0;
    for (document, document_text) in texts(false) {
        for path in shown_paths(&document_text) {
            assert!(
                paths.contains(path.as_str()) || ["/readyz", "/metrics"].contains(&path.as_str()),
                "{document} requests {path}, which is no route"
            );
            shown += 1;
        }
        for span in code(&document_text) {
            let route = span.strip_prefix("GET ").or_else(|| span.strip_prefix("POST "));
            let route =
                route.map(|route| route.split('?').next().unwrap()).filter(|_| !document.ends_with("protocol.md"));
            if let Some(route) = route.filter(|route| route.starts_with('/') && !route.contains("_simulate")) {
                let known = paths.contains(route) || ["/metrics"].contains(&route);
                assert!(known, "{document} names {route}, which is no route");
                shown += 1;
            }
        }
        // Rows of answers: a status, then codes.
        let rows = document_text.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
        for code in rows.flat_map(|row| row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2)) {
            assert!(text.contains(&format!("`{code}`")), "{document} names the code {code}, which no route answers");
            shown += 1;
        }
    }
    assert!(shown > 30, "only {shown} routes and codes were found");
    for field in ["synced_through", "lag_seconds", "jobs", "quarantined"] {
        assert!(ops.contains(&format!("\"{field}\"")), "/readyz lacks {field}, which the runbook names: {ops}");
    }
    service.stop().await.unwrap();
}

#[test]
fn every_file_and_section_that_is_named_exists() {
    let mut named = 0;
    for (document, text) in texts(false) {
        let folder = Path::new(&document).parent().unwrap().to_owned();
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.contains("://") && !link.contains("::")) {
            let target = root().join(&folder).join(link.split('#').next().unwrap());
            assert!(target.exists(), "{document} links to {link}, which does not exist");
            named += 1;
        }
        let folders = ["src/", "tests/", "migrations/", "deploy/", "examples/", ".ci/", "benches/"];
        let plain =
            |span: &&str| !span.contains([' ', '*', '<', '…', '{']) && !span.contains("NNNN") && !span.contains("NAME");
        for path in code(&text).into_iter().filter(plain).filter(|span| folders.iter().any(|it| span.starts_with(it))) {
            assert!(root().join(path).exists(), "{document} names {path}, which does not exist");
            named += 1;
        }
    }
    assert!(named > 40, "only {named} files were found");
    for (source, text) in texts(true) {
        for rest in text.split("docs::").skip(1) {
            let word = rest.split([')', '`', ' ', '\n', ']']).next().unwrap();
            let Some((guide, anchor)) = word.split_once('#') else { continue };
            let headings = file(&format!("src/docs/{guide}.md"));
            let anchors = headings.lines().filter_map(|line| line.strip_prefix("## "));
            let known = anchors.map(|line| line.to_ascii_lowercase().replace(' ', "-")).any(|it| it == anchor);
            assert!(known, "{source} cites {word}, which is no section of that guide");
        }
    }
}

/// The examples of the guide `reading`, in order, as an application's owner would run them.
#[tokio::test]
async fn the_sql_examples_run() {
    let database = TestDatabase::new().await;
    let pool = database.pool(1).await;
    roles::assert(&pool).await.unwrap();
    // Roles belong to the server, so this one has a unique name.
    let role = format!("{}_authenticated", database.name());
    pool.execute(AssertSqlSafe(format!("create role {role}"))).await.unwrap();
    let mut ran = 0;
    for name in ["README.md", "src/docs/reading.md", "deploy/README.md"] {
        for example in blocks(&file(name), "sql") {
            let example = ["to authenticated", "to service"]
                .iter()
                .fold(example.to_owned(), |example, grantee| example.replace(grantee, &format!("to {role}")));
            let outcome = pool.execute(AssertSqlSafe(example.clone())).await;
            assert!(outcome.is_ok(), "{name}: {outcome:?}: {example}");
            ran += 1;
        }
    }
    assert!(ran >= 6, "only {ran} examples were found");
    let drop = format!("drop table notes, invoices, announcements; drop owned by {role}; drop role {role}");
    pool.execute(AssertSqlSafe(drop)).await.unwrap();
}

#[test]
fn the_readme_stays_short() {
    assert!(file("README.md").lines().count() <= 160, "move details to a guide in src/docs");
}
