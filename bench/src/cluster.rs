//! The cluster as its users see it: the ready file, the REST API, the toolbox. Every call says through which node it goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
const CLEANED_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What of the ready file is needed here.
#[derive(Debug, Deserialize)]
struct Ready {
    api_key: String,
    preview_domain: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub struct Node {
    pub id: String,
    pub region: String,
    pub http: String,
    /// `host:port`.
    pub ssh: String,
    pub data_dir: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Sandbox {
    pub id: String,
    /// Index of the owner's node.
    pub owner: usize,
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

    fn authorized(&self, method: Method, url: String) -> RequestBuilder {
        self.http.request(method, url).bearer_auth(&self.ready.api_key)
    }

    pub async fn create(&self, node: usize) -> Result<Sandbox> {
        let body = json!({ "autoStopInterval": 0 });
        let made: Value =
            serde_json::from_str(&good(self.api(node, Method::POST, "/sandbox").json(&body)).await?)?;
        ensure!(made["state"] == "started", "the sandbox did not start: {made}");
        let owner = made["runnerId"].as_str().context("the answer names no runner")?;
        let owner = self.ready.nodes.iter().position(|node| node.id == owner);
        Ok(Sandbox {
            id: made["id"].as_str().context("the answer has no id")?.to_owned(),
            owner: owner.context("the owner is none of the nodes")?,
        })
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

/// Deletes are answered before the sandbox's container is gone; what follows must not be measured beside its removal.
pub async fn until_gone(sandbox: &Sandbox) -> Result<()> {
    let deadline = tokio::time::Instant::now() + CLEANED_DEADLINE;
    while crate::docker::container_of(&sandbox.id).await?.is_some() {
        if tokio::time::Instant::now() > deadline {
            bail!("the container of {} is not removed within {CLEANED_DEADLINE:?}", sandbox.id);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
