//! What the host has of a cluster's sandboxes, asked of the host itself and not of the nodes: of the Docker Engine, or of the embedded
//! runtime's records and the kernel's list of processes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::dev::{DevCluster, Runtime};
use crate::history::containers::Container;

/// A run of a sandbox: changes when it is started again or made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Names the process for ever, together with when it began.
    pub pid: u64,
    pub started_at: String,
}

/// Every sandbox that the host has of this cluster, running or not.
pub fn all(cluster: &DevCluster) -> Result<Vec<Container>> {
    let mut all = match cluster.runtime {
        Runtime::Docker => docker_containers()?,
        Runtime::Embedded => {
            let mut all = Vec::new();
            for (index, node) in cluster.ready.nodes.iter().enumerate() {
                for (sandbox_id, generation, dir) in records(cluster, index)? {
                    let running = embedded_run(&dir)?.is_some();
                    all.push(Container { sandbox_id, node_id: node.id.clone(), generation, running });
                }
            }
            all
        }
    };
    all.retain(|container| cluster.node_by_id(&container.node_id).is_some());
    Ok(all)
}

/// Whether the host has anything of a sandbox.
pub fn has(cluster: &DevCluster, sandbox_id: &str) -> Result<bool> {
    Ok(all(cluster)?.iter().any(|container| container.sandbox_id == sandbox_id))
}

/// Of the sandbox's only container, which must be running.
pub fn run_of(cluster: &DevCluster, sandbox_id: &str) -> Result<Run> {
    let found: Vec<Run> = match cluster.runtime {
        Runtime::Docker => docker_runs(sandbox_id)?,
        Runtime::Embedded => {
            let mut runs = Vec::new();
            for index in 0..cluster.ready.nodes.len() {
                for (id, _, dir) in records(cluster, index)? {
                    if id == sandbox_id {
                        runs.extend(embedded_run(&dir)?);
                    }
                }
            }
            runs
        }
    };
    let [run] = &found[..] else { anyhow::bail!("{sandbox_id} does not run once but {found:?}") };
    Ok(run.clone())
}

/// Sandbox, generation and folder of each record of a node's runner.
fn records(cluster: &DevCluster, index: usize) -> Result<Vec<(String, u64, std::path::PathBuf)>> {
    let dir = cluster.runner_dir(index).join("embedded/sandboxes");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", dir.display()))?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (sandbox_id, generation) =
            name.rsplit_once("-g").context("a sandbox's folder is <id>-g<generation>")?;
        records.push((sandbox_id.to_owned(), generation.parse().context("a generation is a number")?, path));
    }
    Ok(records)
}

/// By the record, and by the process that it names.
fn embedded_run(dir: &Path) -> Result<Option<Run>> {
    // A sandbox that is just being made or removed has none.
    let Ok(json) = fs::read(dir.join("record.json")) else { return Ok(None) };
    let record: Value = serde_json::from_slice(&json).context("parse a sandbox's record")?;
    let (Some(pid), Some(began)) = (record["run"]["pid"].as_u64(), record["run"]["started_at"].as_u64())
    else {
        return Ok(None);
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let lives = fields.first().is_some_and(|state| !matches!(*state, "Z" | "X"))
        && fields.get(19).is_some_and(|ticks| *ticks == began.to_string());
    Ok(lives.then(|| Run { pid, started_at: began.to_string() }))
}

fn docker_containers() -> Result<Vec<Container>> {
    let fields = ["atoll.sandbox", "atoll.node", "atoll.generation"]
        .map(|label| format!("{{{{.Label \"{label}\"}}}}"));
    let format = format!("{}\t{{{{.State}}}}", fields.join("\t"));
    let list = docker(&["ps", "--all", "--filter", "label=atoll.sandbox", "--format", &format])?;
    let parse = |line: &str| {
        let [sandbox_id, node_id, generation, state] = line.split('\t').collect::<Vec<_>>()[..] else {
            anyhow::bail!("four fields in {line:?}");
        };
        Ok(Container {
            sandbox_id: sandbox_id.to_owned(),
            node_id: node_id.to_owned(),
            generation: generation.parse().context("a generation is a number")?,
            running: state == "running",
        })
    };
    list.lines().map(parse).collect()
}

fn docker_runs(sandbox_id: &str) -> Result<Vec<Run>> {
    let filter = format!("label=atoll.sandbox={sandbox_id}");
    let ids = docker(&["ps", "--quiet", "--no-trunc", "--filter", &filter])?;
    let run = |container_id: &str| {
        let state = docker(&["inspect", "--format", "{{json .State}}", container_id])?;
        let state: Value = serde_json::from_str(&state).context("parse the container's state")?;
        Ok(Run {
            pid: state["Pid"].as_u64().context("its process")?,
            started_at: state["StartedAt"].as_str().context("when it was started")?.to_owned(),
        })
    };
    ids.lines().map(run).collect()
}

fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).output().context("run docker")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
