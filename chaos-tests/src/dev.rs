//! A real cluster for tests: `atoll dev` with real processes, a real runtime, real ports. Stopped when dropped.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// What runs a cluster's sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Embedded,
    Docker,
}

impl Runtime {
    /// As `atoll dev --runtime` has it.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Embedded => "embedded",
            Runtime::Docker => "docker",
        }
    }
}

pub struct DevCluster {
    pub runtime: Runtime,
    dev: Child,
    dir: tempfile::TempDir,
    pub ready: Ready,
    /// Nodes that were started again here, with their index; the last one of a node is its process.
    restarted: Mutex<Vec<(usize, Child)>>,
    /// Runners that were started again here.
    runners: Mutex<Vec<Child>>,
}

impl DevCluster {
    /// Starts a cluster and waits until every node serves. `atoll` is the binary under test.
    pub fn start(atoll: &Path, runtime: Runtime, nodes: usize, regions: &str) -> Result<DevCluster> {
        let dir = tempfile::Builder::new().prefix("atoll-test-").tempdir()?;
        let ready_file = dir.path().join("ready.json");
        let log_path = dir.path().join("dev.log");
        let log = fs::File::create(&log_path)?;
        let base_port = free_base_port(nodes)?;
        let mut dev = Command::new(atoll)
            .args(["dev", "--nodes", &nodes.to_string(), "--regions", regions, "--runtime", runtime.name()])
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
                let _ = terminate(&mut dev, || ());
                bail!(
                    "the cluster is not ready after {READY_DEADLINE:?}:\n{}",
                    fs::read_to_string(&log_path)?
                );
            }
            std::thread::sleep(LOOK_EVERY);
        };
        Ok(DevCluster { runtime, dev, dir, ready, restarted: Mutex::default(), runners: Mutex::default() })
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

    /// The node's process now, also after a [`DevCluster::restart`].
    pub fn pid(&self, index: usize) -> u32 {
        let restarted = self.restarted();
        let last = restarted.iter().rev().find(|(restarted, _)| *restarted == index);
        last.map_or(self.node(index).pid, |(_, child)| child.id())
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&self, index: usize) -> Result<()> {
        self.kill_all(&[index])
    }

    /// SIGKILL to several nodes in one go, and waits until they are gone.
    pub fn kill_all(&self, indices: &[usize]) -> Result<()> {
        let pids: Vec<u32> = indices.iter().map(|index| self.pid(*index)).collect();
        signal_all(&pids, "KILL")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while !pids.iter().all(|pid| gone(*pid)) {
            reap(&self.restarted);
            if Instant::now() > deadline {
                bail!("of the nodes {indices:?} one does not die");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// SIGSTOP: the node keeps all it has, hears nothing and says nothing until [`DevCluster::thaw`].
    pub fn freeze(&self, index: usize) -> Result<()> {
        signal(self.pid(index), "STOP")
    }

    pub fn thaw(&self, index: usize) -> Result<()> {
        signal(self.pid(index), "CONT")
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
        self.restarted().push((index, child));
        Ok(())
    }

    /// The process that owns a node's sandboxes.
    pub fn runner_pid(&self, index: usize) -> Result<u32> {
        let path = self.runner_dir(index).join("runner.pid");
        let pid = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        pid.trim().parse().context("parse the runner's pid")
    }

    pub fn runner_socket(&self, index: usize) -> PathBuf {
        self.runner_dir(index).join("runner.sock")
    }

    /// The runner's own folder.
    pub fn runner_dir(&self, index: usize) -> PathBuf {
        self.node(index).data_dir.with_extension("runner")
    }

    /// SIGKILL to the runner of a node, which itself goes on; waits until it is gone.
    pub fn kill_runner(&self, index: usize) -> Result<()> {
        let pid = self.runner_pid(index)?;
        signal(pid, "KILL")?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while !gone(pid) {
            if Instant::now() > deadline {
                bail!("the runner of node {index} does not die");
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Starts a killed runner again. Does not wait until it serves.
    pub fn restart_runner(&self, index: usize) -> Result<()> {
        let command = &self.node(index).restart_command;
        let [program, .., config] = command.as_slice() else { bail!("no restart command") };
        let log = self.runner_dir(index).join("runner.log");
        let log = fs::OpenOptions::new().append(true).create(true).open(log)?;
        let child = Command::new(program)
            .args(["runner", "--config", config])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("restart a runner")?;
        self.runners.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        Ok(())
    }

    /// SIGKILL to `atoll dev` itself, which can then stop nothing any more. Gives the pids of what it has started.
    pub fn kill_dev(&mut self) -> Result<Vec<u32>> {
        let mut pids: Vec<u32> = (0..self.ready.nodes.len()).map(|index| self.pid(index)).collect();
        for index in 0..self.ready.nodes.len() {
            pids.push(self.runner_pid(index)?);
        }
        self.dev.kill()?;
        self.dev.wait()?;
        Ok(pids)
    }

    /// Everything that the nodes have logged so far, for the message of a failed test.
    pub fn logs(&self) -> String {
        let tail = |path: PathBuf| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        let log = |(index, node): (usize, &ReadyNode)| {
            let (own, runners) =
                (tail(node.data_dir.join("node.log")), tail(self.runner_dir(index).join("runner.log")));
            format!("--- {} ---\n{own}\n--- its runner ---\n{runners}\n", node.name)
        };
        self.ready.nodes.iter().enumerate().map(log).collect()
    }

    fn restarted(&self) -> MutexGuard<'_, Vec<(usize, Child)>> {
        self.restarted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        let DevCluster { dev, restarted, runners, dir, .. } = self;
        if matches!(dev.try_wait(), Ok(Some(_))) {
            // A test has killed it.
            return;
        }
        let ended = terminate(dev, || {
            reap(restarted);
            for runner in runners.get_mut().unwrap_or_else(PoisonError::into_inner) {
                let _ = runner.try_wait();
            }
        });
        if !matches!(ended, Ok(true)) {
            let log = fs::read_to_string(dir.path().join("dev.log")).unwrap_or_default();
            eprintln!("atoll dev did not stop cleanly ({ended:?}):\n{log}");
        }
    }
}

/// A process that ended stays visible until its parent has waited for it, and `atoll dev` isn't the parent of these.
fn reap(restarted: &Mutex<Vec<(usize, Child)>>) {
    for (_, child) in restarted.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
        let _ = child.try_wait();
    }
}

/// SIGTERM, and SIGKILL when that does not help. `true`: it ended by itself and well.
fn terminate(child: &mut Child, mut meanwhile: impl FnMut()) -> Result<bool> {
    signal(child.id(), "TERM")?;
    let deadline = Instant::now() + STOP_DEADLINE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        meanwhile();
        std::thread::sleep(LOOK_EVERY);
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

pub fn signal(pid: u32, name: &str) -> Result<()> {
    signal_all(&[pid], name)
}

fn signal_all(pids: &[u32], name: &str) -> Result<()> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let status = Command::new("kill").arg(format!("-{name}")).args(&pids).status().context("run kill")?;
    if status.success() { Ok(()) } else { bail!("kill -{name} {}: {status}", pids.join(" ")) }
}

/// Gone, or a zombie that its parent has not reaped yet.
pub fn gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let is_zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    // Its first thread may be dead already while others still hold its files and locks.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |threads| threads.count());
    is_zombie && threads <= 1
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
