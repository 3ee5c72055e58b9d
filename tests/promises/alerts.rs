//! The alerts and the dashboard in `deploy`: they are valid and name only what exists. [`super::alerts_fire`] runs
//! them on a real Prometheus.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::guides::{file, metric_names};
use crate::support::prometheus::{is_installed, promtool};

pub(crate) const RULES: &str = "deploy/prometheus/alerts.yaml";

/// Returns the values of a key of the rules.
fn values(key: &str) -> Vec<String> {
    let rules = file(RULES);
    let lines = rules.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    lines.map(|value| value.trim().trim_matches('"').to_owned()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&file("deploy/grafana/dashboard.json")).unwrap()
}

/// Returns the queries of the dashboard's panels, with the values that Grafana would insert.
pub(crate) fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "10s").replace("$job", "authkit-sync").replace("$instance", ".*");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    queries
}

#[test]
fn the_rules_are_valid_and_pass_their_unit_tests() {
    if !is_installed() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [["check", "rules", "alerts.yaml"].as_slice(), &["test", "rules", "alerts_test.yaml"]] {
        let output = promtool(&folder, arguments);
        assert!(output.status.success(), "{}", crate::support::binary::said(&output));
    }
}

#[test]
fn every_alert_has_a_severity_a_unit_test_and_a_section_in_the_runbook() {
    let alerts = values("alert:");
    assert!(alerts.len() > 20, "only {alerts:?} were found");
    let (guide, tests) = (file("src/docs/operating.md"), file("deploy/prometheus/alerts_test.yaml"));
    let sections: Vec<&str> = guide.split("\n### ").skip(1).collect();
    for alert in &alerts {
        let section = sections.iter().find(|section| section.lines().next() == Some(alert));
        let section = section.unwrap_or_else(|| panic!("src/docs/operating.md has no section {alert}"));
        assert!(
            section.contains("**Cause.**") && section.contains("**Fix.**"),
            "the section {alert} lacks cause or fix"
        );
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "alerts_test.yaml does not test {alert}");
    }
    let links: Vec<String> =
        alerts.iter().map(|alert| format!("src/docs/operating.md#{}", alert.to_lowercase())).collect();
    assert_eq!(values("runbook_url:"), links);
    for severity in values("severity:") {
        assert!(["critical", "warning"].contains(&&*severity), "{severity}");
    }
    for key in ["severity:", "summary:", "description:", "for:"] {
        assert_eq!(values(key).len(), alerts.len(), "an alert lacks {key}");
    }
}

#[test]
fn every_metric_that_a_rule_or_a_panel_names_exists() {
    let names = metric_names();
    let texts = [file(RULES), file("deploy/prometheus/alerts_test.yaml"), queries_text()].concat();
    let words = texts.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let named: BTreeSet<&str> =
        words.filter(|word| word.starts_with("authkit_sync_") || word.starts_with("process_")).collect();
    assert!(named.len() > 25, "only {named:?} were found");
    for name in named {
        let base = ["_total", "_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let known = names.contains(name) || base.is_some_and(|base| names.contains(base));
        assert!(known, "{name} is no metric");
    }
}

fn queries_text() -> String {
    queries().into_iter().map(|(_, query)| query + "\n").collect()
}
