//! `atoll dev`: a throwaway cluster on this machine, each node its own process. Tools outside the project rely on
//! the ready file to the letter.
//!
//!   configure ─▶ found n1 ─▶ start n1 ─▶ token ─▶ join all others at once ─▶ voters settled ─▶ ready file
//!   SIGTERM ─▶ stop every node, also one that was started again by hand ─▶ remove every sandbox ─▶ remove the data

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use atoll_api::ids::NodeId;
use atoll_certs::identity::NodeIdentity;
use atoll_runner::Runtime;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::cli::{ApiArgs, DevArgs, MakeConfigArgs};
use crate::client::Client;
use crate::config::Config;
use crate::{founding, make_config, runtimes};

const NODES_MAX: usize = 16;
const PORTS_PER_NODE: u16 = 10;
const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(30);
/// The token in the ready file's join command.
const JOIN_TTL_S: u64 = 24 * 3600;
const JOIN_USES: u32 = 100;

#[derive(Debug, Serialize)]
struct Ready<'a> {
    api_key: &'a str,
    organization_id: String,
    default_snapshot: String,
    preview_domain: String,
    ca_cert: PathBuf,
    join_command: Vec<String>,
    nodes: Vec<ReadyNode>,
}

#[derive(Debug, Serialize)]
struct ReadyNode {
    id: NodeId,
    name: String,
    region: String,
    pid: u32,
    http: String,
    https: Option<String>,
    ssh: String,
    mesh: String,
    data_dir: PathBuf,
    restart_command: Vec<String>,
}

struct DevNode {
    config: Config,
    config_path: PathBuf,
    child: Option<Child>,
}

pub async fn run(args: DevArgs, cancel: CancellationToken) -> Result<()> {
    ensure!((1..=NODES_MAX).contains(&args.nodes), "--nodes must be 1 to {NODES_MAX}");
    ensure!(!args.regions.is_empty(), "--regions needs at least one name");
    let last_port = u32::from(args.base_port) + args.nodes as u32 * u32::from(PORTS_PER_NODE);
    ensure!(last_port <= u32::from(u16::MAX), "--base-port leaves no room for {} nodes", args.nodes);

    let (root, _temporary) = data_dir(&args)?;
    let mut nodes = configure(&args, &root)?;
    let outcome = serve(&args, &mut nodes, &cancel).await;
    let cleaned = tear_down(&mut nodes, args.ready_file.as_deref()).await;
    outcome.and(cleaned)
}

/// Brings the cluster up and stays until it is told to stop. What is to be cleaned up is in `nodes`.
async fn serve(args: &DevArgs, nodes: &mut [DevNode], cancel: &CancellationToken) -> Result<()> {
    let began = Instant::now();
    let founded = founding::found(&nodes[0].config).context("found the cluster")?;
    let api = |node: &DevNode| ApiArgs {
        api_url: format!("http://{}/api", node.config.listen.http),
        api_key: founded.api_key.reveal().to_owned(),
        ca_cert: None,
    };
    let start = ["node", "start", "--config"].map(str::to_owned);
    let path = nodes[0].config_path.display().to_string();
    nodes[0].child = Some(spawn(&nodes[0], start.into_iter().chain([path]), None)?);
    let first = Client::new(&api(&nodes[0]))?;
    until_ready(&mut nodes[..1], cancel).await?;
    let token = first.join_token(JOIN_TTL_S, JOIN_USES).await.context("make a join token")?;
    let peer = nodes[0].config.addresses().mesh;
    for node in &mut nodes[1..] {
        let path = node.config_path.display().to_string();
        let region = node.config.region.as_str();
        let arguments =
            ["node", "join", "--peer", &peer, "--region", region, "--config", &path].map(str::to_owned);
        node.child = Some(spawn(node, arguments.into_iter(), Some(&token))?);
    }
    until_ready(nodes, cancel).await?;
    until_voters_settle(&first, nodes, cancel).await?;

    let ready = Ready {
        api_key: founded.api_key.reveal(),
        organization_id: founded.organization_id.to_string(),
        default_snapshot: nodes[0].config.default_snapshot.clone(),
        preview_domain: nodes[0].config.preview_domain.clone(),
        ca_cert: nodes[0].config.layout().ca_certificate(),
        join_command: vec![
            own_program()?.display().to_string(),
            "node".into(),
            "join".into(),
            "--peer".into(),
            peer,
            "--token".into(),
            token,
            "--region".into(),
            nodes[0].config.region.to_string(),
        ],
        nodes: nodes.iter().map(ready_node).collect::<Result<_>>()?,
    };
    if let Some(path) = &args.ready_file {
        write_ready(path, &ready)?;
    }
    eprintln!(
        "{} nodes serve after {:.1} s; stop with Ctrl-C or SIGTERM.",
        nodes.len(),
        began.elapsed().as_secs_f64()
    );
    for node in &ready.nodes {
        eprintln!(
            "  {} ({}): {}/api   ssh {}   pid {}",
            node.name, node.region, node.http, node.ssh, node.pid
        );
    }
    if args.ready_file.is_none() {
        println!("{}", serde_json::to_string_pretty(&ready)?);
    }
    cancel.cancelled().await;
    Ok(())
}

fn data_dir(args: &DevArgs) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    match &args.data_dir {
        Some(dir) => {
            let dir = std::path::absolute(dir).context("make --data-dir absolute")?;
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            Ok((dir, None))
        }
        None => {
            let dir =
                tempfile::Builder::new().prefix("atoll-dev-").tempdir().context("make a temporary folder")?;
            Ok((dir.path().to_owned(), Some(dir)))
        }
    }
}

fn configure(args: &DevArgs, root: &Path) -> Result<Vec<DevNode>> {
    (0..args.nodes)
        .map(|index| {
            let name = format!("n{}", index + 1);
            let data_dir = root.join(&name);
            ensure!(
                NodeIdentity::load(&data_dir.join("identity"))?.is_none(),
                "{} holds a node of an earlier run; remove it or choose another --data-dir",
                data_dir.display()
            );
            let make = MakeConfigArgs {
                name: Some(name),
                data_dir,
                address: args.address,
                base_port: args.base_port + index as u16 * PORTS_PER_NODE,
                image: args.image.clone(),
                preview_domain: crate::config::default_preview_domain(),
            };
            let region = &args.regions[index % args.regions.len()];
            let (config, config_path) = make_config::given_or_made(None, &make, region)?;
            Ok(DevNode { config, config_path, child: None })
        })
        .collect()
}

/// The token travels in the environment: every user of the machine may read a command line.
fn spawn(node: &DevNode, arguments: impl Iterator<Item = String>, join_token: Option<&str>) -> Result<Child> {
    let log_path = node.config.data_dir.join("node.log");
    let log = std::fs::File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
    Command::new(own_program()?)
        .args(arguments)
        .envs(join_token.map(|token| ("ATOLL_JOIN_TOKEN", token)))
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at the terminal is for `dev`, which then stops the nodes in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("start node {}", node.config.name))
}

async fn until_ready(nodes: &mut [DevNode], cancel: &CancellationToken) -> Result<()> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
    let deadline = Instant::now() + READY_DEADLINE;
    for node in nodes {
        let url = format!("http://{}/api/health/ready", node.config.listen.http);
        loop {
            if let Some(status) = node.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                bail!("node {} ended with {status}:\n{}", node.config.name, log_tail(node));
            }
            // After the look at our own child: the port may be held by somebody else's node.
            if http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            if Instant::now() > deadline {
                bail!(
                    "node {} is not ready after {} s:\n{}",
                    node.config.name,
                    READY_DEADLINE.as_secs(),
                    log_tail(node)
                );
            }
            pause(cancel).await?;
        }
    }
    Ok(())
}

/// A test that kills a leader right after the start must find the voters that the documents promise.
async fn until_voters_settle(first: &Client, nodes: &[DevNode], cancel: &CancellationToken) -> Result<()> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let groups = first.groups().await.unwrap_or_default();
        let settled = |group: &(String, usize)| {
            let members = match group.0.strip_prefix("region/") {
                Some(region) => nodes.iter().filter(|node| node.config.region.as_str() == region).count(),
                None => nodes.len(),
            };
            group.1 == voters_of(members)
        };
        let expected =
            1 + nodes.iter().map(|node| &node.config.region).collect::<std::collections::BTreeSet<_>>().len();
        if groups.len() == expected && groups.iter().all(settled) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "voters did not settle: {groups:?}");
        pause(cancel).await?;
    }
}

fn voters_of(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

async fn pause(cancel: &CancellationToken) -> Result<()> {
    tokio::select! {
        _ = cancel.cancelled() => bail!("stopped while starting"),
        _ = tokio::time::sleep(LOOK_EVERY) => Ok(()),
    }
}

fn ready_node(node: &DevNode) -> Result<ReadyNode> {
    let layout = node.config.layout();
    let addresses = node.config.addresses();
    Ok(ReadyNode {
        id: NodeIdentity::load(&layout.identity_dir())?.context("node has no identity")?.node_id(),
        name: node.config.name.clone(),
        region: node.config.region.to_string(),
        pid: node.child.as_ref().and_then(Child::id).context("node has ended")?,
        http: addresses.http,
        https: addresses.https,
        ssh: addresses.ssh,
        mesh: addresses.mesh,
        data_dir: node.config.data_dir.clone(),
        restart_command: vec![
            own_program()?.display().to_string(),
            "node".into(),
            "start".into(),
            "--config".into(),
            node.config_path.display().to_string(),
        ],
    })
}

/// Readers watch for the file: it appears whole.
fn write_ready(path: &Path, ready: &Ready<'_>) -> Result<()> {
    let path = std::path::absolute(path).context("make --ready-file absolute")?;
    crate::files::write_private(&path, &serde_json::to_vec_pretty(ready)?)
        .with_context(|| format!("write {}", path.display()))
}

async fn tear_down(nodes: &mut [DevNode], ready_file: Option<&Path>) -> Result<()> {
    eprintln!("stopping {} nodes", nodes.len());
    if let Some(path) = ready_file {
        let _ = std::fs::remove_file(path);
    }
    let running: Vec<Pid> = nodes.iter().flat_map(pids).collect();
    for signal in [Signal::TERM, Signal::KILL] {
        let deadline = Instant::now() + STOP_DEADLINE;
        for pid in running.iter().filter(|pid| is_alive(**pid)) {
            let _ = kill_process(*pid, signal);
        }
        while running.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
            // Our own children must be reaped, or they stay as zombies.
            for child in nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
                let _ = child.try_wait();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    for node in nodes.iter() {
        let layout = node.config.layout();
        let Ok(Some(identity)) = NodeIdentity::load(&layout.identity_dir()) else { continue };
        let runtime = runtimes::docker(identity.node_id(), &node.config.runtime.image)?;
        runtime.teardown().await.with_context(|| format!("remove the sandboxes of {}", node.config.name))?;
    }
    Ok(())
}

/// The process that `dev` started, and the one in the pid file when somebody started the node again.
fn pids(node: &DevNode) -> Vec<Pid> {
    let started = node.child.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(id as i32));
    let noted = std::fs::read_to_string(node.config.layout().pid_file())
        .ok()
        .and_then(|text| Pid::from_raw(text.trim().parse().ok()?))
        .filter(|pid| runs_config(*pid, &node.config_path));
    let mut pids: Vec<Pid> = started.into_iter().chain(noted).collect();
    pids.dedup();
    pids
}

/// Whether the process is a node of ours: a pid file may outlive its process, and the pid be somebody else's.
fn runs_config(pid: Pid, config_path: &Path) -> bool {
    let command_line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let wanted = config_path.as_os_str().as_encoded_bytes();
    command_line.split(|byte| *byte == 0).any(|argument| argument == wanted)
}

/// Not gone, and not a zombie that whoever started it has yet to reap.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn log_tail(node: &DevNode) -> String {
    let log = std::fs::read_to_string(node.config.data_dir.join("node.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}
