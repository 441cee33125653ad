//! `GET /system/metrics`: cpu, memory and disk of the sandbox, from its cgroup where there is one.
//! Sampled when asked: an idle sandbox does nothing for it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::errors::ApiError;
use crate::routes::Daemon;

/// Asked again sooner, the last figure stands.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// What the kernel writes for "no limit" in cgroup v1, about.
const NO_LIMIT: u64 = 1 << 60;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    cpu_count: u64,
    /// Of the limit, averaged since the last time somebody asked; 0 the first time.
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    disk_total: u64,
    disk_used: u64,
    disk_free: u64,
    /// RFC 3339.
    timestamp: String,
    timestamp_unix: i64,
}

#[derive(Default)]
pub struct Sampler {
    last: Mutex<Option<Sample>>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu_used: Duration,
    used_pct: f64,
}

impl Sampler {
    /// `used` is all processor time so far, `limit` in processors.
    fn used_pct(&self, now: Instant, used: Duration, limit: f64) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let used_pct = match *last {
            None => 0.0,
            Some(sample) if now - sample.at < WINDOW_MIN => return sample.used_pct,
            Some(sample) => {
                let share =
                    used.saturating_sub(sample.cpu_used).as_secs_f64() / (now - sample.at).as_secs_f64();
                (share / limit * 100.0).clamp(0.0, 100.0)
            }
        };
        *last = Some(Sample { at: now, cpu_used: used, used_pct });
        used_pct
    }
}

pub async fn show(State(daemon): State<Arc<Daemon>>) -> Result<Json<Metrics>, ApiError> {
    let disk = daemon.workers.run(|| rustix::fs::statvfs("/")).await;
    let disk = disk.map_err(|error| ApiError::internal(format!("statvfs: {error}")))?;
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    let limit = cpu_limit().unwrap_or(cpus as f64).min(cpus as f64);
    let (mem_total, mem_used, mem_cache) = memory();
    let now = OffsetDateTime::now_utc();
    Ok(Json(Metrics {
        cpu_count: limit.ceil() as u64,
        cpu_used_pct: daemon.metrics.used_pct(Instant::now(), cpu_used().unwrap_or_default(), limit),
        mem_total,
        mem_used,
        mem_cache,
        disk_total: disk.f_blocks * disk.f_frsize,
        disk_used: (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        disk_free: disk.f_bavail * disk.f_frsize,
        timestamp: now.format(&Rfc3339).unwrap_or_default(),
        timestamp_unix: now.unix_timestamp(),
    }))
}

/// In processors; `None` without a limit.
fn cpu_limit() -> Option<f64> {
    if let Some(text) = read("/sys/fs/cgroup/cpu.max") {
        let (quota, period) = text.trim().split_once(' ')?;
        return Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?);
    }
    let quota = number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")? as f64;
    Some(quota / number("/sys/fs/cgroup/cpu/cpu.cfs_period_us")? as f64)
}

fn cpu_used() -> Option<Duration> {
    if let Some(text) = read("/sys/fs/cgroup/cpu.stat") {
        return field(&text, "usage_usec").map(Duration::from_micros);
    }
    number("/sys/fs/cgroup/cpuacct/cpuacct.usage").map(Duration::from_nanos)
}

/// Total, used without cache, cache.
fn memory() -> (u64, u64, u64) {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let of_host = |name| field(&meminfo, name).unwrap_or(0) * 1024;
    let total = of_host("MemTotal:");
    let group = |prefix: &str, max: &str, current: &str| {
        let stat = read(format!("{prefix}.stat"))?;
        let cache = field(&stat, "file").or_else(|| field(&stat, "total_cache")).unwrap_or(0);
        let limit =
            number(&format!("{prefix}.{max}")).filter(|limit| *limit < NO_LIMIT).unwrap_or(total).min(total);
        Some((limit, number(&format!("{prefix}.{current}"))?.saturating_sub(cache), cache))
    };
    group("/sys/fs/cgroup/memory", "max", "current")
        .or_else(|| group("/sys/fs/cgroup/memory/memory", "limit_in_bytes", "usage_in_bytes"))
        .unwrap_or_else(|| (total, total - of_host("MemAvailable:"), of_host("Cached:")))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: &str) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_use_is_of_the_limit_and_since_the_last_question() {
        let (sampler, start) = (Sampler::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);

        assert_eq!(sampler.used_pct(at(0), Duration::from_secs(100), 2.0), 0.0);
        assert_eq!(sampler.used_pct(at(10), Duration::from_secs(105), 2.0), 25.0);
        assert_eq!(sampler.used_pct(at(10) + WINDOW_MIN / 2, Duration::from_secs(200), 2.0), 25.0);
        assert_eq!(sampler.used_pct(at(20), Duration::from_secs(400), 2.0), 100.0);
    }

    #[test]
    fn a_field_is_found_by_its_first_word() {
        assert_eq!(field("MemTotal:       16 kB\nCached: 4 kB\n", "Cached:"), Some(4));
    }
}
