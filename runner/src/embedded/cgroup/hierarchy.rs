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
        let hierarchies = match all {
            true => version_two(unified, &fs::read_to_string("/proc/self/cgroup")?, name)?,
            false => version_one(&fs::read_to_string("/proc/self/mountinfo")?, name)?,
        };
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
/// `own`: what the kernel says of this process, `/proc/self/cgroup`.
fn version_two(unified: &Path, own: &str, name: &str) -> io::Result<Hierarchies> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/');
    let delegated = own.strip_suffix(SUPERVISOR).filter(|rest| rest.is_empty() || rest.ends_with('/'));
    let own = delegated.unwrap_or(own).trim_end_matches('/');
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

fn version_one(mounts: &str, name: &str) -> io::Result<Hierarchies> {
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

    #[test]
    fn version_two_makes_its_groups_in_what_was_delegated_and_moves_out_of_the_way() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("system.slice/atoll-runner.service");
        fs::create_dir_all(&base).unwrap();
        let place = |own: &str| version_two(root.path(), own, "atoll-7").unwrap().memory;

        assert_eq!(place("0::/system.slice/atoll-runner.service\n"), base.join("atoll-7"));
        let read = |file: &str| fs::read_to_string(base.join(file)).unwrap();
        assert_eq!(read("supervisor/cgroup.procs"), std::process::id().to_string());
        assert_eq!(read("cgroup.subtree_control"), "+memory +cpu +pids");
        // After a restart it is in its place already, beside whatever version 1 says.
        let again = "9:memory:/x\n0::/system.slice/atoll-runner.service/supervisor\n";
        assert_eq!(place(again), base.join("atoll-7"));
        // Somebody else's group by a similar name, and the root group, which needs no moving.
        fs::create_dir_all(root.path().join("my-supervisor")).unwrap();
        assert_eq!(place("0::/my-supervisor\n"), root.path().join("my-supervisor/atoll-7"));
        assert_eq!(place("0::/\n"), root.path().join("atoll-7"));
        assert!(!root.path().join("supervisor").exists());
    }

    #[test]
    fn without_delegation_the_operator_is_told_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        // A folder where the kernel has a file.
        fs::create_dir_all(root.path().join("cgroup.subtree_control")).unwrap();

        let error = version_two(root.path(), "0::/\n", "atoll-7").unwrap_err().to_string();

        assert!(error.contains("Delegate=yes"), "{error}");
    }

    #[test]
    fn version_one_names_the_controller_that_is_missing() {
        let mounts = "31 24 0:27 / /cg/memory rw shared:9 - cgroup cgroup rw,memory\n\
                      32 24 0:28 / /cg/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      33 24 0:29 / /cg/pids rw shared:9 - cgroup cgroup rw,pids\n";
        let freezer = "34 24 0:30 / /cg/freezer rw shared:9 - cgroup cgroup rw,freezer\n";

        let error = version_one(mounts, "atoll-7").unwrap_err().to_string();
        assert!(error.contains("controller freezer"), "{error}");
        let found = version_one(&format!("{mounts}{freezer}"), "atoll-7").unwrap();
        assert_eq!((found.version, found.cpu), (Version::One, PathBuf::from("/cg/cpu/atoll-7")));
    }
}
