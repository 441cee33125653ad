//! What the runner, its zygote and parked inits say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Runner → zygote. Answered by one [`Parked`] in the same order. The request comes with the control groups' `tasks` files.
#[derive(Debug, Serialize, Deserialize)]
pub struct Park {
    pub slot: u16,
    /// What root inside is outside; the following 65535 ids belong to the sandbox too.
    pub uid_base: u32,
    /// Of the sandbox's System V shared memory in all, in pages.
    pub shared_memory_pages: u64,
    /// The first descriptor is a cgroup version 2 folder to be born in, instead of a `tasks` to be written to.
    pub born_in_cgroup: bool,
}

/// Zygote → runner. With `Ok` come: the process's pidfd and the runner's end of the init's control socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parked {
    pub slot: u16,
    /// The pid, or what failed.
    pub outcome: Result<i32, String>,
    /// Microseconds that it took.
    pub clone_us: u64,
}

/// Zygote → its child: the maps are written.
#[derive(Debug, Serialize, Deserialize)]
pub struct Settle {}

/// Init → runner: namespaces are furnished, the network can be attached and the init be claimed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Settled {
    pub outcome: Result<(), String>,
    /// Microseconds that the steps took.
    pub cgroup_us: u64,
    pub furnish_us: u64,
}

/// Runner → init: become this sandbox. Descriptors, in this order: the root mount, the daemon's folder (a detached read-only mount), `etc`
/// (a detached mount of a folder with `hosts`, `hostname` and `resolv.conf`), standard error, the daemon's configuration, the socket
/// of its hello.
#[derive(Debug, Serialize, Deserialize)]
pub struct Become {
    pub hostname: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub program: PathBuf,
    /// The first is the program's name as it sees it.
    pub arguments: Vec<String>,
    /// The image's, as far as it has that folder.
    pub work_dir: Option<String>,
    pub no_new_privileges: bool,
    /// Of `/dev/shm`.
    pub shared_memory_bytes: u64,
}

/// Init → runner, only when it failed: success closes the socket by exec.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    /// The image's fault, and not the host's.
    pub image: bool,
    pub reason: String,
}
