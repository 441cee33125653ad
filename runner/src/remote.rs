//! The same [`Runtime`] in another process: `atoll node` holds a [`RemoteRuntime`], `atoll runner` answers with [`serve`].
//!
//! ```text
//!   node (its own user)                                        runner (root)
//!   RemoteRuntime ── one Unix connection per call ──▶ who? ── one call ──▶ Runtime
//!                 ── request: frame [+ files]      ──▶
//!                 ◀── reply: frame [+ socket | pipe] ──
//! ```
//! A frame is a length and MessagePack with named fields; both may only grow. Descriptors travel beside it: blobs come
//! as open files, a dialled connection is the socket itself, a layer is a pipe. Whoever hangs up breaks its call off.

mod address;
mod client;
mod frames;
mod layer;
mod order;
mod server;
mod wire;

pub use address::bind;
pub use client::{RemoteConfig, RemoteRuntime};
pub use server::{ServeConfig, serve};

#[cfg(doc)]
use crate::runtime::Runtime;
