//! A real headless Chromium, from Debian's package `chromium`, driven through its pipe by the DevTools protocol.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::binary::clean;
use super::programs::required_program;

/// Timeout of a step. A busy machine needs most of it.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A running Chromium with one tab. Killed when dropped.
pub(crate) struct Chromium {
    child: Child,
    folder: PathBuf,
    requests: File,
    answers: Receiver<Value>,
    session: String,
    last_id: u64,
    /// What the browser has reported as an error: violations of the content security policy, exceptions, failed requests.
    pub(crate) problems: Vec<String>,
}

impl Chromium {
    /// Starts Chromium, or prints that the test is skipped.
    pub(crate) fn start() -> Option<Self> {
        let program = required_program("chromium", "chromium")?;
        let folder = std::env::temp_dir().join(format!("authkit-sync-chromium-{:016x}", fastrand::u64(..)));
        std::fs::create_dir_all(&folder).unwrap();
        let (requests, answers) = (folder.join("requests"), folder.join("answers"));
        assert!(Command::new("mkfifo").arg(&requests).arg(&answers).status().unwrap().success());
        let mut command = clean(Command::new("sh"));
        // Chromium reads from descriptor 3 and writes to descriptor 4. It refuses its sandbox to root.
        command.args(["-c", "exec \"$0\" \"$@\" 3<\"$REQUESTS\" 4>\"$ANSWERS\""]).arg(program);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--remote-debugging-pipe", "--hide-scrollbars", "--no-proxy-server"]);
        command.arg(format!("--user-data-dir={}", folder.display()));
        command.env("HOME", &folder).env("REQUESTS", &requests).env("ANSWERS", &answers);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let requests = File::options().write(true).open(requests).unwrap();
        let answers = read(File::open(answers).unwrap());
        let (session, problems) = (String::new(), Vec::new());
        let mut chromium = Self { child, folder, requests, answers, session, last_id: 0, problems };
        let target = chromium.call("Target.createTarget", json!({"url": "about:blank"}));
        let session = chromium.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        chromium.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            chromium.call(domain, json!({}));
        }
        Some(chromium)
    }

    /// Sends a command and returns its result.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        self.requests.write_all(format!("{request}\0").as_bytes()).unwrap();
        loop {
            let answer = self.answers.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("no answer to {method}"));
            if answer["id"] == self.last_id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Log.entryAdded" if params["entry"]["level"] == "error" => self.problems.push(params["entry"].to_string()),
            "Runtime.exceptionThrown" => self.problems.push(params["exceptionDetails"].to_string()),
            _ => {}
        }
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.until("the page is loaded", &format!("document.readyState === 'complete' && location.href === '{url}'"));
    }

    /// Sets the size of the window in CSS pixels, and the theme: `light` or `dark`.
    pub(crate) fn show(&mut self, width: u32, height: u32, theme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{"name": "prefers-color-scheme", "value": theme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Returns the value of an expression of JavaScript.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, what: &str, expression: &str) {
        let began = Instant::now();
        while self.evaluate(expression) != json!(true) {
            assert!(began.elapsed() < TIMEOUT, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stores a picture of the whole page.
    pub(crate) fn screenshot(&mut self, file: &Path) {
        let size = self.call("Page.getLayoutMetrics", json!({}))["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true, "clip": clip}));
        std::fs::write(file, BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}

/// Reads messages, each of which ends with a NUL.
fn read(answers: File) -> Receiver<Value> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for message in BufReader::new(answers).split(0).map_while(Result::ok) {
            if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                break;
            }
        }
    });
    receiver
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Its own processes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
