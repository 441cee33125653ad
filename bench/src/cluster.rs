//! The cluster as its users see it: the ready file, the REST API, the toolbox. Every call says through which node it goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::traces::Traces;

const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// More than any node promises, so that the refusal says what each of them has left.
const TOO_MUCH_GIB: u64 = 4_096;

/// What of the ready file is needed here.
#[derive(Debug, Deserialize)]
struct Ready {
    api_key: String,
    preview_domain: String,
    default_snapshot: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub struct Node {
    pub id: String,
    pub name: String,
    pub region: String,
    pub pid: i32,
    pub http: String,
    /// `host:port`.
    pub ssh: String,
    pub data_dir: PathBuf,
}

impl Node {
    /// The runner's own folder, where `atoll dev` has it.
    pub fn state_dir(&self) -> PathBuf {
        let mut name = self.data_dir.clone().into_os_string();
        name.push(".runner");
        name.into()
    }

    /// The binary that the node puts into its sandboxes.
    pub fn daemon(&self) -> Result<PathBuf> {
        let dir = self.data_dir.join("runner/daemon");
        let entry = std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?.next();
        Ok(entry.with_context(|| format!("no daemon in {}", dir.display()))??.path())
    }

    /// The embedded runtime's, if that is what the node runs sandboxes with.
    pub fn embedded_dir(&self) -> Option<PathBuf> {
        Some(self.state_dir().join("embedded")).filter(|dir| dir.is_dir())
    }
}

#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    /// Index of the owner's node.
    pub owner: usize,
    /// What it was promised, for a container that is to have the same.
    pub cpu: u32,
    pub memory_gib: u32,
}

pub struct Cluster {
    http: reqwest::Client,
    ready: Ready,
}

/// One connection per client is kept open, and no proxy of the environment stands between.
pub fn http_client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(REQUEST_DEADLINE)
        .no_proxy()
        .tcp_nodelay(true)
        .build()
        .context("make an HTTP client")
}

/// The answer's body, if it is a good one.
pub async fn good(request: RequestBuilder) -> Result<String> {
    let answer = request.send().await?;
    let (status, url) = (answer.status(), answer.url().clone());
    let body = answer.text().await?;
    ensure!(status.is_success(), "{url} answered {status}: {body}");
    Ok(body)
}

impl Cluster {
    pub fn open(ready_file: &Path) -> Result<Cluster> {
        let text = std::fs::read_to_string(ready_file)
            .with_context(|| format!("read the ready file {}", ready_file.display()))?;
        let ready: Ready = serde_json::from_str(&text).context("parse the ready file")?;
        ensure!(
            ready.nodes.len() >= 2,
            "at least two nodes are needed, to go through another than the owner"
        );
        let first = &ready.nodes[0].region;
        ensure!(ready.nodes.iter().all(|node| node.region == *first), "all nodes must be of one region");
        Ok(Cluster { http: http_client()?, ready })
    }

    pub fn nodes(&self) -> &[Node] {
        &self.ready.nodes
    }

    pub fn preview_domain(&self) -> &str {
        &self.ready.preview_domain
    }

    pub fn default_snapshot(&self) -> &str {
        &self.ready.default_snapshot
    }

    /// A folder on the disk of the nodes' logs.
    pub fn disk_dir(&self) -> Result<PathBuf> {
        let node_dir = &self.ready.nodes[0].data_dir;
        Ok(node_dir.parent().context("a node's data folder has a parent")?.to_owned())
    }

    pub fn another_than(&self, node: usize) -> usize {
        (node + 1) % self.ready.nodes.len()
    }

    pub fn api(&self, node: usize, method: Method, path: &str) -> RequestBuilder {
        self.authorized(method, format!("{}/api{path}", self.ready.nodes[node].http))
    }

    pub fn toolbox(&self, node: usize, sandbox_id: &str, method: Method, path: &str) -> RequestBuilder {
        self.authorized(method, format!("{}/toolbox/{sandbox_id}{path}", self.ready.nodes[node].http))
    }

    /// Where a node takes HTTP, as `host:port`, and the key that it wants to see.
    pub fn door(&self, node: usize) -> Result<(&str, &str)> {
        let http = &self.ready.nodes[node].http;
        let address = http.strip_prefix("http://").context("a node's address is no plain HTTP")?;
        Ok((address, &self.ready.api_key))
    }

    fn authorized(&self, method: Method, url: String) -> RequestBuilder {
        self.http.request(method, url).bearer_auth(&self.ready.api_key)
    }

    pub async fn create(&self, node: usize) -> Result<Sandbox> {
        self.create_as(node, json!({})).await
    }

    /// With more fields of a create's body.
    pub async fn create_as(&self, node: usize, mut wish: Value) -> Result<Sandbox> {
        wish["autoStopInterval"] = json!(0);
        let made: Value =
            serde_json::from_str(&good(self.api(node, Method::POST, "/sandbox").json(&wish)).await?)?;
        ensure!(made["state"] == "started", "the sandbox did not start: {made}");
        let owner = made["runnerId"].as_str().context("the answer names no runner")?;
        let owner = self.ready.nodes.iter().position(|node| node.id == owner);
        let number = |field: &str| made[field].as_u64().and_then(|number| u32::try_from(number).ok());
        Ok(Sandbox {
            id: made["id"].as_str().context("the answer has no id")?.to_owned(),
            owner: owner.context("the owner is none of the nodes")?,
            cpu: number("cpu").context("the answer names no CPUs")?,
            memory_gib: number("memory").context("the answer names no memory")?,
        })
    }

    /// A sandbox on this node that is promised all that the node has left, so that further creates through it are placed on
    /// others: a node prefers itself as long as it can.
    pub async fn fill(&self, node: usize) -> Result<Sandbox> {
        let wish = json!({ "memory": TOO_MUCH_GIB });
        let answer = self.api(node, Method::POST, "/sandbox").json(&wish).send().await?;
        let refusal = answer.text().await?;
        let left = memory_left(&refusal, &self.ready.nodes[node].name);
        let left = left.with_context(|| format!("no word of what the node has left: {refusal}"))?;
        let filler = self.create_as(node, json!({ "memory": left })).await?;
        if filler.owner != node {
            remove(self, &filler).await?;
            bail!("what was to fill node {node} was placed on node {}", filler.owner);
        }
        Ok(filler)
    }

    pub async fn delete(&self, sandbox: &Sandbox) -> Result<()> {
        good(self.api(sandbox.owner, Method::DELETE, &format!("/sandbox/{}", sandbox.id))).await.map(drop)
    }

    /// Runs a command to its end. An exit code other than 0 is an error.
    pub async fn exec(&self, node: usize, sandbox_id: &str, command: &str) -> Result<String> {
        let request = self.toolbox(node, sandbox_id, Method::POST, "/process/execute");
        let answer: Value = serde_json::from_str(&good(request.json(&json!({ "command": command }))).await?)?;
        ensure!(answer["exitCode"] == 0, "{command:?} failed: {answer}");
        Ok(answer["result"].as_str().unwrap_or_default().to_owned())
    }

    /// The node that leads the region's group.
    pub async fn region_leader(&self) -> Result<usize> {
        let status: Value = serde_json::from_str(&good(self.api(0, Method::GET, "/cluster")).await?)?;
        let name = format!("region/{}", self.ready.nodes[0].region);
        let groups = status["groups"].as_array().context("the status has no groups")?;
        let group = groups.iter().find(|group| group["name"] == name.as_str());
        let leader = group.with_context(|| format!("no group {name}"))?["leader"].as_str();
        let leader = leader.with_context(|| format!("{name} has no leader"))?;
        let node = self.ready.nodes.iter().position(|node| node.id == leader);
        node.context("the leader is none of the nodes")
    }
}

/// Deletes are answered before everything of the sandbox is gone; what follows must not be measured beside its removal.
pub async fn remove(cluster: &Cluster, sandbox: &Sandbox) -> Result<()> {
    let traces = Traces::of(cluster, sandbox).await?;
    cluster.delete(sandbox).await?;
    traces.until_gone().await.map(drop)
}

/// From `n1: 3 of 92 GiB memory free; n2: …`.
fn memory_left(refusal: &str, node: &str) -> Option<u64> {
    let (_, rest) = refusal.split_once(&format!("{node}: "))?;
    let (left, of) = rest.split_once(" of ")?;
    let (_, unit) = of.split_once(' ')?;
    unit.starts_with("GiB memory free").then(|| left.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_a_node_has_left() {
        let refusal = "no node can take this sandbox: n1: 3 of 92 GiB memory free; n2: 2 of 32 CPUs free";

        assert_eq!(memory_left(refusal, "n1"), Some(3));
        assert_eq!(memory_left(refusal, "n2"), None);
        assert_eq!(memory_left(refusal, "n3"), None);
    }
}
