//! `atoll dev`: a throwaway cluster on this machine, each node its own process. Tools outside the project rely on
//! the ready file to the letter.
//!
//!   configure ─▶ runners ─▶ found n1 ─▶ start n1 ─▶ token ─▶ join all others at once ─▶ voters settled ─▶ ready file
//!   SIGTERM ─▶ stop every node, also one that was started again by hand ─▶ remove every sandbox ─▶ stop every runner ─▶
//!   remove the data, if the folder is a temporary one. All of them end by themselves, and the sandboxes with them, when `dev` itself is killed.

mod member;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use atoll_api::ids::NodeId;
use atoll_certs::identity::NodeIdentity;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::{ApiArgs, DevArgs};
use crate::client::Client;
use crate::founding;
use crate::place::Place;
use member::Member;

const NODES_MAX: usize = 16;
const PORTS_PER_NODE: u16 = 10;
const READY_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AFTER_RUNNERS_EVERY: Duration = Duration::from_millis(500);
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

pub async fn run(args: DevArgs, cancel: CancellationToken) -> Result<()> {
    ensure!((1..=NODES_MAX).contains(&args.nodes), "--nodes must be 1 to {NODES_MAX}");
    ensure!(!args.regions.is_empty(), "--regions needs at least one name");
    let last_port = u32::from(args.base_port) + args.nodes as u32 * u32::from(PORTS_PER_NODE);
    ensure!(last_port <= u32::from(u16::MAX), "--base-port leaves no room for {} nodes", args.nodes);

    let (root, _temporary) = data_dir(&args)?;
    if let Some(path) = &args.ready_file {
        remove_leftover(path)?;
    }
    let mut nodes = configure(&args, &root)?;
    let mut is_ready = false;
    let outcome = serve(&args, &mut nodes, &cancel, &mut is_ready).await;
    let cleaned = tear_down(&mut nodes, args.ready_file.as_deref().filter(|_| is_ready)).await;
    outcome.and(cleaned)
}

/// Brings the cluster up and stays until it is told to stop. What is to be cleaned up is in `nodes`.
async fn serve(
    args: &DevArgs,
    nodes: &mut [Member],
    cancel: &CancellationToken,
    is_ready: &mut bool,
) -> Result<()> {
    let began = Instant::now();
    for node in nodes.iter_mut() {
        node.start_runner()?;
    }
    let founded = founding::found(&nodes[0].config).context("found the cluster")?;
    let api = |node: &Member| ApiArgs {
        api_url: format!("http://{}/api", node.config.listen.http),
        api_key: founded.api_key.reveal().to_owned(),
        ca_cert: None,
    };
    nodes[0].start_node(&[], None)?;
    let first = Client::new(&api(&nodes[0]))?;
    until_ready(&mut nodes[..1], cancel).await?;
    let token = first.join_token(JOIN_TTL_S, JOIN_USES).await.context("make a join token")?;
    let peer = nodes[0].config.addresses().mesh;
    for node in &mut nodes[1..] {
        let region = node.config.region.to_string();
        node.start_node(&["--peer", &peer, "--region", &region], Some(&token))?;
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
            "--runtime".into(),
            args.runtime.to_string(),
            "--image".into(),
            args.image.clone(),
            "--cache-dir".into(),
            std::path::absolute(&args.cache_dir)?.display().to_string(),
            // Nobody else starts one for it.
            "--with-runner".into(),
        ],
        nodes: nodes.iter().map(ready_node).collect::<Result<_>>()?,
    };
    if let Some(path) = &args.ready_file {
        write_ready(path, &ready)?;
        *is_ready = true;
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
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_AFTER_RUNNERS_EVERY) => {}
        }
        nodes.iter_mut().for_each(Member::report_dead_runner);
    }
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
            // Each node is a user of its own and passes through here.
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
            Ok((dir.path().to_owned(), Some(dir)))
        }
    }
}

fn configure(args: &DevArgs, root: &Path) -> Result<Vec<Member>> {
    let place = Place::free(args.base_port)?;
    (0..args.nodes).map(|index| Member::configure(args, root, place, index)).collect()
}

async fn until_ready(nodes: &mut [Member], cancel: &CancellationToken) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build()?;
    let deadline = Instant::now() + READY_DEADLINE;
    for node in nodes {
        let url = format!("http://{}/api/health/ready", node.config.listen.http);
        loop {
            if let Some(ended) = node.ended_early() {
                bail!("{ended}");
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
                    node.log_tail()
                );
            }
            pause(cancel).await?;
        }
    }
    Ok(())
}

/// A test that kills a leader right after the start must find the voters that the documents promise.
async fn until_voters_settle(first: &Client, nodes: &[Member], cancel: &CancellationToken) -> Result<()> {
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

fn ready_node(node: &Member) -> Result<ReadyNode> {
    let layout = node.config.layout();
    let addresses = node.config.addresses();
    Ok(ReadyNode {
        id: NodeIdentity::load(&layout.identity_dir())?.context("node has no identity")?.node_id(),
        name: node.config.name.clone(),
        region: node.config.region.to_string(),
        pid: node.node_id_of_process().context("node has ended")?,
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

/// Of a cluster that was killed: whoever waits for the file would take its nodes for ours.
fn remove_leftover(path: &Path) -> Result<()> {
    let Ok(left) = std::fs::read(path) else { return Ok(()) };
    let left: serde_json::Value = serde_json::from_slice(&left).unwrap_or_default();
    let runs = |node: &serde_json::Value| {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", node["pid"])).unwrap_or_default();
        comm.trim_end() == "atoll"
    };
    let is_in_use = left["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(runs));
    ensure!(!is_in_use, "{} is of a cluster that runs: stop it, or choose another file", path.display());
    std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

/// Readers watch for the file: it appears whole.
fn write_ready(path: &Path, ready: &Ready<'_>) -> Result<()> {
    let path = std::path::absolute(path).context("make --ready-file absolute")?;
    crate::files::write_private(&path, &serde_json::to_vec_pretty(ready)?)
        .with_context(|| format!("write {}", path.display()))
}

async fn tear_down(nodes: &mut [Member], ready_file: Option<&Path>) -> Result<()> {
    eprintln!("stopping {} nodes", nodes.len());
    if let Some(path) = ready_file {
        let _ = std::fs::remove_file(path);
    }
    member::stop(nodes, Member::node_pids).await;
    let mut removed = Ok(());
    for node in nodes.iter() {
        // One node's trouble must not leave the others' sandboxes behind.
        removed = removed.and(node.remove_sandboxes().await);
    }
    member::stop(nodes, Member::runner_pids).await;
    removed
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}
