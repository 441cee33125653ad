//! A sandbox's disk that the runner has taken: copied to another node, entered in the catalogue, then reported. What fails
//! on the way is done again when the runner says it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use atoll_api::ids::{Generation, NodeId, OrganizationId, SandboxId};
use atoll_api::sandbox::Placement;
use atoll_consensus::group::{ClusterGroup, GroupError, RegionGroup};
use atoll_consensus::state::cluster::{
    ClusterCommand, ClusterOutcome, ClusterState, SnapshotRecord, SnapshotSource,
};
use atoll_consensus::state::region::{
    CaptureOutcome, CapturePurpose, Checkpoint, NodeHealth, RegionCommand, RegionOutcome, SandboxRecord,
};
use atoll_mesh::dial::ByteStream;
use atoll_mesh::link::Link;
use atoll_mesh::stream::{StreamHeader, answer, read_message, write_message};
use atoll_runner::Kept;
use atoll_runner::store::{LOCAL_HOST, Origin, Progress, Reference, Store};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tracing::{debug, info, warn};

use crate::clock::now_ms;

/// For a copy to another node.
const COPY_DEADLINE: Duration = Duration::from_secs(600);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Nodes that are asked for a copy before one is enough.
const COPIES_TRIED_MAX: usize = 3;
/// Besides the owner's own.
const COPIES_WANTED: usize = 1;
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

pub struct Captures {
    me: NodeId,
    cluster: ClusterGroup,
    region: RegionGroup,
    link: Arc<dyn Link>,
    /// The runner repeats itself while we are still at it.
    under_way: Mutex<BTreeSet<(SandboxId, u64)>>,
}

/// Name of the image of a sandbox's disk, without a version.
pub fn image_name(organization_id: OrganizationId, sandbox_id: SandboxId) -> String {
    format!("{LOCAL_HOST}/{organization_id}/sandbox-{sandbox_id}")
}

impl Captures {
    pub fn new(me: NodeId, cluster: ClusterGroup, region: RegionGroup, link: Arc<dyn Link>) -> Captures {
        Captures { me, cluster, region, link, under_way: Mutex::default() }
    }

    pub async fn settle(
        &self,
        sandbox_id: SandboxId,
        generation: Generation,
        number: u64,
        result: Result<Kept, String>,
    ) {
        let key = (sandbox_id, number);
        if !self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
            return;
        }
        self.settle_alone(sandbox_id, generation, number, result).await;
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    async fn settle_alone(
        &self,
        sandbox_id: SandboxId,
        generation: Generation,
        number: u64,
        result: Result<Kept, String>,
    ) {
        let Some(record) = self.region.read(|state| state.sandboxes.get(&sandbox_id).cloned()) else {
            return;
        };
        let asked: Vec<&CapturePurpose> =
            record.captures.range(..=number).map(|(_, purpose)| purpose).collect();
        if asked.is_empty() {
            return;
        }
        let mut refused = BTreeMap::new();
        let outcome = match result {
            Err(reason) => CaptureOutcome::Failed { reason },
            Ok(Kept { reference, bytes }) => {
                // A fork has its own disk soon; what is to last gets a copy first.
                let is_to_last = asked.iter().any(|purpose| !matches!(purpose, CapturePurpose::Fork { .. }));
                let mut holders = BTreeSet::from([self.me]);
                if is_to_last {
                    holders.extend(self.copy(sandbox_id, &reference).await);
                }
                let checkpoint = Checkpoint { image: reference, bytes, taken_at_ms: now_ms(), holders };
                for purpose in asked {
                    let CapturePurpose::Snapshot { id, name } = purpose else { continue };
                    match enter_snapshot(&self.cluster, sandbox_id, &record, *id, name, &checkpoint).await {
                        Ok(Ok(())) => info!(%sandbox_id, name, "snapshot made"),
                        Ok(Err(reason)) => {
                            refused.insert(*id, reason);
                        }
                        Err(error) => {
                            warn!(%sandbox_id, name, %error, "snapshot not entered yet");
                            return;
                        }
                    }
                }
                CaptureOutcome::Taken(checkpoint)
            }
        };
        let placement = Placement { node_id: self.me, generation };
        let report = RegionCommand::ReportCapture {
            sandbox_id,
            placement,
            number,
            outcome,
            refused,
            now_ms: now_ms(),
        };
        match self.region.propose(report).await {
            Ok(RegionOutcome::Applied) => {}
            Ok(RegionOutcome::Rejected(rejection)) => {
                debug!(%sandbox_id, number, %rejection, "capture not taken")
            }
            Err(error) => warn!(%sandbox_id, number, %error, "capture not delivered, it will be sent again"),
        }
    }

    /// Who has a copy now. None is found: the disk is as safe as it was before, on one node.
    async fn copy(&self, sandbox_id: SandboxId, reference: &str) -> BTreeSet<NodeId> {
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
                Err(error) => warn!(%sandbox_id, %node_id, error, "no copy of the disk there"),
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
    // What the cluster's records speak of stays; once they do not, it may go like anything that was fetched.
    store.set_name(&name, pulled.digest, Origin::Fetched).map(drop).map_err(|error| error.to_string())
}

/// The snapshot that has this name for the sandbox's organization.
pub fn snapshot_named(state: &ClusterState, record: &SandboxRecord, name: &str) -> Option<SnapshotRecord> {
    state.snapshot_named(record.organization_id, name).cloned()
}

/// Makes a disk a snapshot of the catalogue. Fine when it has been before. The inner error is for the user.
pub async fn enter_snapshot(
    cluster: &ClusterGroup,
    sandbox_id: SandboxId,
    record: &SandboxRecord,
    id: uuid::Uuid,
    name: &str,
    checkpoint: &Checkpoint,
) -> Result<Result<(), String>, GroupError> {
    cluster.linearize().await?;
    match cluster.read(|state| snapshot_named(state, record, name)) {
        Some(snapshot) if snapshot.id == id => return Ok(Ok(())),
        Some(_) => return Ok(Err(format!("a snapshot named {name} exists already"))),
        None => {}
    }
    let made = SnapshotRecord::given(id, checkpoint.image.clone(), record.spec.resources, now_ms());
    let snapshot = SnapshotRecord {
        entrypoint: record.spec.entrypoint.clone(),
        default_user: record.spec.user.clone(),
        allow_sudo: record.spec.allow_sudo,
        source: SnapshotSource::Sandbox { sandbox_id },
        organization_id: Some(record.organization_id),
        size_bytes: Some(checkpoint.bytes),
        ..made
    };
    debug!(%sandbox_id, name, image = snapshot.image, "entering a snapshot");
    let command = ClusterCommand::CreateSnapshot { name: name.to_owned(), snapshot: Box::new(snapshot) };
    Ok(match cluster.propose(command).await? {
        ClusterOutcome::Applied => Ok(()),
        ClusterOutcome::Rejected(rejection) => Err(rejection.to_string()),
    })
}
