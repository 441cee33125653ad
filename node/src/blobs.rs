//! Blobs of images and their names between nodes: what a node lacks it asks the others for.
//!
//! ```text
//! asker ──Blob──▶ holder      asker ──Word──▶ everyone
//!       ◀─Offer──                   ◀─Word───     the latest counts
//!       ──Take───▶                  ──Announce──▶
//!       ◀─bytes───
//! ```
//!
//! One question for each stream. An offer costs nothing: of several the asker takes one and drops the rest.

mod peers;
mod reach;
mod reader;
mod serve;
#[cfg(test)]
mod tests;

use atoll_api::ids::{NodeId, OrganizationId, RegionName};
use atoll_consensus::ClusterGroup;
use atoll_runner::image::Digest;
use atoll_runner::store::Named;
use serde::{Deserialize, Serialize};

pub use peers::{PeerStores, Silent};
pub use reach::Reach;
pub use serve::BlobServer;

/// Questions, and answers that are not lists.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// What one node says about names in one answer.
const WORDS_MAX: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Answered `Offer`, `Nothing` or `Busy`. After an offer a [`Take`] is waited for, and answered with bytes alone.
    Blob { digest: Digest },
    /// What a name stands for, or that it was removed. Answered `Words`, with one or none.
    Word { name: String },
    /// Those about names that begin with `prefix`. Answered `Words`.
    Words { prefix: String },
    /// Whether an image of the organization leads to the digest, as far as the receiver knows. Answered `Reaches`.
    Reaches { organization_id: OrganizationId, digest: Digest },
    /// A word that was said just now. Answered `Nothing`.
    Announce(Named),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Offer {
        bytes: u64,
    },
    /// It has the blob, and sends too many already.
    Busy,
    Nothing,
    Words(Vec<Named>),
    Reaches(bool),
}

/// An offer is taken, from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    pub from: u64,
}

/// The other nodes: first those of this node's own region, which are near.
pub fn others(cluster: ClusterGroup, home: RegionName, me: NodeId) -> impl Fn() -> Vec<NodeId> {
    move || {
        cluster.read(|state| {
            let others = state.nodes.iter().filter(|(node_id, _)| **node_id != me);
            let (mut near, far): (Vec<_>, Vec<_>) = others.partition(|(_, node)| node.region == home);
            near.extend(far);
            near.into_iter().map(|(node_id, _)| *node_id).collect()
        })
    }
}

/// Names of an organization's images begin so.
pub fn names_of(organization_id: OrganizationId) -> String {
    format!("{}/{organization_id}/", atoll_runner::store::LOCAL_HOST)
}
