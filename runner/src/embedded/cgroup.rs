//! Control groups: what bounds a sandbox's memory, CPU and processes, and what freezes it. Version 2, and version 1 with its
//! hierarchies (also beside an empty version 2, as on hybrid hosts).
//!
//! ```text
//! version 1   <memory|cpu|pids|freezer>/atoll-<node>/s<slot>
//! version 2   <where this process is>/atoll-<node>/s<slot>
//! ```
//! Groups are named by slot: they exist before anybody knows which sandbox will be in them.

mod hierarchy;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use atoll_api::ids::NodeId;

use hierarchy::{Hierarchies, Version};

/// For a group to become empty or frozen; the kernel needs a moment after the last process has ended.
const SETTLE_DEADLINE: Duration = Duration::from_secs(2);
const SETTLE_POLL: Duration = Duration::from_millis(1);
const CPU_PERIOD_US: u64 = 100_000;

/// What one sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub memory_bytes: u64,
    pub cpus: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// All groups of this node.
#[derive(Debug)]
pub struct Cgroups {
    hierarchies: Hierarchies,
}

/// The groups of one slot.
#[derive(Debug, Clone)]
pub struct Cgroup {
    version: Version,
    /// Of version 2 there is one for all controllers.
    memory: PathBuf,
    cpu: PathBuf,
    pids: PathBuf,
    freezer: PathBuf,
}

/// How a process enters a group.
pub enum Entrance {
    /// Born into this folder.
    BornIn(OwnedFd),
    /// Written, as a pid, into each of these files.
    Procs(Vec<File>),
}

impl Cgroups {
    /// Finds the host's controllers and makes this node's parent groups.
    ///
    /// Errors say which controller the host lacks.
    pub fn open(node_id: NodeId) -> io::Result<Cgroups> {
        Ok(Cgroups { hierarchies: Hierarchies::open(&format!("atoll-{node_id}"))? })
    }

    /// Makes the groups of a slot, empty. What a crash left in them is killed first.
    pub fn create(&self, slot: u16) -> io::Result<Cgroup> {
        let cgroup = self.slot(slot);
        if cgroup.memory.exists() {
            cgroup.remove()?;
        }
        for dir in cgroup.dirs() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(cgroup)
    }

    /// The groups of a slot, whether or not they exist.
    pub fn slot(&self, slot: u16) -> Cgroup {
        let h = &self.hierarchies;
        let dir = |parent: &Path| parent.join(format!("s{slot}"));
        Cgroup {
            version: h.version,
            memory: dir(&h.memory),
            cpu: dir(&h.cpu),
            pids: dir(&h.pids),
            freezer: dir(&h.freezer),
        }
    }

    /// Slots that have groups.
    pub fn slots(&self) -> io::Result<Vec<u16>> {
        let mut slots = Vec::new();
        for parent in self.hierarchies.parents() {
            for entry in fs::read_dir(parent)? {
                let name = entry?.file_name();
                slots.extend(name.to_str().and_then(|name| name.strip_prefix('s')?.parse::<u16>().ok()));
            }
        }
        slots.sort_unstable();
        slots.dedup();
        Ok(slots)
    }

    /// The parent groups go too. All slots must have been removed.
    pub fn teardown(&self) -> io::Result<()> {
        for parent in self.hierarchies.parents() {
            remove_dir(&parent)?;
        }
        Ok(())
    }
}

impl Cgroup {
    pub fn entrance(&self) -> io::Result<Entrance> {
        match self.version {
            Version::Two => Ok(Entrance::BornIn(File::open(&self.memory)?.into())),
            Version::One => {
                let procs = |dir: &PathBuf| File::options().write(true).open(dir.join("cgroup.procs"));
                Ok(Entrance::Procs(self.dirs().iter().map(|dir| procs(dir)).collect::<io::Result<_>>()?))
            }
        }
    }

    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let Limits { memory_bytes, cpus, pids } = limits;
        let quota_us = u64::from(*cpus) * CPU_PERIOD_US;
        write(&self.pids, "pids.max", pids)?;
        match self.version {
            Version::Two => {
                write(&self.memory, "memory.max", memory_bytes)?;
                optional(write(&self.memory, "memory.swap.max", &0))?;
                write(&self.cpu, "cpu.max", &format!("{quota_us} {CPU_PERIOD_US}"))
            }
            Version::One => {
                write(&self.memory, "memory.limit_in_bytes", memory_bytes)?;
                // Memory and swap together; absent where swap is not accounted.
                optional(write(&self.memory, "memory.memsw.limit_in_bytes", memory_bytes))?;
                write(&self.cpu, "cpu.cfs_period_us", &CPU_PERIOD_US)?;
                write(&self.cpu, "cpu.cfs_quota_us", &quota_us)
            }
        }
    }

    /// Returns when every process has stopped.
    pub fn freeze(&self) -> io::Result<()> {
        match self.version {
            Version::Two => write(&self.freezer, "cgroup.freeze", &1)?,
            Version::One => write(&self.freezer, "freezer.state", &"FROZEN")?,
        }
        settle(|| {
            let frozen = self.is_frozen()?;
            // Version 1 gives up on a process that is just forking; asking again goes on.
            if !frozen && self.version == Version::One {
                write(&self.freezer, "freezer.state", &"FROZEN")?;
            }
            Ok(frozen)
        })
    }

    pub fn thaw(&self) -> io::Result<()> {
        match self.version {
            Version::Two => write(&self.freezer, "cgroup.freeze", &0),
            Version::One => write(&self.freezer, "freezer.state", &"THAWED"),
        }
    }

    pub fn is_frozen(&self) -> io::Result<bool> {
        match self.version {
            Version::Two => Ok(fs::read_to_string(self.freezer.join("cgroup.events"))?.contains("frozen 1")),
            Version::One => Ok(fs::read_to_string(self.freezer.join("freezer.state"))?.trim() == "FROZEN"),
        }
    }

    /// Processes that the kernel has killed for the group's memory so far.
    pub fn oom_kills(&self) -> io::Result<u64> {
        let file = match self.version {
            Version::Two => "memory.events",
            Version::One => "memory.oom_control",
        };
        let text = fs::read_to_string(self.memory.join(file))?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        Ok(kills.unwrap_or(0))
    }

    /// Kills whoever is in it and removes it. Not an error when there is nothing.
    pub fn remove(&self) -> io::Result<()> {
        if self.freezer.exists() {
            // The frozen die only when they thaw.
            let _ = self.thaw();
        }
        self.kill_all()?;
        self.dirs().into_iter().try_for_each(|dir| remove_dir(dir))
    }

    fn kill_all(&self) -> io::Result<()> {
        if self.version == Version::Two && self.memory.exists() {
            return optional(write(&self.memory, "cgroup.kill", &1));
        }
        for dir in self.dirs() {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        Ok(())
    }

    fn dirs(&self) -> Vec<&PathBuf> {
        match self.version {
            Version::Two => vec![&self.memory],
            Version::One => vec![&self.memory, &self.cpu, &self.pids, &self.freezer],
        }
    }
}

fn write(dir: &Path, file: &str, value: &impl std::fmt::Display) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value.to_string()).map_err(|error| {
        io::Error::new(error.kind(), format!("write {value} to {}: {error}", path.display()))
    })
}

/// For files that not every kernel has.
fn optional(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            Ok(())
        }
        other => other,
    }
}

/// Waits out the processes that are just ending.
fn remove_dir(dir: &Path) -> io::Result<()> {
    settle(|| match fs::remove_dir(dir) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        other => other.map(|()| true),
    })
}

fn settle(mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + SETTLE_DEADLINE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a control group does not settle"));
        }
        std::thread::sleep(SETTLE_POLL);
    }
    Ok(())
}
