//! What a sandbox is on this host, found before it is deleted and looked for afterwards. By identity and not by name: the
//! next sandbox gets the same names at once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use atoll_runner::embedded::network::{Layout, default_range};
use serde::Deserialize;

use crate::cluster::{Cluster, Sandbox};
use crate::docker;
use crate::process::Process;

const GONE_DEADLINE: Duration = Duration::from_secs(30);
/// Fine enough for what takes some milliseconds, and no load beside it.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Each look is a start of the `docker` command.
const ASK_DOCKER_EVERY: Duration = Duration::from_millis(50);

pub enum Traces {
    Embedded(Box<Embedded>),
    /// The container's name.
    Docker(String),
}

/// Of the embedded runtime.
pub struct Embedded {
    /// The daemon first.
    processes: Vec<Process>,
    /// Groups, devices, folders: what is there under a name, and whether it is still the same.
    nodes: Vec<Node>,
    /// Ids and where they are mounted.
    mounts: Vec<(String, String)>,
    /// Where what is removed a little later lies, and is mounted meanwhile.
    trash: PathBuf,
}

/// Something with a number of its own.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    path: PathBuf,
    number: u64,
}

/// What the runtime has noted about a sandbox.
#[derive(Deserialize)]
struct Record {
    run: Option<Run>,
}

#[derive(Deserialize)]
struct Run {
    slot: u16,
    pid: i32,
}

impl Traces {
    pub async fn of(cluster: &Cluster, sandbox: &Sandbox) -> Result<Traces> {
        let node = &cluster.nodes()[sandbox.owner];
        match node.embedded_dir() {
            Some(dir) => {
                let traces = Embedded::of(&dir, &node.data_dir, &sandbox.id);
                Ok(Traces::Embedded(Box::new(traces.with_context(|| format!("find {}", sandbox.id))?)))
            }
            None => {
                let container = docker::container_of(&sandbox.id).await?;
                Ok(Traces::Docker(container.with_context(|| format!("no container of {}", sandbox.id))?))
            }
        }
    }

    pub async fn daemon(&self) -> Result<Process> {
        match self {
            Traces::Embedded(traces) => traces.processes.first().copied().context("it does not run"),
            Traces::Docker(container) => Process::of(docker::first_process(container).await?),
        }
    }

    /// How long it took from now on. Answers what was left last, if that does not go.
    pub async fn until_gone(&self) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let (left, look_again_after) = match self {
                Traces::Embedded(traces) => (traces.left()?, LOOK_EVERY),
                Traces::Docker(container) => {
                    let there = docker::exists(container).await?;
                    (if there { vec![format!("container {container}")] } else { vec![] }, ASK_DOCKER_EVERY)
                }
            };
            if left.is_empty() {
                return Ok(began.elapsed());
            }
            if began.elapsed() > GONE_DEADLINE {
                bail!("not removed within {GONE_DEADLINE:?}: {}", left.join(", "));
            }
            tokio::time::sleep(look_again_after).await;
        }
    }
}

impl Embedded {
    fn of(state: &Path, data_dir: &Path, sandbox_id: &str) -> Result<Embedded> {
        let dir = dir_of(&state.join("sandboxes"), sandbox_id)?;
        let record = fs::read(dir.join("record.json")).context("read its record")?;
        let record: Record = serde_json::from_slice(&record).context("parse its record")?;
        let run = record.run.context("it does not run")?;
        let groups = control_groups(run.pid)?;
        let node = groups.first().and_then(|group| group.parent()?.file_name()?.to_str());
        let node_id = node.and_then(|name| name.strip_prefix("atoll-")?.parse().ok());
        let layout = Layout::new(node_id.context("its control groups name no node")?, default_range())?;
        let cable = PathBuf::from("/sys/class/net").join(layout.device(run.slot)).join("ifindex");
        let cable_number = fs::read_to_string(&cable).with_context(|| format!("read {}", cable.display()))?;

        let mut pids = vec![run.pid];
        for group in &groups {
            let listed = fs::read_to_string(group.join("cgroup.procs")).context("list its processes")?;
            pids.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        pids[1..].sort_unstable();
        pids.dedup();
        let mut processes: Vec<Process> = pids.into_iter().filter_map(|pid| Process::of(pid).ok()).collect();
        let first = processes.first().copied();
        processes.retain(|process| Some(*process) == first || process.pid != run.pid);
        let mut nodes = vec![Node { path: cable, number: cable_number.trim().parse()? }];
        // `data_dir` is the node's: there the daemon's configuration is mounted from.
        let folders = [dir.clone(), data_dir.join("runner/sandboxes").join(sandbox_id)];
        for path in groups.into_iter().chain(folders) {
            let number = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.ino();
            nodes.push(Node { path, number });
        }
        let mounts = mounts()?.into_iter().filter(|(_, place)| Path::new(place).starts_with(&dir)).collect();
        Ok(Embedded { processes, nodes, mounts, trash: state.join("trash") })
    }

    fn left(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> = Vec::new();
        let running = self.processes.iter().filter(|process| process.is_there());
        left.extend(running.map(|process| format!("process {}", process.pid)));
        left.extend(
            self.nodes.iter().filter(|node| node.is_there()).map(|node| node.path.display().to_string()),
        );
        // A mount's id goes to the next one. It keeps its own place, or goes to the trash with its folder.
        let was_ours = |id: &str, place: &str| {
            let same = |(our_id, our_place): &(String, String)| {
                our_id == id && (our_place == place || Path::new(place).starts_with(&self.trash))
            };
            self.mounts.iter().any(same)
        };
        left.extend(mounts()?.into_iter().filter(|(id, place)| was_ours(id, place)).map(|(_, place)| place));
        // One sandbox is deleted at a time.
        for entry in fs::read_dir(&self.trash).context("look into the trash")? {
            left.push(entry?.path().display().to_string());
        }
        Ok(left)
    }
}

impl Node {
    fn is_there(&self) -> bool {
        let number = match self.path.file_name().is_some_and(|name| name == "ifindex") {
            true => fs::read_to_string(&self.path).ok().and_then(|text| text.trim().parse().ok()),
            false => fs::metadata(&self.path).ok().map(|metadata| metadata.ino()),
        };
        number == Some(self.number)
    }
}

/// `<id>-g<generation>`.
fn dir_of(sandboxes: &Path, sandbox_id: &str) -> Result<PathBuf> {
    let prefix = format!("{sandbox_id}-g");
    for entry in fs::read_dir(sandboxes).with_context(|| format!("list {}", sandboxes.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(entry.path());
        }
    }
    bail!("nothing of it in {}", sandboxes.display())
}

/// Those that a node has made for the sandbox with this process, of every hierarchy.
fn control_groups(pid: i32) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read its control groups")?;
    let mut found: Vec<PathBuf> = text.lines().filter_map(control_group).collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// `5:cpu,cpuacct:/atoll-…/s3` of version 1, `0::/…/atoll-…/s3` of version 2.
fn control_group(line: &str) -> Option<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let path = path.strip_prefix('/').filter(|path| path.contains("atoll-"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut roots = vec![root.join(controllers), root.join("unified")];
    roots.extend(controllers.split(',').map(|controller| root.join(controller)));
    roots.into_iter().map(|root| root.join(path)).find(|dir| dir.is_dir())
}

/// Ids and places.
fn mounts() -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
    let mount = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.nth(3)?.to_owned()))
    };
    Ok(text.lines().filter_map(mount).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_under_the_same_name_is_not_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s3");
        fs::create_dir(&path).unwrap();
        let node = Node { number: fs::metadata(&path).unwrap().ino(), path: path.clone() };
        assert!(node.is_there());

        fs::rename(&path, dir.path().join("kept")).unwrap();
        assert!(!node.is_there());
        fs::create_dir(&path).unwrap();
        assert!(!node.is_there());
    }

    #[test]
    fn groups_that_are_not_a_nodes_are_left_alone() {
        assert_eq!(control_group("4:memory:/user.slice"), None);
        assert_eq!(control_group("0::/"), None);
    }
}
