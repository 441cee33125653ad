//! Three etcd members on this machine, as a reference for commits. Its HTTP/JSON gateway, so that both sides are driven by the
//! same client. The members and their data are gone when the value is dropped.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::background::Background;
use crate::cluster::{good, http_client};
use crate::ports;

const MEMBERS: usize = 3;
const READY_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct Etcd {
    http: reqwest::Client,
    urls: Vec<String>,
    pub leader: usize,
    /// Before the folder, so that they end before it goes.
    _members: Vec<Background>,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub async fn start(work_dir: &Path) -> Result<Etcd> {
        let dir = tempfile::Builder::new().prefix("etcd-").tempdir_in(work_dir).context("make a folder")?;
        let ports: [u16; MEMBERS * 2] = ports::free()?;
        let (client_ports, peer_ports) = ports.split_at(MEMBERS);
        let peer_url = |member: usize| format!("http://127.0.0.1:{}", peer_ports[member]);
        let urls: Vec<String> = client_ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let everyone: Vec<String> =
            (0..MEMBERS).map(|member| format!("m{member}={}", peer_url(member))).collect();
        let mut members = Vec::new();
        for (member, url) in urls.iter().enumerate() {
            let mut command = Command::new("etcd");
            command.arg("--name").arg(format!("m{member}"));
            command.arg("--data-dir").arg(dir.path().join(format!("m{member}")));
            command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
            command.args(["--listen-peer-urls", &peer_url(member)]);
            command.args(["--initial-advertise-peer-urls", &peer_url(member)]);
            command.args(["--initial-cluster", &everyone.join(","), "--initial-cluster-state", "new"]);
            command.args(["--initial-cluster-token", "atoll-bench", "--logger", "zap"]);
            let log = dir.path().join(format!("m{member}.log"));
            members.push(Background::start(command, "etcd-server", &log)?);
        }
        let mut etcd = Etcd { http: http_client()?, urls, leader: 0, _members: members, _dir: dir };
        etcd.leader = etcd.until_led().await?;
        Ok(etcd)
    }

    pub fn members(&self) -> usize {
        MEMBERS
    }

    pub fn follower(&self) -> usize {
        (self.leader + 1) % MEMBERS
    }

    pub async fn put(&self, member: usize, key: &str, value: &str) -> Result<()> {
        let encoded = |text: &str| BASE64_STANDARD.encode(text);
        let body = json!({ "key": encoded(key), "value": encoded(value) });
        let url = format!("{}/v3/kv/put", self.urls[member]);
        good(self.http.post(url).json(&body)).await.map(drop)
    }

    /// All members know the leader.
    async fn until_led(&self) -> Result<usize> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            let mut ids = Vec::new();
            let mut leaders = Vec::new();
            for url in &self.urls {
                let asked = self.http.post(format!("{url}/v3/maintenance/status")).body("{}");
                let Ok(status) = good(asked).await else { break };
                let status: Value = serde_json::from_str(&status)?;
                ids.push(status["header"]["member_id"].as_str().unwrap_or_default().to_owned());
                leaders.push(status["leader"].as_str().unwrap_or_default().to_owned());
            }
            let agreed = leaders.len() == MEMBERS && leaders.iter().all(|leader| *leader == leaders[0]);
            if let Some(leader) = ids.iter().position(|id| agreed && *id == leaders[0]) {
                return Ok(leader);
            }
            ensure!(Instant::now() < deadline, "etcd has no leader within {READY_DEADLINE:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
