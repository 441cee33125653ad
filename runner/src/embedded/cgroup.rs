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
use std::io::{self, Write};
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
    /// The process writes `0`, which is itself, into each of these files.
    Tasks(Vec<File>),
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

/// Moves the calling thread, by [`Entrance::Tasks`]. Whoever moves another one, or a whole process, waits until no process of
/// the host is forking, some milliseconds for each file; a thread that moves itself does not (Linux 5.4).
pub fn enter(tasks: OwnedFd) -> io::Result<()> {
    File::from(tasks).write_all(b"0")
}

impl Cgroup {
    pub fn entrance(&self) -> io::Result<Entrance> {
        match self.version {
            Version::Two => Ok(Entrance::BornIn(File::open(&self.memory)?.into())),
            Version::One => {
                let tasks = |dir: &PathBuf| File::options().write(true).open(dir.join("tasks"));
                Ok(Entrance::Tasks(self.dirs().iter().map(|dir| tasks(dir)).collect::<io::Result<_>>()?))
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

/// On folders that only look like the kernel's: what is written where, and how its answers are read.
#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory_bytes: 1 << 30, cpus: 2, pids: 256 };

    fn fake(root: &Path, version: Version) -> Cgroup {
        let dir = |controller: &str| match version {
            Version::Two => root.to_owned(),
            Version::One => root.join(controller),
        };
        let cgroup = Cgroup {
            version,
            memory: dir("memory"),
            cpu: dir("cpu"),
            pids: dir("pids"),
            freezer: dir("freezer"),
        };
        cgroup.dirs().iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        cgroup
    }

    #[test]
    fn limits_of_version_two_are_all_in_one_group_and_swap_is_none() {
        let root = tempfile::tempdir().unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();

        fake(root.path(), Version::Two).limit(&LIMITS).unwrap();

        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("cpu.max"), "200000 100000");
        assert_eq!(read("pids.max"), "256");
    }

    #[test]
    fn limits_of_version_one_are_in_the_group_of_each_controller() {
        let root = tempfile::tempdir().unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();

        fake(root.path(), Version::One).limit(&LIMITS).unwrap();

        assert_eq!(read("memory/memory.limit_in_bytes"), "1073741824");
        // Memory and swap together: as much as memory alone.
        assert_eq!(read("memory/memory.memsw.limit_in_bytes"), "1073741824");
        assert_eq!(read("cpu/cpu.cfs_quota_us"), "200000");
        assert_eq!(read("pids/pids.max"), "256");
    }

    #[test]
    fn version_two_is_frozen_when_the_kernel_says_so_and_not_when_it_was_asked_to() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = fake(root.path(), Version::Two);
        let events = root.path().join("cgroup.events");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        assert!(!cgroup.is_frozen().unwrap());

        fs::write(&events, "populated 1\nfrozen 1\n").unwrap();
        cgroup.freeze().unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.freeze")).unwrap(), "1");
        cgroup.thaw().unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.freeze")).unwrap(), "0");
    }

    #[test]
    fn kills_for_memory_are_read_from_either_version_and_not_from_a_group_kill() {
        let root = tempfile::tempdir().unwrap();
        let two = fake(root.path(), Version::Two);
        let one = fake(root.path(), Version::One);
        let events = "low 0\nhigh 0\nmax 31\noom 5\noom_kill 3\noom_group_kill 1\n";
        fs::write(root.path().join("memory.events"), events).unwrap();
        fs::write(
            root.path().join("memory/memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        )
        .unwrap();

        assert_eq!((two.oom_kills().unwrap(), one.oom_kills().unwrap()), (3, 4));
        fs::write(root.path().join("memory.events"), "low 0\n").unwrap();
        assert_eq!(two.oom_kills().unwrap(), 0);
    }

    #[test]
    fn a_process_is_born_into_version_two_and_written_to_version_one() {
        let root = tempfile::tempdir().unwrap();
        let two = fake(root.path(), Version::Two);
        let one = fake(root.path(), Version::One);
        for file in ["cgroup.procs", "tasks"] {
            one.dirs().iter().for_each(|dir| fs::write(dir.join(file), "").unwrap());
        }

        assert!(matches!(two.entrance().unwrap(), Entrance::BornIn(_)));
        assert!(matches!(one.entrance().unwrap(), Entrance::Tasks(files) if files.len() == 4));
    }

    #[test]
    fn version_two_ends_whoever_is_left_at_once() {
        let root = tempfile::tempdir().unwrap();

        fake(root.path(), Version::Two).kill_all().unwrap();

        assert_eq!(fs::read_to_string(root.path().join("cgroup.kill")).unwrap(), "1");
    }
}
