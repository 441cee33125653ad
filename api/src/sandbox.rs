//! What a sandbox is, apart from where it runs: its specification, the phases of its life, its resources.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, NodeId};

/// Everything needed to make the sandbox again on another node. Immutable after create but for `egress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Name of the snapshot in the catalogue, as the user gave it.
    pub snapshot: String,
    /// What the runtime starts: for docker an image reference that exists on the node.
    pub image: String,
    /// The account that user commands run as.
    pub user: String,
    pub env: BTreeMap<String, String>,
    /// The image's own long-running command; empty means none.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    pub resources: Resources,
    #[serde(default)]
    pub egress: Egress,
    /// `sudo` works inside, so no_new_privs is not set.
    #[serde(default = "yes")]
    pub allow_sudo: bool,
}

fn yes() -> bool {
    true
}

/// Whom a sandbox may reach outside. The default is everybody but the host, its network and other sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Nobody, whatever the lists say.
    #[serde(default)]
    pub block_all: bool,
    /// IPv4 networks (`10.1.0.0/16`); with any entry in either list, nobody else.
    #[serde(default)]
    pub cidrs: Vec<String>,
    /// Host names (`example.org`, `*.example.org` for everything below it).
    #[serde(default)]
    pub domains: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Whole CPUs.
    pub cpu: u32,
    pub memory_gib: u32,
    pub disk_gib: u32,
}

/// Who runs the sandbox, and for how many-th time it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    pub node_id: NodeId,
    pub generation: Generation,
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Desired {
    Running,
    Stopped,
    Deleted,
    /// No process of it runs; what is in memory stays there.
    Paused,
    /// No node runs it or holds its disk; what was on the disk is a checkpoint.
    Archived,
}

/// What the owner last reported.
///
/// ```text
/// Pending ─▶ Starting ─hello─▶ Running ─▶ Stopping ─▶ Stopped ─▶ Starting …
///                └───────timeout────▶ Failed ◀──exit──┘      any ─▶ (record removed)
///
/// Running ─▶ Pausing ─▶ Paused ─▶ Resuming ─▶ Running      Paused ─▶ Stopping …
/// Stopped ─▶ Archiving ─▶ Archived ─▶ Pending …
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Pending,
    Starting,
    Running,
    Stopping,
    Stopped,
    Failed {
        reason: String,
    },
    /// The owner is down and nobody has taken over.
    Lost,
    Pausing,
    Paused,
    Resuming,
    /// Its disk is becoming a checkpoint.
    Archiving,
    /// Nobody owns it.
    Archived,
}
