//! The SSH door: russh in, a [`Dial`](atoll_mesh::dial::Dial) out. The user name is the token, and the token is the sandbox.
//!
//! ```text
//! ssh -p 2222 <token>@any-node
//!   session channel ── shell, exec, sftp ─▶ Target::Daemon, frames of atoll_api::channel
//!   direct-tcpip ──┬── localhost:port ────▶ Target::Port(port), plain bytes
//!                  └── another host ──────▶ Target::Daemon, a Connect program
//! ```
//!
//! Bytes that a client sends are held until the far side takes them, and only then is it allowed to send more;
//! so a channel costs at most one window of memory, and a stuck one never stops its neighbours.

mod access;
mod admission;
mod config;
mod cut;
mod daemon_channel;
mod forward;
mod frames;
mod input;
mod memory;
mod program;
mod refusal;
mod server;
mod session;

pub use config::{SshConfig, SshLimits};
pub use server::{SshHandle, SshServer};
