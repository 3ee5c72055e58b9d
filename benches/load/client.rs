//! The load generator's process: HTTP/1.1 over kept connections, one request at a time on each.

use std::io::{BufRead, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

use super::cpu;
use super::lane::{Outcome, Plan};
use super::requests::Requests;

/// Requests that are prepared for each second of a measurement: more than can be answered.
const PER_SECOND: f64 = 30_000.0;
const PER_SECOND_ALONE: f64 = 6_000.0;

/// Where the connections get their next request.
#[derive(Debug)]
struct Source {
    requests: Requests,
    next: AtomicUsize,
    until: Instant,
    /// Open loop: the intended times.
    intended: Option<Mutex<mpsc::UnboundedReceiver<Instant>>>,
}

impl Source {
    /// The next request and the time from which its latency counts.
    async fn next(&self) -> Option<(&[u8], Instant)> {
        let at = match &self.intended {
            Some(intended) => intended.lock().await.recv().await?,
            None => Instant::now(),
        };
        if self.intended.is_none() && at >= self.until {
            return None;
        }
        let request = self.requests.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        Some((request, at))
    }
}

/// The results of one connection: latencies in nanoseconds, and answers other than 200.
#[derive(Debug, Default)]
struct Seen {
    latencies: Vec<u64>,
    failed: u64,
    failure: Option<String>,
}

async fn connection(mut stream: TcpStream, source: Arc<Source>) -> Seen {
    let mut seen = Seen::default();
    let mut answer = Vec::with_capacity(4_096);
    while let Some((request, from)) = source.next().await {
        stream.write_all(request).await.unwrap();
        let length = read_answer(&mut stream, &mut answer).await;
        seen.latencies.push(u64::try_from(from.elapsed().as_nanos()).unwrap());
        if !answer.starts_with(b"HTTP/1.1 200") {
            seen.failed += 1;
            seen.failure.get_or_insert_with(|| String::from_utf8_lossy(&answer[..length]).into_owned());
        }
    }
    seen
}

/// Reads one complete answer.
async fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> usize {
    answer.clear();
    let mut whole = None;
    loop {
        assert!(stream.read_buf(answer).await.unwrap() > 0, "the service closed a connection");
        if whole.is_none() {
            whole = find(answer, b"\r\n\r\n").map(|head| head + 4 + content_length(&answer[..head]));
        }
        if let Some(whole) = whole.filter(|whole| *whole <= answer.len()) {
            return whole;
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn content_length(head: &[u8]) -> usize {
    let at = find(head, b"content-length: ").unwrap() + b"content-length: ".len();
    head[at..].iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, byte| sum * 10 + usize::from(byte - b'0'))
}

/// Sends the intended times, from a thread that sleeps until each: a timer of tokio would be up to a millisecond late.
fn pace(rate: u32, seconds: f64, times: &mpsc::UnboundedSender<Instant>) {
    let began = Instant::now();
    for number in 0..(f64::from(rate) * seconds) as u32 {
        let at = began + Duration::from_secs_f64(f64::from(number) / f64::from(rate));
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if times.send(at).is_err() {
            return;
        }
    }
}

fn line() -> String {
    let mut line = String::new();
    stdin().lock().read_line(&mut line).unwrap();
    line
}

/// Reads a plan, prepares, waits for the start, sends, and prints the outcome.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() {
    let plan: Plan = serde_json::from_str(&line()).unwrap();
    let per_second = if plan.connections == 1 { PER_SECOND_ALONE } else { PER_SECOND };
    let per_second = plan.rate.map_or(per_second, f64::from);
    let requests = Requests::prepare(&plan.kind, &plan.run, &plan.secret, (per_second * plan.seconds) as usize + 1);
    let mut streams = Vec::new();
    for number in 0..plan.connections {
        let stream = TcpStream::connect(plan.addresses[number % plan.addresses.len()]).await.unwrap();
        stream.set_nodelay(true).unwrap();
        streams.push(stream);
    }
    println!("ready");
    assert_eq!(line(), "go\n");
    let (began, cpu) = (Instant::now(), cpu::of_process(std::process::id()));
    let intended = plan.rate.map(|rate| {
        let (times, intended) = mpsc::unbounded_channel();
        std::thread::spawn(move || pace(rate, plan.seconds, &times));
        Mutex::new(intended)
    });
    let until = began + Duration::from_secs_f64(plan.seconds);
    let source = Arc::new(Source { requests, next: AtomicUsize::new(0), until, intended });
    let mut connections = tokio::task::JoinSet::new();
    for stream in streams {
        connections.spawn(connection(stream, source.clone()));
    }
    let seen = connections.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = (cpu::of_process(std::process::id()) - cpu).as_secs_f64() * 1e6;
    println!("{}", serde_json::to_string(&outcome(seen, seconds, cpu)).unwrap());
}

fn outcome(seen: Vec<Seen>, seconds: f64, cpu: f64) -> Outcome {
    let failed = seen.iter().map(|seen| seen.failed).sum();
    let failure = seen.iter().find_map(|seen| seen.failure.clone());
    let mut all: Vec<u64> = seen.into_iter().flat_map(|seen| seen.latencies).collect();
    all.sort_unstable();
    let at = |part: f64| {
        let number = ((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1));
        all.get(number).map_or(0.0, |nanos| *nanos as f64 / 1e6)
    };
    let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), at(1.0));
    Outcome { sent: all.len() as u64, failed, failure, seconds, p50, p99, p999, max, cpu }
}
