//! What a node and the daemon in its sandbox say to each other before HTTP begins. No cluster word appears here.
//!
//! The runner mounts a folder read-only at [`MOUNT_DIR`]: the daemon's binary, its [`DaemonConfig`], and a Unix
//! socket on which the daemon says [`Hello`] (one JSON line) once its port answers. After that the node dials
//! [`crate::access::DAEMON_PORT`] on the sandbox's loopback and opens every connection with [`preamble`]; the daemon
//! closes any connection that begins otherwise. So the port answers its own node only, and nobody polls.
//!
//! A connection that begins with [`owner_preamble`] carries what the node itself asks for, and no request of anybody else:
//! so far only [`Identity`], by `POST` to [`IDENTITY_PATH`].

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

/// Whom the sandbox is for, when that turns out after it has started. Holds for what starts from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// As [`DaemonConfig`] has them.
    pub user: String,
    pub env: BTreeMap<String, String>,
}

/// Answers 200 once it holds, also when it held before; 422 with a reason in plain text when the image has no such user.
pub const IDENTITY_PATH: &str = "/identity";

/// As long as [`preamble`].
pub fn owner_preamble(secret: &str) -> String {
    format!("OWNER/1 {secret}\n")
}

/// `ATOLL/1 `, 64 hex digits, newline.
pub const PREAMBLE_BYTES: usize = 8 + 64 + 1;
