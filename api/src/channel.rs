//! The framed protocol by which the SSH door, and a build, run things inside a sandbox.
//!
//! On a [`crate::access::Target::Daemon`] connection the door sends
//! `GET /atoll/channel HTTP/1.1`, `Upgrade: atoll-channel`, `Connection: Upgrade`; after the `101` both sides send frames:
//! one byte of [`FrameKind`], four bytes of big-endian length (≤ [`FrameKind::bytes_max`]), the payload.
//! The door's first frame is `Open` with [`ChannelOpen`] as JSON; the daemon answers `Opened` or `Refused` (UTF-8 reason),
//! then data flows until the daemon sends `Exit` (a [`ChannelExit`] as JSON) and closes.
//! Back pressure is the connection's own: neither side may read ahead without bound.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const CHANNEL_PATH: &str = "/atoll/channel";
pub const CHANNEL_UPGRADE: &str = "atoll-channel";
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Of an `Open` alone: a command and a whole environment, as much as the kernel takes.
pub const OPEN_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// door → daemon, JSON [`ChannelOpen`]
    Open = 1,
    /// daemon → door, empty
    Opened = 2,
    /// daemon → door, UTF-8 reason
    Refused = 3,
    /// door → daemon, bytes
    Stdin = 4,
    /// door → daemon, empty: no more input
    StdinEof = 5,
    /// daemon → door, bytes
    Stdout = 6,
    /// daemon → door, bytes
    Stderr = 7,
    /// door → daemon, JSON [`PtySize`]
    Resize = 8,
    /// door → daemon, UTF-8 signal name without `SIG`, as RFC 4254 6.10 has it
    Signal = 9,
    /// daemon → door, JSON [`ChannelExit`]
    Exit = 10,
}

impl FrameKind {
    pub fn from_byte(byte: u8) -> Option<FrameKind> {
        use FrameKind::*;
        [Open, Opened, Refused, Stdin, StdinEof, Stdout, Stderr, Resize, Signal, Exit]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    /// Of its payload.
    pub fn bytes_max(self) -> usize {
        match self {
            FrameKind::Open => OPEN_BYTES_MAX,
            _ => FRAME_BYTES_MAX,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelOpen {
    pub program: ChannelProgram,
    /// What the client asked to set (`LANG`, `LC_*`, …); the sandbox's own environment comes first.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Present when the client asked for a terminal.
    #[serde(default)]
    pub pty: Option<PtyRequest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChannelProgram {
    /// The user's login shell.
    Shell,
    /// `$SHELL -c command`, as sshd does it.
    Exec { command: String },
    /// A program as a container engine runs one: no shell, stdin or terminal, this environment and no other, and both of its streams
    /// as Stdout, in the order they were written.
    Run(RunProgram),
    /// An SFTP version 3 server that acts as the sandbox's user.
    Sftp,
    /// A TCP connection made from inside the sandbox; bytes flow as Stdin and Stdout.
    Connect { host: String, port: u16 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunProgram {
    /// The program, looked for in `PATH` of its environment, and its arguments.
    pub argv: Vec<String>,
    /// `HOME` is added when it is not there.
    pub env: BTreeMap<String, String>,
    /// As an image's USER has it.
    pub user: String,
    /// Absolute; made when it is not there.
    pub work_dir: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PtyRequest {
    pub term: String,
    pub size: PtySize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    pub cols: u16,
    pub rows: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChannelExit {
    Code(i32),
    /// Name without `SIG`.
    Signal(String),
}
