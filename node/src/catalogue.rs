//! Makes snapshots ready: claims those that are this node's to make, brings their images here, reports how it ended.
//!
//! ```text
//! replicas ─▶ plan ─▶ claim (the log judges) ─▶ pull or build ─▶ report (the log judges)
//!               └─ what is overtaken or deleted meanwhile is broken off
//! ```
//! How far it has come is nobody else's business and in no log.

mod build;
pub mod plan;
mod pull;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{NodeId, RegionName};
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::state::cluster::{ClusterCommand, ClusterOutcome, SnapshotReport, SnapshotSource};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::now_ms;
pub use build::Builder;
use plan::{Task, Working};
pub use pull::Puller;

/// At once, on one node. More wait.
const PARALLEL_MAX: usize = 4;
/// A lost change may delay, never lose. The health of nodes is only looked at by it: it changes rarely, and the region's
/// replica all the time.
const TICK: Duration = Duration::from_secs(2);
/// Nodes that die of a snapshot are not sacrificed for ever.
const ATTEMPTS_MAX: u64 = 8;
/// In the reason of a failure: the last lines of a build, some of them long.
const REASON_CHARS_MAX: usize = 5_000;
/// A result that cannot be reported for so long is made again.
const REPORT_DEADLINE: Duration = Duration::from_secs(120);
const REPORT_RETRY_EVERY: Duration = Duration::from_secs(1);

pub struct Catalogue {
    pub me: NodeId,
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    pub puller: Puller,
    pub builder: Builder,
}

impl Catalogue {
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut changes = self.cluster.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut jobs = Jobs::default();
        loop {
            self.break_off_unwanted(&jobs);
            self.begin(&mut jobs);
            tokio::select! {
                _ = cancel.cancelled() => break,
                _ = tick.tick() => {}
                changed = changes.changed() => if changed.is_err() { break },
                Some(ended) = jobs.set.join_next_with_id() => jobs.forget(ended),
            }
            changes.borrow_and_update();
        }
        jobs.set.shutdown().await;
    }

    fn break_off_unwanted(&self, jobs: &Jobs) {
        self.cluster.read(|state| {
            for job in jobs.running.values() {
                let snapshot = state.snapshot_by_key(&job.task.key);
                if !plan::is_wanted(self.me, snapshot, job.task.attempt) {
                    job.handle.abort();
                }
            }
        });
    }

    fn begin(self: &Arc<Self>, jobs: &mut Jobs) {
        let working = jobs.working();
        let tasks = self.cluster.read(|cluster| {
            self.region.read(|region| plan::tasks(self.me, &self.home, cluster, region, &working))
        });
        for task in tasks.into_iter().take(PARALLEL_MAX.saturating_sub(working.len())) {
            let handle = jobs.set.spawn(self.clone().work(task.clone()));
            jobs.running.insert(handle.id(), Job { task, handle });
        }
    }

    async fn work(self: Arc<Self>, task: Task) {
        let Task { key, attempt, tries, source } = task;
        let claim =
            ClusterCommand::ClaimSnapshot { key: key.clone(), attempt, node_id: self.me, now_ms: now_ms() };
        match self.cluster.propose(claim).await {
            Ok(ClusterOutcome::Applied) => {}
            Ok(ClusterOutcome::Rejected(rejection)) => {
                debug!(snapshot = key.name, attempt, %rejection, "a snapshot is somebody else's");
                return;
            }
            Err(error) => {
                warn!(snapshot = key.name, attempt, %error, "cannot claim a snapshot yet");
                return tokio::time::sleep(REPORT_RETRY_EVERY).await;
            }
        }
        info!(snapshot = key.name, snapshot_id = %key.id, attempt, "making a snapshot ready");
        let report = match (&source, key.organization_id) {
            _ if tries > ATTEMPTS_MAX => SnapshotReport::Failed {
                reason: format!("{ATTEMPTS_MAX} attempts in a row were not brought to an end by their nodes"),
            },
            (SnapshotSource::Image { name }, Some(organization_id)) => {
                self.puller.pull(organization_id, name).await
            }
            (SnapshotSource::Build { dockerfile, context_hashes }, Some(organization_id)) => {
                self.builder.build(&key, attempt, organization_id, dockerfile, context_hashes).await
            }
            (SnapshotSource::Given | SnapshotSource::Sandbox { .. }, _) | (_, None) => {
                failed("nothing has to be made ready for it")
            }
        };
        match &report {
            SnapshotReport::Ready { image, size_bytes, .. } => {
                info!(snapshot = key.name, snapshot_id = %key.id, image, size_bytes, "snapshot ready");
            }
            SnapshotReport::Failed { reason } => {
                info!(snapshot = key.name, snapshot_id = %key.id, reason, "snapshot failed");
            }
        }
        let command = ClusterCommand::ReportSnapshot { key, attempt, report, now_ms: now_ms() };
        if tokio::time::timeout(REPORT_DEADLINE, self.insist(command)).await.is_err() {
            warn!(attempt, "what became of a snapshot could not be reported; it is made again");
        }
    }

    /// Until it is decided. A rejection is a decision.
    async fn insist(&self, command: ClusterCommand) {
        loop {
            match self.cluster.propose(command.clone()).await {
                Ok(ClusterOutcome::Applied) => return,
                Ok(ClusterOutcome::Rejected(rejection)) => {
                    return info!(%rejection, "a snapshot's report was not taken");
                }
                Err(error) => {
                    debug!(%error, "a snapshot's report is not decided yet");
                    tokio::time::sleep(REPORT_RETRY_EVERY).await;
                }
            }
        }
    }
}

fn failed(reason: &str) -> SnapshotReport {
    SnapshotReport::Failed { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
}

#[derive(Default)]
struct Jobs {
    set: JoinSet<()>,
    running: HashMap<Id, Job>,
}

struct Job {
    task: Task,
    handle: AbortHandle,
}

impl Jobs {
    fn working(&self) -> Working {
        self.running.values().map(|job| (job.task.key.id, job.task.attempt)).collect()
    }

    fn forget(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    warn!(%error, "making a snapshot ready panicked");
                }
                error.id()
            }
        };
        self.running.remove(&id);
    }
}
