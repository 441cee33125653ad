//! The node's store of OCI images: blobs by their digest, names for manifests, and where to fetch what is not there.
//! Unprivileged; nothing here unpacks.
//!
//! ```text
//! <dir>/blobs/sha256/<hex>     complete, and checked against its name
//! <dir>/names/<hex>            one name, as JSON: what it stands for and where that came from
//! <dir>/ingest/                being written; <hex>.partial is a download that can go on
//! ```
//!
//! Looked for in this order: own blobs, seeds (OCI layouts on this machine, read only), other nodes, the registry.

mod access;
mod archive;
mod artifact;
mod blobs;
mod collect;
mod commit;
mod error;
mod fetch;
mod layout;
mod manifest;
mod names;
mod naming;
mod reach;
mod reference;
mod registry;

pub use access::{Credentials, KnownCredentials, Registries};
pub use archive::Imported;
pub use artifact::Artifact;
pub use blobs::BlobWriter;
pub use collect::Collected;
pub use commit::ConfigChange;
pub use error::StoreError;
pub use fetch::{PeerBlob, Peers, Progress, Pulled, Store, StoreConfig};
pub use manifest::{Descriptor, Kind as ManifestKind, Manifest, Parsed};
pub use names::{Named, Origin};
pub use reach::Reach;
pub use reference::{LOCAL_HOST, Reference, Version};

/// No manifest is larger; registries have the same bound.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Of an image's configuration.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Of one layer as it is stored.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;

#[cfg(test)]
mod tests;
