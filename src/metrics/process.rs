//! The standard metrics of a process, from `/proc`. Their names are the same for every program.

use std::fmt;

use procfs::process::{LimitValue, Process};
use procfs::{WithCurrentSystemInfo, boot_time_secs, ticks_per_second};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads the values when the metrics are requested. A value that cannot be read is absent.
#[derive(Debug)]
pub(super) struct ProcessCollector;

#[derive(Clone, Copy, Debug, Default)]
struct Values {
    cpu_seconds: Option<f64>,
    start_time: Option<f64>,
    resident_memory: Option<f64>,
    virtual_memory: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    threads: Option<f64>,
}

/// Returns a count as the number that a metric shows.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
fn number(count: u64) -> f64 {
    count as f64
}

fn read() -> Values {
    let Ok(process) = Process::myself() else { return Values::default() };
    let open_fds = process.fd_count().ok().and_then(|count| u64::try_from(count).ok()).map(number);
    let limit = process.limits().ok().map(|limits| limits.max_open_files.soft_limit);
    let max_fds = match limit {
        Some(LimitValue::Value(limit)) => Some(number(limit)),
        Some(LimitValue::Unlimited) | None => None,
    };
    let Ok(stat) = process.stat() else { return Values { open_fds, max_fds, ..Values::default() } };
    let ticks = number(ticks_per_second().max(1));
    Values {
        cpu_seconds: Some(number(stat.utime + stat.stime) / ticks),
        start_time: boot_time_secs().ok().map(|boot| number(boot) + number(stat.starttime) / ticks),
        resident_memory: Some(number(stat.rss_bytes().get())),
        virtual_memory: Some(number(stat.vsize)),
        open_fds,
        max_fds,
        threads: u64::try_from(stat.num_threads).ok().map(number),
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let values = read();
        if let Some(seconds) = values.cpu_seconds {
            let cpu = encoder.encode_descriptor(
                "process_cpu_seconds",
                "Processor time in user mode and in the kernel",
                None,
                MetricType::Counter,
            )?;
            ConstCounter::new(seconds).encode(cpu)?;
        }
        for (name, help, value) in [
            ("process_start_time_seconds", "When the process started (Unix time)", values.start_time),
            ("process_resident_memory_bytes", "Memory in use", values.resident_memory),
            ("process_virtual_memory_bytes", "Size of the address space", values.virtual_memory),
            ("process_open_fds", "Open file descriptors", values.open_fds),
            ("process_max_fds", "Limit of open file descriptors", values.max_fds),
            ("process_threads", "Threads", values.threads),
        ] {
            if let Some(value) = value {
                let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}
