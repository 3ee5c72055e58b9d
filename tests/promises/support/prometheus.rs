//! A real Prometheus, and its program `promtool`, from Debian's package `prometheus`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use authkit_sync::workos::http::http_client;
use serde_json::Value;

use super::binary::free_address;
use super::programs::required_program;
use super::service::until;

/// Returns whether Prometheus is installed. If it is not, says that the test is skipped.
pub(crate) fn is_installed() -> bool {
    ["prometheus", "promtool"].into_iter().all(|program| required_program(program, "prometheus").is_some())
}

/// Runs `promtool` in a folder.
pub(crate) fn promtool(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("promtool").args(arguments).current_dir(folder).output().unwrap()
}

/// A running Prometheus. Killed when dropped.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts it with targets that it reads every second, and with rules.
    pub(crate) async fn start(targets: &[SocketAddr], rules: &str) -> Self {
        let address = free_address();
        let folder = std::env::temp_dir().join(format!("authkit-sync-prometheus-{:016x}", fastrand::u64(..)));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("alerts.yaml"), rules).unwrap();
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [alerts.yaml]\nscrape_configs:\n  \
             - job_name: authkit-sync\n    static_configs: [{{ targets: [{}] }}]\n",
            targets.join(", ")
        );
        std::fs::write(folder.join("prometheus.yaml"), config).unwrap();
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(&folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self { child, address, folder };
        until("Prometheus is ready", async || {
            let ready = http_client().unwrap().get(format!("http://{address}/-/ready")).send().await;
            ready.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        prometheus
    }

    /// Returns the result of a query, or the error.
    pub(crate) async fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let request = http_client().unwrap().get(format!("http://{}/api/v1/query", self.address));
        let answer: Value = request.query(&[("query", query)]).send().await.unwrap().json().await.unwrap();
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until an alert fires.
    pub(crate) async fn fires(&self, alert: &str) {
        let query = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        until(&format!("{alert} fires"), async || !self.query(&query).await.unwrap().is_empty()).await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
