//! Copies of this node's images on other nodes, so that what is said to exist outlives the node that made it.
//!
//! ```text
//! copy ── Hold stream: a pinned name ──▶ another node of the region ── Blob streams ──▶ whoever has it
//!  └◀──────── it has all of it ───────────────────┘
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::NodeId;
use atoll_consensus::group::RegionGroup;
use atoll_consensus::state::region::NodeHealth;
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamHeader, answer, read_message, write_message};
use atoll_runner::store::{Origin, Progress, Reference, Store};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tracing::{info, warn};

/// For a copy on another node.
const COPY_DEADLINE: Duration = Duration::from_secs(600);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Nodes that are asked for a copy before none is enough.
const COPIES_TRIED_MAX: usize = 3;
/// Besides this node's own.
const COPIES_WANTED: usize = 1;
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Of pushed images at once; more wait.
const COPYING_MAX: usize = 4;

#[derive(Clone)]
pub struct Copies {
    pub me: NodeId,
    pub region: RegionGroup,
    link: Arc<dyn Link>,
    copying: Arc<Semaphore>,
}

impl Copies {
    pub fn new(me: NodeId, region: RegionGroup, link: Arc<dyn Link>) -> Copies {
        Copies { me, region, link, copying: Arc::new(Semaphore::new(COPYING_MAX)) }
    }

    /// [`Copies::copy`] for whom nobody waits.
    pub async fn copy_in_turn(self, reference: String) {
        if let Ok(_turn) = self.copying.acquire().await
            && self.copy(&reference).await.is_empty()
        {
            warn!(reference, "a pushed image is on this node only");
        }
    }

    /// Who has a copy now. None is found: the image is as safe as it was before, on one node.
    pub async fn copy(&self, reference: &str) -> BTreeSet<NodeId> {
        let others: Vec<NodeId> = self.region.read(|state| {
            let ready = state.nodes.iter().filter(|(_, node)| node.health == NodeHealth::Ready);
            ready.map(|(node_id, _)| *node_id).filter(|node_id| *node_id != self.me).collect()
        });
        let mut holders = BTreeSet::new();
        // Not always the same ones.
        let first = usize::try_from(rand::random::<u32>()).unwrap_or_default() % others.len().max(1);
        let turn = others.iter().cycle().skip(first).take(others.len().min(COPIES_TRIED_MAX));
        for node_id in turn {
            if holders.len() >= COPIES_WANTED {
                break;
            }
            match self.ask_to_hold(*node_id, reference).await {
                Ok(()) => {
                    holders.insert(*node_id);
                }
                Err(error) => warn!(reference, %node_id, error, "no copy of an image there"),
            }
        }
        holders
    }

    async fn ask_to_hold(&self, node_id: NodeId, reference: &str) -> Result<(), String> {
        let asked = async {
            let mut stream = self
                .link
                .open(node_id, StreamHeader::Hold, CONNECT_DEADLINE)
                .await
                .map_err(|error| error.to_string())?;
            let request = HoldRequest { reference: reference.to_owned() };
            write_message(&mut stream, &request).await.map_err(|error| error.to_string())?;
            stream.shutdown().await.map_err(|error| error.to_string())?;
            read_message::<_, HoldAnswer>(&mut stream, MESSAGE_BYTES_MAX)
                .await
                .map_err(|error| error.to_string())?
        };
        tokio::time::timeout(COPY_DEADLINE, asked).await.unwrap_or_else(|_| Err("took too long".to_owned()))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct HoldRequest {
    reference: String,
}

type HoldAnswer = Result<(), String>;

/// Fetches an image of which a peer wants a copy here, from whoever has it.
pub async fn serve_hold(store: &Store, mut stream: ByteStream) -> anyhow::Result<()> {
    let HoldRequest { reference } = read_message(&mut stream, MESSAGE_BYTES_MAX).await?;
    let held: HoldAnswer = match tokio::time::timeout(COPY_DEADLINE, hold(store, &reference)).await {
        Ok(held) => held,
        Err(_) => Err("took too long".to_owned()),
    };
    info!(reference, ?held, "asked for a copy of an image");
    Ok(answer(&mut stream, &held).await?)
}

async fn hold(store: &Store, reference: &str) -> HoldAnswer {
    let name: Reference = reference.parse().map_err(|error| format!("{error}"))?;
    if !name.is_local() || name.digest().is_none() {
        return Err("only pinned images of the nodes' own are copied".to_owned());
    }
    let pulled = store.pull(reference, None, Progress::default()).await.map_err(|error| error.to_string())?;
    if store.word_here(&name).is_some_and(|word| word.is_removed()) {
        return Err("the image was removed meanwhile".to_owned());
    }
    // What the cluster's records speak of stays; once they do not, it may go like anything that was fetched.
    store.set_name(&name, pulled.digest, Origin::Fetched).map(drop).map_err(|error| error.to_string())
}
