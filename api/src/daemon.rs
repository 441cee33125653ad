//! What a node and the daemon in its sandbox say to each other before HTTP begins. No cluster word appears here.
//!
//! The runner mounts a folder read-only at [`MOUNT_DIR`]: the daemon's binary, its [`DaemonConfig`], and a Unix
//! socket on which the daemon says [`Hello`] (one JSON line) once its port answers. After that the node dials
//! [`crate::access::DAEMON_PORT`] on the sandbox's loopback and opens every connection with [`preamble`]; the daemon
//! closes any connection that begins otherwise. So the port answers its own node only, and nobody polls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const MOUNT_DIR: &str = "/.atoll";
pub const BINARY_PATH: &str = "/.atoll/atoll-daemon";
pub const CONFIG_PATH: &str = "/.atoll/run/config.json";
pub const HELLO_SOCKET_PATH: &str = "/.atoll/run/hello.sock";

/// Written by the runner (mode 0600, owner root) before the sandbox starts.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonConfig {
    pub sandbox_id: String,
    /// 64 hex digits, new for every start.
    pub secret: String,
    /// The account that user commands and file operations run as.
    pub user: String,
    /// Environment of every user process, beside the image's own.
    pub env: BTreeMap<String, String>,
    /// The image's command, run as the session `entrypoint`; empty means none.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Working directory; absent means the user's home.
    #[serde(default)]
    pub work_dir: Option<String>,
}

/// The daemon serves. One line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub sandbox_id: String,
    pub secret: String,
    pub version: String,
}

/// The first line on every connection from the node. Exactly [`PREAMBLE_BYTES`] long.
pub fn preamble(secret: &str) -> String {
    format!("ATOLL/1 {secret}\n")
}

/// `ATOLL/1 `, 64 hex digits, newline.
pub const PREAMBLE_BYTES: usize = 8 + 64 + 1;
