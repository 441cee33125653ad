//! A node's configuration: read once, checked once, passed on as values.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use atoll_api::ids::RegionName;
use atoll_api::sandbox::Resources;
use atoll_consensus::state::cluster::{NodeAddresses, NodeCapacity};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::founding::DEFAULT_RESOURCES;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Unique in the cluster; shown in lists and logs.
    pub name: String,
    /// The region this node belongs to; made when its first node joins.
    pub region: RegionName,
    /// A failure domain within the region (rack, data centre). Voters are spread over zones.
    #[serde(default)]
    pub zone: Option<String>,
    /// Keys, log and sandboxes. One node at a time may use it.
    pub data_dir: PathBuf,
    pub listen: Listen,
    /// What others are told to dial; default: the listening addresses themselves.
    #[serde(default)]
    pub advertise: Advertise,
    /// Previews answer at `{port}-{sandbox}.{preview_domain}`. `*.preview.localhost` needs no DNS at all.
    #[serde(default = "default_preview_domain")]
    pub preview_domain: String,
    /// The snapshot that a create without one gets.
    #[serde(default = "default_snapshot")]
    pub default_snapshot: String,
    #[serde(default)]
    pub runtime: RuntimeConfig,
    #[serde(default)]
    pub capacity: Capacity,
    #[serde(default)]
    pub timing: Timing,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    pub http: SocketAddr,
    #[serde(default)]
    pub https: Option<SocketAddr>,
    pub ssh: SocketAddr,
    /// UDP.
    pub mesh: SocketAddr,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Base URL, e.g. `http://10.0.0.5:8080`.
    pub http: Option<String>,
    pub https: Option<String>,
    /// `host:port`.
    pub ssh: Option<String>,
    pub mesh: Option<String>,
}

/// What runs sandboxes. Read by `atoll node` and by `atoll runner`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    pub kind: RuntimeKind,
    /// The image of the default snapshot, as `deploy/base/build.sh` made it. The embedded runtime finds it in the seeds, Docker
    /// in its engine.
    pub image: String,
    /// Where the runner listens for its node. Default: `runner.sock` in the state folder.
    pub socket: Option<PathBuf>,
    /// The runner's own folder, root's and not below `data_dir`. Default: `<data_dir>.runner`.
    pub state_dir: Option<PathBuf>,
    /// Unpacked image layers; the runners of one host may share them. Default: `layers` in the state folder.
    pub layers_dir: Option<PathBuf>,
    /// Folders with OCI layouts that images may come from beside the node's own store. They are only read, by the node's
    /// user. Default: where `deploy/base/build.sh` leaves the base snapshot when root runs it.
    pub seeds: Vec<PathBuf>,
    /// Hosts of registries, without ports, that may be at addresses which are not public; `*` stands for all. Whoever may
    /// name an image can have this node ask them. Default: none.
    pub private_registries: BTreeSet<String>,
    /// What the store of image blobs may take, in GiB. Above it, images that nothing needs and that can be had again go,
    /// least recently used first; what is needed stays, however much it is. Default: a quarter of the disk where
    /// `data_dir` is.
    pub store_budget_gib: Option<u32>,
    /// The user `atoll node` runs as: a name, or a number that needs no entry anywhere. A node that root starts becomes
    /// this user; the runner serves nobody else but root. Default: root, which is for tries only.
    pub node_user: Option<Account>,
    /// IPv4 network of the sandboxes; must be free on this host. Each node of one host needs its own.
    pub network: String,
    /// Unpacked layers that no sandbox needs go, least recently used first, while all take more than this.
    pub layers_budget_gib: u32,
    /// From here on, sandbox by sandbox, 65536 user ids of the host belong to the users inside. Each node of one host
    /// needs its own, `65536 × capacity.sandboxes_max` of them.
    pub uid_base: u32,
    /// Processes and threads that one sandbox may have.
    pub pids_max: u32,
    /// Sandboxes of the embedded runtime that are half made before anybody asks (namespaces, control groups, network and
    /// disk): a burst of so many creates is as fast as one. Each costs about 1 MB.
    pub parked: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    /// Sandboxes of our own, made of the kernel's parts without any engine. Needs Linux 5.19.
    #[default]
    Embedded,
    /// Containers of a Docker Engine on this host.
    Docker,
}

impl std::fmt::Display for RuntimeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RuntimeKind::Embedded => "embedded",
            RuntimeKind::Docker => "docker",
        })
    }
}

/// What this node promises to sandboxes. All of it is overcommitted, as most sandboxes are idle most of the time: by default so
/// far that some hundreds that do nothing fit beside each other. Promise less where they work hard. What is really left
/// decides too: a runner makes none when the host's memory or disk is nearly used up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Default: 256 × the cores.
    pub cpu: Option<u32>,
    /// Default: 32 × the memory.
    pub memory_gib: Option<u32>,
    /// Default: 16 × the free space where `data_dir` is, at least 100: disks take the space that is written.
    pub disk_gib: Option<u32>,
    /// Default: 1000.
    pub sandboxes_max: Option<u32>,
}

impl Capacity {
    /// Room for so many sandboxes of the default snapshot as it is made with a cluster.
    pub fn for_default_sandboxes(count: u32) -> Capacity {
        let Resources { cpu, memory_gib, disk_gib } = DEFAULT_RESOURCES;
        Capacity {
            cpu: Some(cpu.saturating_mul(count)),
            memory_gib: Some(memory_gib.saturating_mul(count)),
            disk_gib: Some(disk_gib.saturating_mul(count)),
            sandboxes_max: Some(count),
        }
    }
}

/// All in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    pub raft_heartbeat_ms: u64,
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    /// Without a leader for so long, a request is answered 503. Above the time of an ordinary election
    /// (`2 × election_max_ms`), so that one leader's death is a pause and not an error.
    pub no_leader_ms: u64,
    pub node_heartbeat_ms: u64,
    /// Not acted upon yet: when a node that has lost its lease is to stop its sandboxes.
    pub self_fence_after_ms: u64,
    /// A node that was not heard from for so long is down. Must be above `self_fence_after_ms`.
    pub node_down_after_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            raft_heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            no_leader_ms: 2_000,
            node_heartbeat_ms: 500,
            self_fence_after_ms: 4_000,
            node_down_after_ms: 6_000,
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        RuntimeConfig {
            kind: RuntimeKind::default(),
            image: default_image(),
            socket: None,
            state_dir: None,
            layers_dir: None,
            seeds: layouts(Path::new(CACHE_DIR)),
            private_registries: BTreeSet::new(),
            store_budget_gib: None,
            node_user: None,
            network: "10.88.0.0/16".into(),
            layers_budget_gib: 20,
            uid_base: UID_BASE,
            pids_max: 2048,
            parked: 16,
        }
    }
}

/// Above the users of people, directories and other container engines.
pub const UID_BASE: u32 = 1 << 28;

/// Where `deploy/base/build.sh` keeps what takes long to make, unless ATOLL_CACHE_DIR says otherwise.
pub const CACHE_DIR: &str = "/var/cache/atoll";

/// The OCI layout of the base snapshot within a cache folder.
pub fn base_layout(cache_dir: &Path) -> PathBuf {
    cache_dir.join("base/atoll-base.oci")
}

/// Where `deploy/base/build.sh` leaves its snapshots within a cache folder, those that were not made included.
pub fn layouts(cache_dir: &Path) -> Vec<PathBuf> {
    vec![base_layout(cache_dir), cache_dir.join("base").join(format!("{DESKTOP_SNAPSHOT}.oci"))]
}

/// The snapshot for computer use, and its image.
pub const DESKTOP_SNAPSHOT: &str = "atoll-desktop";

pub fn default_preview_domain() -> String {
    "preview.localhost".into()
}

pub fn default_snapshot() -> String {
    "atoll-base".into()
}

pub fn default_image() -> String {
    "atoll-base:latest".into()
}

impl Config {
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let config: Config = toml::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        config.check().with_context(|| format!("check {}", path.display()))?;
        Ok(config)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string_pretty(self).context("write configuration as TOML")?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    pub fn check(&self) -> Result<()> {
        let name_ok = (1..=63).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        ensure!(name_ok, "name must be 1 to 63 of A-Z, a-z, 0-9, - and .");
        ensure!(self.data_dir.is_absolute(), "data_dir must be an absolute path");
        let state_dir = self.state_dir();
        ensure!(state_dir.is_absolute(), "runtime.state_dir must be an absolute path");
        ensure!(
            !state_dir.starts_with(&self.data_dir) && !self.data_dir.starts_with(&state_dir),
            "runtime.state_dir is the runner's and data_dir the node's: neither may lie in the other"
        );
        ensure!(self.socket().is_absolute(), "runtime.socket must be an absolute path");
        ensure!(
            self.runtime.seeds.iter().all(|seed| seed.is_absolute()),
            "runtime.seeds must be absolute paths of folders with OCI layouts"
        );
        ensure!(self.layers_dir().is_absolute(), "runtime.layers_dir must be an absolute path");
        ensure!(
            !self.layers_dir().starts_with(&self.data_dir),
            "runtime.layers_dir is root's and must not lie in data_dir"
        );
        self.sandbox_network()?;
        ensure!(
            u64::from(self.runtime.uid_base) + (u64::from(self.slots_max()) << 16) <= u64::from(u32::MAX),
            "runtime.uid_base leaves no room for {} times 65536 user ids",
            self.slots_max()
        );
        ensure!(self.runtime.pids_max >= 32, "runtime.pids_max must be at least 32");
        ensure!(self.runtime.parked <= 256, "runtime.parked must be at most 256");
        let domain_ok = !self.preview_domain.is_empty()
            && self.preview_domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        ensure!(domain_ok, "preview_domain must be a host name without a port");
        let timing = &self.timing;
        ensure!(
            timing.self_fence_after_ms < timing.node_down_after_ms,
            "timing.self_fence_after_ms must be below timing.node_down_after_ms, or two nodes could run one sandbox"
        );
        let elections_ok = timing.raft_heartbeat_ms * 2 <= timing.election_min_ms
            && timing.election_min_ms < timing.election_max_ms
            && timing.election_max_ms * 2 <= timing.no_leader_ms;
        ensure!(
            elections_ok,
            "timing: 2 × raft_heartbeat_ms ≤ election_min_ms < election_max_ms ≤ ½ no_leader_ms must hold"
        );
        Ok(())
    }

    pub fn addresses(&self) -> NodeAddresses {
        let Advertise { http, https, ssh, mesh } = self.advertise.clone();
        NodeAddresses {
            mesh: mesh.unwrap_or_else(|| self.listen.mesh.to_string()),
            http: http.unwrap_or_else(|| format!("http://{}", self.listen.http)),
            https: https.or_else(|| self.listen.https.map(|address| format!("https://{address}"))),
            ssh: ssh.unwrap_or_else(|| self.listen.ssh.to_string()),
        }
    }

    pub fn capacity(&self) -> NodeCapacity {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        NodeCapacity {
            total: Resources {
                cpu: self.capacity.cpu.unwrap_or(cores.saturating_mul(CPU_OVERCOMMIT)),
                memory_gib: self
                    .capacity
                    .memory_gib
                    .unwrap_or_else(|| memory_total_gib().max(1).saturating_mul(MEMORY_OVERCOMMIT)),
                disk_gib: self.capacity.disk_gib.unwrap_or_else(|| {
                    free_disk_gib(&self.data_dir).saturating_mul(DISK_OVERCOMMIT).max(100)
                }),
            },
            sandboxes_max: self.capacity.sandboxes_max.unwrap_or(SANDBOXES_MAX),
        }
    }

    /// What the store of image blobs may take.
    pub fn store_budget_bytes(&self) -> u64 {
        let quarter =
            || disk(&self.data_dir).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize) / 4);
        self.runtime.store_budget_gib.map_or_else(quarter, |gib| u64::from(gib) << 30)
    }

    /// Where `data_dir` is, or will be.
    pub fn free_disk_gib(&self) -> u32 {
        free_disk_gib(&self.data_dir)
    }

    /// The runner's own folder.
    pub fn state_dir(&self) -> PathBuf {
        self.runtime.state_dir.clone().unwrap_or_else(|| {
            let mut name = self.data_dir.clone().into_os_string();
            name.push(".runner");
            name.into()
        })
    }

    /// Where the runner listens for its node.
    pub fn socket(&self) -> PathBuf {
        self.runtime.socket.clone().unwrap_or_else(|| self.state_dir().join("runner.sock"))
    }

    /// Unpacked image layers.
    pub fn layers_dir(&self) -> PathBuf {
        self.runtime.layers_dir.clone().unwrap_or_else(|| self.state_dir().join("layers"))
    }

    /// The addresses of this node's sandboxes.
    pub fn sandbox_network(&self) -> Result<Ipv4Net> {
        let text = &self.runtime.network;
        text.parse().ok().filter(|network: &Ipv4Net| network.trunc() == *network).with_context(|| {
            format!("runtime.network must be an IPv4 network like 10.88.0.0/16, and is {text:?}")
        })
    }

    /// Sandboxes that run at once.
    pub fn slots_max(&self) -> u16 {
        u16::try_from(self.capacity.sandboxes_max.unwrap_or(SANDBOXES_MAX)).unwrap_or(u16::MAX)
    }

    pub fn layout(&self) -> Layout {
        Layout { root: self.data_dir.clone() }
    }
}

const SANDBOXES_MAX: u32 = 1000;
const CPU_OVERCOMMIT: u32 = 256;
const MEMORY_OVERCOMMIT: u32 = 32;
const DISK_OVERCOMMIT: u32 = 16;

/// Where things are inside `data_dir`.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn identity_dir(&self) -> PathBuf {
        self.root.join("identity")
    }
    pub fn cluster_secret(&self) -> PathBuf {
        self.root.join("identity/cluster.secret")
    }
    /// What the founding node proposes at its first start; gone afterwards.
    pub fn founding(&self) -> PathBuf {
        self.root.join("founding.bin")
    }
    /// Whom to talk to before the first replica of the cluster state has arrived.
    pub fn first_peers(&self) -> PathBuf {
        self.root.join("first-peers.json")
    }
    pub fn consensus_dir(&self) -> PathBuf {
        self.root.join("consensus")
    }
    pub fn runner_dir(&self) -> PathBuf {
        self.root.join("runner")
    }
    /// Images: see `atoll_runner::store`.
    pub fn store_dir(&self) -> PathBuf {
        self.root.join("store")
    }
    /// Logs of builds.
    pub fn builds_dir(&self) -> PathBuf {
        self.root.join("builds")
    }
    /// What builds' sandboxes see of the node, and what their steps have made before.
    pub fn build_steps_dir(&self) -> PathBuf {
        self.root.join("build-steps")
    }
    pub fn api_socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }
    pub fn ca_certificate(&self) -> PathBuf {
        self.root.join("ca.pem")
    }
    pub fn pid_file(&self) -> PathBuf {
        self.root.join("node.pid")
    }
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("node.lock")
    }
}

fn memory_total_gib() -> u32 {
    let kib = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    (kib.unwrap_or(0) / (1024 * 1024)) as u32
}

fn free_disk_gib(dir: &Path) -> u32 {
    disk(dir).map_or(0, |disk| (disk.f_bavail * disk.f_frsize / (1 << 30)) as u32)
}

/// That of a folder which may not be there yet.
fn disk(dir: &Path) -> Option<rustix::fs::StatVfs> {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    rustix::fs::statvfs(existing).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "n1"
        region = "eu"
        data_dir = "/var/lib/atoll"
        [listen]
        http = "127.0.0.1:9100"
        ssh = "127.0.0.1:9102"
        mesh = "127.0.0.1:9103"
    "#;

    fn parsed(extra: &str) -> Result<Config> {
        let config: Config = toml::from_str(&format!("{MINIMAL}\n{extra}"))?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn a_minimal_file_is_enough() {
        let config = parsed("").unwrap();

        assert_eq!(config.addresses().http, "http://127.0.0.1:9100");
        assert_eq!(config.preview_domain, "preview.localhost");
        assert!(config.capacity().total.cpu >= 16);
    }

    #[test]
    fn the_example_for_systemd_is_right() {
        let config: Config = toml::from_str(include_str!("../../deploy/systemd/node.toml")).unwrap();

        config.check().unwrap();
        assert!(config.runtime.node_user.is_some());
    }

    #[test]
    fn a_misspelt_setting_is_an_error() {
        assert!(parsed("[timing]\nnode_down_after = 3").is_err());
    }

    #[test]
    fn fencing_must_come_before_judgement() {
        let error = parsed("[timing]\nself_fence_after_ms = 6000").unwrap_err();

        assert!(error.to_string().contains("self_fence_after_ms must be below"));
    }

    #[test]
    fn the_runners_folder_is_beside_the_nodes_and_never_within() {
        let config = parsed("").unwrap();

        assert_eq!(config.socket(), PathBuf::from("/var/lib/atoll.runner/runner.sock"));
        for state_dir in ["/var/lib/atoll/runner", "/var/lib"] {
            assert!(parsed(&format!("[runtime]\nstate_dir = {state_dir:?}")).is_err(), "{state_dir}");
        }
    }

    #[test]
    fn a_configuration_survives_saving() {
        let config = parsed("[runtime]\nnode_user = 61900").unwrap();

        let text = toml::to_string_pretty(&config).unwrap();

        assert_eq!(toml::from_str::<Config>(&text).unwrap().name, "n1");
    }
}
