//! Where this host's controllers are mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const UNIFIED: &str = "/sys/fs/cgroup";
/// Where this process moves to, as version 2 allows no processes beside groups with controllers.
const SUPERVISOR: &str = "supervisor";
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// This node's parent groups.
#[derive(Debug)]
pub(super) struct Hierarchies {
    pub(super) version: Version,
    pub(super) memory: PathBuf,
    pub(super) cpu: PathBuf,
    pub(super) pids: PathBuf,
    pub(super) freezer: PathBuf,
}

impl Hierarchies {
    pub(super) fn open(name: &str) -> io::Result<Hierarchies> {
        let unified = Path::new(UNIFIED);
        let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        let all = CONTROLLERS.iter().all(|wanted| controllers.split_whitespace().any(|one| one == *wanted));
        let hierarchies = if all { version_two(unified, name)? } else { version_one(name)? };
        for parent in hierarchies.parents() {
            fs::create_dir_all(&parent)?;
        }
        if hierarchies.version == Version::Two {
            enable(&hierarchies.memory)?;
        }
        Ok(hierarchies)
    }

    pub(super) fn parents(&self) -> Vec<PathBuf> {
        match self.version {
            Version::Two => vec![self.memory.clone()],
            Version::One => {
                vec![self.memory.clone(), self.cpu.clone(), self.pids.clone(), self.freezer.clone()]
            }
        }
    }
}

/// Below the group that this process was started in, which systemd has delegated to it, or the root group.
fn version_two(unified: &Path, name: &str) -> io::Result<Hierarchies> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/');
    let own = own.strip_suffix(SUPERVISOR).unwrap_or(own).trim_end_matches('/');
    let base = unified.join(own);
    if !own.is_empty() {
        let supervisor = base.join(SUPERVISOR);
        fs::create_dir_all(&supervisor)?;
        fs::write(supervisor.join("cgroup.procs"), std::process::id().to_string())?;
    }
    enable(&base)?;
    let parent = base.join(name);
    Ok(Hierarchies {
        version: Version::Two,
        memory: parent.clone(),
        cpu: parent.clone(),
        pids: parent.clone(),
        freezer: parent,
    })
}

fn enable(dir: &Path) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    fs::write(&file, "+memory +cpu +pids").map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "cannot pass the controllers memory, cpu and pids on in {}: {error}; run this as a systemd service \
                 with Delegate=yes",
                file.display()
            ),
        )
    })
}

fn version_one(name: &str) -> io::Result<Hierarchies> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let find = |controller: &str| {
        mounts.lines().find_map(|line| mounted(line, controller)).map(|dir| dir.join(name)).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("this host has no cgroup controller {controller}: sandboxes would have no limits"),
            )
        })
    };
    Ok(Hierarchies {
        version: Version::One,
        memory: find("memory")?,
        cpu: find("cpu")?,
        pids: find("pids")?,
        freezer: find("freezer")?,
    })
}

/// The mount point of a line of mountinfo, if a version 1 hierarchy with the controller is mounted there.
fn mounted(line: &str, controller: &str) -> Option<PathBuf> {
    let (place, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let is_cgroup = kind.next() == Some("cgroup");
    let has = kind.nth(1)?.split(',').any(|option| option == controller);
    (is_cgroup && has).then(|| place.split(' ').nth(4).map(PathBuf::from))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_found_by_its_controller_and_not_by_its_path() {
        let line =
            "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";

        assert_eq!(mounted(line, "cpu"), Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(mounted(line, "cpuset"), None);
        assert_eq!(mounted(&line.replace("- cgroup ", "- cgroup2 "), "cpu"), None);
    }
}
