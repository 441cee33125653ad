//! The command line: what can be said to `atoll`, and nothing about how it is done.

use std::net::SocketAddr;
use std::path::PathBuf;

use atoll_api::ids::RegionName;
use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "atoll",
    version,
    about = "Sandboxes for code that can't be trusted, on a mesh of equal nodes"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run this machine's node, or join it to a cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Own this machine's sandboxes, as root, on behalf of its node.
    Runner(RunnerArgs),
    /// The runner starts this by itself: a process with one thread that makes sandboxes' first processes.
    #[command(name = crate::runtimes::ZYGOTE, hide = true)]
    Zygote { state_dir: PathBuf },
    /// Found a cluster, invite nodes, look at it.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Start a throwaway cluster on this machine and keep it running until it is told to stop.
    Dev(DevArgs),
    /// Check this machine: what is missing, and what to do about it.
    Doctor(DoctorArgs),
    /// Create, list, use and delete sandboxes.
    #[command(subcommand)]
    Sandbox(SandboxCommand),
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Run the node that `cluster init` or `node join` made.
    Start(StartArgs),
    /// Join a cluster with a token, then run the node.
    Join(Box<JoinArgs>),
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[arg(long, value_name = "FILE", default_value = "/etc/atoll/node.toml")]
    pub config: PathBuf,
    #[command(flatten)]
    pub life: LifeArgs,
}

// How a node's process is tied to others. (Not a doc comment: clap would show it as a subcommand's help.)
#[derive(Debug, Args)]
pub struct LifeArgs {
    /// Start this node's `atoll runner` too, which ends with the node; for tries, as root.
    #[arg(long)]
    pub with_runner: bool,
    /// End when this process, which must be the parent, has ended.
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<i32>,
}

#[derive(Debug, Args)]
pub struct RunnerArgs {
    /// The node's own configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/atoll/node.toml")]
    pub config: PathBuf,
    /// End when this process, which must be the parent, has ended.
    #[arg(long, value_name = "PID", hide = true)]
    pub parent: Option<i32>,
    /// Remove every sandbox then.
    #[arg(long, hide = true, requires = "parent")]
    pub remove_with_parent: bool,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// Mesh address of any node of the cluster.
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: String,
    /// From `atoll cluster token create` on any node.
    #[arg(long, env = "ATOLL_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// The region this node is to serve; created when it is new.
    #[arg(long)]
    pub region: RegionName,
    /// Full configuration; without it, the options below make one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub make: MakeConfigArgs,
    /// Join, write identity and configuration, and don't run.
    #[arg(long)]
    pub no_start: bool,
    #[command(flatten)]
    pub life: LifeArgs,
}

// A configuration from a few options, for a first try. (Not a doc comment: clap would show it as a subcommand's help.)
#[derive(Debug, Args)]
pub struct MakeConfigArgs {
    /// Default: this machine's host name.
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long, value_name = "DIR", default_value = "/var/lib/atoll")]
    pub data_dir: PathBuf,
    /// Address to listen on and to be reached at.
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    /// Ports are this (http), +1 (https), +2 (ssh), +3 (mesh, UDP).
    #[arg(long, default_value_t = 9100)]
    pub base_port: u16,
    #[arg(long, default_value_t = crate::config::default_image())]
    pub image: String,
    #[arg(long, default_value_t = crate::config::default_preview_domain())]
    pub preview_domain: String,
    /// Where `deploy/base/build.sh` has left the base snapshot.
    #[arg(long, value_name = "DIR", env = "ATOLL_CACHE_DIR", default_value = crate::config::CACHE_DIR)]
    pub cache_dir: PathBuf,
    /// What runs the sandboxes.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: crate::config::RuntimeKind,
    /// The user that the node is to run as: a name, or a number that needs no entry anywhere.
    #[arg(long, value_name = "USER")]
    pub node_user: Option<crate::account::Account>,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a new cluster: its CA, its first node's identity, its first API key. Prints the key once.
    Init {
        #[arg(long)]
        region: RegionName,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        make: MakeConfigArgs,
    },
    /// Invite nodes.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Nodes, and each group's leader, term, voters and learners.
    Status(ApiArgs),
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token. It pins the cluster's CA and is shown once.
    Create {
        /// Seconds until it expires.
        #[arg(long, default_value_t = 900)]
        ttl_s: u64,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        #[command(flatten)]
        api: ApiArgs,
    },
}

// Which node to ask, and as whom. (Not a doc comment: clap would show it as each subcommand's help.)
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// Any node's API; also from DAYTONA_API_URL.
    #[arg(long, env = "DAYTONA_API_URL", default_value = "http://127.0.0.1:9100/api")]
    pub api_url: String,
    /// Also from DAYTONA_API_KEY.
    #[arg(long, env = "DAYTONA_API_KEY", hide_env_values = true)]
    pub api_key: String,
    /// A CA to trust for https, beside nothing else.
    #[arg(long, env = "ATOLL_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DevArgs {
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// Nodes are dealt to these in turn.
    #[arg(long, value_delimiter = ',', default_value = "local")]
    pub regions: Vec<RegionName>,
    /// What runs the sandboxes.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: crate::config::RuntimeKind,
    /// Node i takes base + 10 × i: http, +1 https, +2 ssh, +3 mesh.
    #[arg(long, default_value_t = 9100)]
    pub base_port: u16,
    /// Default: a temporary folder that goes with the cluster.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Written when every node serves.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    #[arg(long, default_value_t = crate::config::default_image())]
    pub image: String,
    /// Where `deploy/base/build.sh` has left the base snapshot.
    #[arg(long, value_name = "DIR", env = "ATOLL_CACHE_DIR", default_value = crate::config::CACHE_DIR)]
    pub cache_dir: PathBuf,
    /// Address all nodes listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    /// Each node promises what so many sandboxes of the default snapshot need, whatever this machine has: for many that
    /// are idle. Default: as any node, by the machine's CPUs, memory and disk.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sandboxes_max: Option<u32>,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Without a configuration: which runtime to check for.
    #[arg(long, value_enum, default_value_t)]
    pub runtime: crate::config::RuntimeKind,
    #[arg(long, default_value_t = crate::config::default_image())]
    pub image: String,
    /// Without a configuration: where `deploy/base/build.sh` has left the base snapshot.
    #[arg(long, value_name = "DIR", env = "ATOLL_CACHE_DIR", default_value = crate::config::CACHE_DIR)]
    pub cache_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Make a sandbox and print its id.
    Create {
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        snapshot: Option<String>,
        #[arg(long)]
        target: Option<String>,
        /// KEY=VALUE, repeatable.
        #[arg(long = "env", value_name = "KEY=VALUE")]
        env: Vec<String>,
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Every sandbox of the key's organization, newest first.
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Run a command and exit with its code. One word is shell text, several are passed on as they are.
    Exec {
        sandbox: String,
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Open a shell by the system's ssh.
    Ssh {
        sandbox: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Start a stopped sandbox.
    Start {
        sandbox: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Stop a sandbox; its disk stays.
    Stop {
        sandbox: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Delete a sandbox and its disk.
    Delete {
        sandbox: String,
        #[command(flatten)]
        api: ApiArgs,
    },
}

impl MakeConfigArgs {
    pub fn socket(&self, offset: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.base_port.saturating_add(offset))
    }
}
