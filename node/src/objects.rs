//! The S3 door: build contexts that SDKs upload before an image is built from them, one tar each, at
//! `/<bucket>/<organization id>/<hash>/context.tar`. It is no general object store, and refuses what it is not by name.
//!
//!   edge ── Unix socket ──▶ door ─▶ signature (who? credentials) ─▶ operation (what?) ─▶ payload ─▶ contexts ─▶ store
//!                             └──────────── errors: status and XML ◀──────────────────────┘
//!
//! No node remembers a credential, an upload or a part. Credentials, upload ids and the tags of parts carry a proof
//! made with the cluster's secret, so that each request may come to another node; parts are blobs that the completing
//! node gets from the others.
//!
//! # What a client must trust
//! The Python SDK takes no object storage without TLS, so `storageUrl` is HTTPS wherever the node listens for it. A
//! certificate of a public authority needs nothing more. With the cluster's own (`ca.pem` in the data folder):
//! - Python: `ca.pem` must be among the system's authorities (`/usr/local/share/ca-certificates/atoll.crt` and
//!   `update-ca-certificates`, or what the distribution has for it). The SDK empties the environment while it opens its
//!   S3 client, so `SSL_CERT_FILE` has no effect on uploads.
//! - TypeScript: `NODE_EXTRA_CA_CERTS=ca.pem`.
//! - Go, and with it the CLI: the system's authorities or `SSL_CERT_FILE`.
//!
//! `storageUrl` never has a path, which minio's Go client refuses. A proxy in front must pass `Host` on unchanged: the
//! client has signed it.

mod checksum;
mod contexts;
mod credentials;
mod door;
mod errors;
mod operation;
mod payload;
mod signature;
#[cfg(test)]
mod tests;
mod uploads;
mod xml;

pub use contexts::ContextHash;
pub use contexts::Contexts;
pub use credentials::{Issued, Issuer};
pub use door::{ObjectStorage, router};

/// All contexts are in it. Path-style only: `https://node/<bucket>/…`.
pub const BUCKET: &str = "atoll-contexts";
/// Part of every signature. Clients that are told no region sign for this one.
pub const REGION: &str = "us-east-1";
