//! Tells the region what has become of the builds that sandboxes of this node wait for. Only nodes see both: the catalogue is
//! the cluster's, the sandboxes are the region's.

use atoll_api::ids::{NodeId, SandboxId};
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::state::cluster::{ClusterState, SnapshotState};
use atoll_consensus::state::region::{BuildOutcome, RegionCommand, RegionOutcome, SandboxRecord};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::now_ms;

/// A lost change may delay, never lose.
const TICK: Duration = Duration::from_secs(2);

pub struct Unbuilt {
    pub me: NodeId,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
}

impl Unbuilt {
    pub async fn run(self, cancel: CancellationToken) {
        let (mut builds, mut sandboxes) = (self.cluster.changes(), self.region.changes());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            builds.borrow_and_update();
            sandboxes.borrow_and_update();
            self.report().await;
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
                changed = builds.changed() => if changed.is_err() { return },
                changed = sandboxes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn report(&self) {
        let mut decided = self.decided();
        let is_gone = |(_, _, outcome): &(_, _, Option<BuildOutcome>)| outcome.is_none();
        if decided.iter().any(is_gone) {
            // Or this replica of the catalogue is behind: the sandbox may have been created through another node.
            if self.cluster.linearize().await.is_err() {
                return;
            }
            decided = self.decided();
        }
        for (sandbox_id, snapshot_id, outcome) in decided {
            let outcome = outcome.unwrap_or_else(|| BuildOutcome::Failed {
                reason: "the build was removed before it was done".to_owned(),
            });
            info!(%sandbox_id, %snapshot_id, ?outcome, "a build that a sandbox waits for has ended");
            let report = RegionCommand::ReportBuild { sandbox_id, snapshot_id, outcome, now_ms: now_ms() };
            match self.region.propose(report).await {
                Ok(RegionOutcome::Applied) => {}
                Ok(RegionOutcome::Rejected(rejection)) => {
                    debug!(%sandbox_id, %rejection, "a build's end was not taken");
                }
                Err(error) => {
                    warn!(%sandbox_id, %error, "a build's end is not delivered, it will be said again");
                }
            }
        }
    }

    /// Sandboxes that need not wait any more; `None`: the build is in no catalogue.
    fn decided(&self) -> Vec<(SandboxId, uuid::Uuid, Option<BuildOutcome>)> {
        self.cluster.read(|cluster| {
            self.region.read(|region| {
                let unbuilt = region.unbuilt(self.me);
                let decided = unbuilt.filter_map(|(sandbox_id, record, snapshot_id)| {
                    Some((sandbox_id, snapshot_id, outcome(cluster, record, snapshot_id)?))
                });
                decided.collect()
            })
        })
    }
}

/// `None` while it is not decided; `Some(None)` when there is no such build.
fn outcome(
    cluster: &ClusterState,
    record: &SandboxRecord,
    snapshot_id: uuid::Uuid,
) -> Option<Option<BuildOutcome>> {
    let Some((_, snapshot)) = cluster.snapshot(record.organization_id, &snapshot_id.to_string()) else {
        return Some(None);
    };
    match &snapshot.state {
        SnapshotState::Active | SnapshotState::Inactive => Some(Some(BuildOutcome::Built {
            image: snapshot.image.clone(),
            user: snapshot.default_user.clone(),
            entrypoint: snapshot.entrypoint.clone(),
        })),
        SnapshotState::Error { reason } | SnapshotState::BuildFailed { reason } => {
            Some(Some(BuildOutcome::Failed { reason: reason.clone() }))
        }
        SnapshotState::Pending
        | SnapshotState::Pulling
        | SnapshotState::Building
        | SnapshotState::Snapshotting => None,
    }
}
