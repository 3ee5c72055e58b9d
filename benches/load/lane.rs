//! One kind of load: a process that sends it, as the benchmark sees it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::requests::Kind;

/// The task of a process of the load generator.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// Distinguishes the IDs of this measurement from all others.
    pub(crate) run: String,
    pub(crate) secret: String,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) connections: usize,
    pub(crate) seconds: f64,
    /// Requests per second of an open loop; `None`: a closed loop.
    pub(crate) rate: Option<u32>,
}

/// The results of a process of the load generator.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    /// Answers other than 200.
    pub(crate) failed: u64,
    /// The first of them.
    pub(crate) failure: Option<String>,
    pub(crate) seconds: f64,
    /// Latencies, milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// CPU of the load generator, microseconds.
    pub(crate) cpu: f64,
}

/// A process of the load generator.
#[derive(Debug)]
pub(crate) struct Lane {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Lane {
    /// Starts it and waits until its requests are prepared and its connections are open.
    pub(crate) fn prepare(plan: &Plan) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg("lane").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut lane = Self { child, output };
        lane.say(&serde_json::to_string(plan).unwrap());
        assert_eq!(lane.line(), "ready\n", "the load generator could not prepare: {plan:?}");
        lane
    }

    /// Starts the clock.
    pub(crate) fn go(&mut self) {
        self.say("go");
    }

    /// Waits for the end.
    pub(crate) fn outcome(mut self) -> Outcome {
        let line = self.line();
        self.child.wait().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}
