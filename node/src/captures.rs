//! A sandbox's disk that the runner has taken: copied to another node, entered in the catalogue, then reported. What fails
//! on the way is done again when the runner says it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use atoll_api::ids::{Generation, NodeId, OrganizationId, SandboxId};
use atoll_api::sandbox::Placement;
use atoll_consensus::group::{ClusterGroup, GroupError, RegionGroup};
use atoll_consensus::state::cluster::{
    ClusterCommand, ClusterOutcome, ClusterState, SnapshotRecord, SnapshotSource,
};
use atoll_consensus::state::region::{
    CaptureOutcome, CapturePurpose, Checkpoint, RegionCommand, RegionOutcome, SandboxRecord,
};
use atoll_runner::Kept;
use atoll_runner::store::LOCAL_HOST;
use tracing::{debug, info, warn};

use crate::clock::now_ms;
use crate::copies::Copies;

pub struct Captures {
    me: NodeId,
    cluster: ClusterGroup,
    region: RegionGroup,
    copies: Copies,
    /// The runner repeats itself while we are still at it.
    under_way: Mutex<BTreeSet<(SandboxId, u64)>>,
}

/// Name of the image of a sandbox's disk, without a version.
pub fn image_name(organization_id: OrganizationId, sandbox_id: SandboxId) -> String {
    format!("{LOCAL_HOST}/{organization_id}/sandbox-{sandbox_id}")
}

impl Captures {
    pub fn new(cluster: ClusterGroup, copies: Copies) -> Captures {
        let (me, region) = (copies.me, copies.region.clone());
        Captures { me, cluster, region, copies, under_way: Mutex::default() }
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
                    holders.extend(self.copies.copy(&reference).await);
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
