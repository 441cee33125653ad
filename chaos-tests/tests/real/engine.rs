//! What the container engine has of this cluster, asked of the engine itself and not of the nodes.

use anyhow::{Context, Result, ensure};
use atoll_chaos_tests::history::containers::Container;
use serde_json::Value;
use tokio::process::Command;

use crate::world::World;

/// A run of a container: all of it changes when the container is started again or made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub container_id: String,
    pub started_at: String,
    pub pid: u64,
}

pub async fn containers(world: &World) -> Result<Vec<Container>> {
    let fields = ["atoll.sandbox", "atoll.node", "atoll.generation"]
        .map(|label| format!("{{{{.Label \"{label}\"}}}}"));
    let format = format!("{}\t{{{{.State}}}}", fields.join("\t"));
    let list = docker(&["ps", "--all", "--filter", "label=atoll.sandbox", "--format", &format]).await?;
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
    let mut all = list.lines().map(parse).collect::<Result<Vec<_>>>()?;
    all.retain(|container| world.cluster.node_by_id(&container.node_id).is_some());
    Ok(all)
}

/// The sandbox's only container, which must be running.
pub async fn run_of(sandbox_id: &str) -> Result<Run> {
    let filter = format!("label=atoll.sandbox={sandbox_id}");
    let ids = docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]).await?;
    let [container_id] = ids.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("{sandbox_id} has not one container but {ids:?}");
    };
    let state = docker(&["inspect", "--format", "{{json .State}}", container_id]).await?;
    let state: Value = serde_json::from_str(&state).context("parse the container's state")?;
    ensure!(state["Running"] == true, "{sandbox_id} does not run: {state}");
    Ok(Run {
        container_id: container_id.to_owned(),
        started_at: state["StartedAt"].as_str().context("when it was started")?.to_owned(),
        pid: state["Pid"].as_u64().context("its process")?,
    })
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(arguments).output().await.context("run docker")?;
    ensure!(
        output.status.success(),
        "docker {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
