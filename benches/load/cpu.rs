//! CPU time and memory of processes, from `/proc`.

use std::fs;
use std::time::Duration;

/// The kernel counts in hundredths of a second for every program (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// The fields of `/proc/PID/stat` after the name of the program, which may contain spaces. The first one is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String], from: usize) -> Duration {
    let read = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_nanos((read(from) + read(from + 1)) * 1_000_000_000 / TICKS_PER_SECOND)
}

/// User and system time of a process with all its threads.
pub(crate) fn of_process(pid: u32) -> Duration {
    stat(pid).map_or(Duration::ZERO, |fields| ticks(&fields, 11))
}

/// The time of a process with one thread, in nanoseconds if the kernel reports them.
fn of_single_thread(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|field| field.parse().ok());
    nanos.map_or_else(|| of_process(pid), Duration::from_nanos)
}

/// The time of PostgreSQL: the postmaster, its running children, and those that have ended.
pub(crate) fn of_postgres(postmaster: u32) -> Duration {
    let ended = stat(postmaster).map_or(Duration::ZERO, |fields| ticks(&fields, 13));
    let parent = postmaster.to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let children = processes.filter(|pid| stat(*pid).is_some_and(|fields| fields.get(1) == Some(&parent)));
    ended + of_single_thread(postmaster) + children.map(of_single_thread).sum::<Duration>()
}

/// Resident memory in MiB: current and largest.
pub(crate) fn memory(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let read = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    (read("VmRSS:"), read("VmHWM:"))
}
