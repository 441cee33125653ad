//! A real cluster for tests: `atoll dev` with real processes, a real runtime, real ports. Stopped when dropped.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

const READY_DEADLINE: Duration = Duration::from_secs(120);
const STOP_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The ready file, as the contract of `atoll dev` has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    pub api_key: String,
    pub organization_id: String,
    pub default_snapshot: String,
    pub preview_domain: String,
    pub ca_cert: PathBuf,
    pub join_command: Vec<String>,
    pub nodes: Vec<ReadyNode>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ReadyNode {
    pub id: String,
    pub name: String,
    pub region: String,
    pub pid: u32,
    pub http: String,
    pub https: String,
    pub ssh: String,
    pub mesh: String,
    pub data_dir: PathBuf,
    pub restart_command: Vec<String>,
}

pub struct DevCluster {
    dev: Child,
    dir: tempfile::TempDir,
    pub ready: Ready,
    /// Nodes that tests started again by hand, to be reaped.
    restarted: Mutex<Vec<Child>>,
}

impl DevCluster {
    /// Starts a cluster and waits until every node serves. `atoll` is the binary under test.
    pub fn start(atoll: &Path, nodes: usize, regions: &str) -> Result<DevCluster> {
        let dir = tempfile::Builder::new().prefix("atoll-test-").tempdir()?;
        let ready_file = dir.path().join("ready.json");
        let log_path = dir.path().join("dev.log");
        let log = fs::File::create(&log_path)?;
        let base_port = free_base_port(nodes)?;
        let mut dev = Command::new(atoll)
            .args(["dev", "--nodes", &nodes.to_string(), "--regions", regions])
            .args(["--base-port", &base_port.to_string()])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", atoll.display()))?;
        let deadline = Instant::now() + READY_DEADLINE;
        let ready = loop {
            if let Ok(text) = fs::read_to_string(&ready_file) {
                break serde_json::from_str(&text).context("parse the ready file")?;
            }
            if let Some(status) = dev.try_wait()? {
                bail!("atoll dev ended with {status}:\n{}", fs::read_to_string(&log_path)?);
            }
            if Instant::now() > deadline {
                let _ = terminate(&mut dev);
                bail!(
                    "the cluster is not ready after {READY_DEADLINE:?}:\n{}",
                    fs::read_to_string(&log_path)?
                );
            }
            std::thread::sleep(LOOK_EVERY);
        };
        Ok(DevCluster { dev, dir, ready, restarted: Mutex::default() })
    }

    pub fn node(&self, index: usize) -> &ReadyNode {
        &self.ready.nodes[index]
    }

    pub fn node_by_id(&self, id: &str) -> Option<(usize, &ReadyNode)> {
        self.ready.nodes.iter().enumerate().find(|(_, node)| node.id == id)
    }

    pub fn api(&self, index: usize) -> String {
        format!("{}/api", self.node(index).http)
    }

    /// The process that serves this node's data folder now, also after a restart by hand.
    pub fn pid(&self, index: usize) -> Result<u32> {
        let path = self.node(index).data_dir.join("node.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.trim().parse().context("parse the pid file")
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&self, index: usize) -> Result<()> {
        let pid = self.pid(index)?;
        signal(pid, "KILL")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while !gone(pid) {
            self.reap();
            if Instant::now() > deadline {
                bail!("node {} does not die", self.node(index).name);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Starts a killed node again, with the ready file's own command. Does not wait until it serves.
    pub fn restart(&self, index: usize) -> Result<()> {
        let node = self.node(index);
        let log = fs::OpenOptions::new().append(true).create(true).open(node.data_dir.join("node.log"))?;
        let child = Command::new(&node.restart_command[0])
            .args(&node.restart_command[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("restart node {}", node.name))?;
        self.restarted.lock().expect("no holder panics").push(child);
        Ok(())
    }

    /// Everything that the nodes have logged so far, for the message of a failed test.
    pub fn logs(&self) -> String {
        let log = |node: &ReadyNode| {
            let text = fs::read_to_string(node.data_dir.join("node.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {} ---\n{}\n", node.name, lines[lines.len().saturating_sub(60)..].join("\n"))
        };
        self.ready.nodes.iter().map(log).collect()
    }

    fn reap(&self) {
        for child in self.restarted.lock().expect("no holder panics").iter_mut() {
            let _ = child.try_wait();
        }
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        let ended = terminate(&mut self.dev);
        for child in self.restarted.lock().expect("no holder panics").iter_mut() {
            let _ = child.wait();
        }
        if !matches!(ended, Ok(true)) {
            let log = fs::read_to_string(self.dir.path().join("dev.log")).unwrap_or_default();
            eprintln!("atoll dev did not stop cleanly ({ended:?}):\n{log}");
        }
    }
}

/// SIGTERM, and SIGKILL when that does not help. `true`: it ended by itself and well.
fn terminate(child: &mut Child) -> Result<bool> {
    signal(child.id(), "TERM")?;
    let deadline = Instant::now() + STOP_DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status =
        Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().context("run kill")?;
    if status.success() { Ok(()) } else { bail!("kill -{name} {pid}: {status}") }
}

/// Gone, or a zombie that its parent has not reaped yet.
fn gone(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

/// A port from which every port of `nodes` nodes is free. Ports below the ephemeral range, so that no client socket of
/// another test sits on one by the time the node binds it.
fn free_base_port(nodes: usize) -> Result<u16> {
    let start = 10_000 + (std::process::id() % 100) as u16 * 160;
    for step in 0..130u16 {
        let base = 10_000 + (start - 10_000 + step * 160) % 20_000;
        let ports = (0..nodes as u16).flat_map(|node| (0..4).map(move |offset| base + node * 10 + offset));
        if ports.into_iter().all(|port| is_free(port).unwrap_or(false)) {
            return Ok(base);
        }
    }
    bail!("no free range of ports")
}

fn is_free(port: u16) -> io::Result<bool> {
    let (_tcp, _udp) = (TcpListener::bind(("127.0.0.1", port))?, UdpSocket::bind(("127.0.0.1", port))?);
    Ok(true)
}
