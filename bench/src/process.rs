//! Processes of this host and the memory they hold, as /proc has it.

use std::fs;

use anyhow::{Context, Result};

/// One process for ever: a pid alone may be somebody else's a moment later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    started_at: u64,
}

/// In MiB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// Pages that it sees, also those that it shares with others.
    pub resident: f64,
    /// Each shared page divided by those who share it: adds up over processes.
    pub proportional: f64,
}

impl Process {
    pub fn of(pid: i32) -> Result<Process> {
        let started_at = started_at(pid).with_context(|| format!("no process {pid}"))?;
        Ok(Process { pid, started_at })
    }

    pub fn is_there(self) -> bool {
        started_at(self.pid) == Some(self.started_at)
    }

    pub fn memory(self) -> Result<Memory> {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        parse_rollup(&text).with_context(|| format!("parse {path}"))
    }

    /// Those of which this is the parent, and whose command line has that word.
    pub fn children_with(self, word: &str) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("list processes")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let named = command.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes());
            if named && stat_field(pid, 1) == u64::try_from(self.pid).ok() {
                found.extend(Process::of(pid).ok());
            }
        }
        Ok(found)
    }
}

/// In MiB: what new programs may have before the kernel must take from others.
pub fn memory_available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    kib(&text, "MemAvailable:").map(|kib| kib / 1024.0).context("the kernel names no available memory")
}

fn parse_rollup(text: &str) -> Option<Memory> {
    Some(Memory { resident: kib(text, "Rss:")? / 1024.0, proportional: kib(text, "Pss:")? / 1024.0 })
}

fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// In clock ticks after boot. `None` also for one that has ended and was not reaped yet.
fn started_at(pid: i32) -> Option<u64> {
    stat_field(pid, 19)
}

/// Counted after the process's name, its state being the first.
fn stat_field(pid: i32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also brackets and spaces.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if matches!(fields.first(), None | Some(&"Z") | Some(&"X")) {
        return None;
    }
    fields.get(number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_not_there() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        let this = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(process.is_there());
        // The parent goes on in the middle of the child's exec, a moment before the kernel shows the new arguments.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !this.children_with("60").unwrap().contains(&process) {
            assert!(std::time::Instant::now() < deadline, "its arguments never come");
            std::thread::yield_now();
        }

        child.kill().unwrap();
        child.wait().unwrap();

        assert!(!process.is_there());
        assert!(Process::of(process.pid).is_err());
    }

    #[test]
    fn memory_is_read_in_mebibytes() {
        let text = "00400000-7ffd 00000000 00:00 0 [rollup]\nRss:                2048 kB\nPss:                 512 kB\n\
                    Pss_Dirty:             4 kB\n";

        assert_eq!(parse_rollup(text), Some(Memory { resident: 2.0, proportional: 0.5 }));
        assert!(memory_available().unwrap() > 0.0);
    }
}
