//! The verbs on a sandbox's disk: snapshots and forks of it, its archive and the way back. The owner takes the disk; here it
//! is asked for, and waited for in the local replica.

use std::time::Duration;

use atoll_api::access::Caller;
use atoll_api::ids::{Generation, NodeId, SandboxId};
use atoll_api::sandbox::{Desired, Phase, Placement};
use atoll_api::tokens::PreviewToken;
use atoll_consensus::state::region::{Disk, Intervals, NewSandbox, RegionCommand, SandboxRecord};
use tracing::info;

use super::plane::not_found;
use super::region::{RegionVerbs, answer, unavailable};
use super::verb::{SandboxReference, SandboxView, VerbAnswer, VerbError};
use crate::captures::{enter_snapshot, snapshot_named};
use crate::clock::now_ms;

/// A request answers within this, whether the disk is taken by then or not; the state says which.
const TAKEN_DEADLINE: Duration = Duration::from_secs(30);
/// How many sandboxes are named in a refusal.
const NAMED_MAX: usize = 3;
/// Of an answer: no chain of forks is followed further.
const ANCESTORS_MAX: usize = 1_000;

impl RegionVerbs {
    pub(super) async fn snapshot_of(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
        name: String,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.reachable(caller, sandbox).await?;
        self.cluster.linearize().await.map_err(unavailable)?;
        if self.cluster.read(|state| snapshot_named(state, &view.record, &name)).is_some() {
            return Err(VerbError::Conflict(format!("a snapshot named {name} exists already")));
        }
        let (sandbox_id, id) = (view.sandbox_id, uuid::Uuid::new_v4());
        if let (Phase::Archived, Disk::Checkpoint(checkpoint)) = (&view.record.phase, &view.record.disk) {
            enter_snapshot(&self.cluster, sandbox_id, &view.record, id, &name, checkpoint)
                .await
                .map_err(unavailable)?
                .map_err(VerbError::Conflict)?;
            return Ok(answer(view));
        }
        self.propose(RegionCommand::SnapshotSandbox { sandbox_id, id, name, now_ms: now_ms() }).await?;
        let is_ours =
            |record: &SandboxRecord| record.snapshot_taken.as_ref().filter(|taken| taken.id == id).cloned();
        let settled = self.settled(sandbox_id, TAKEN_DEADLINE, |record| is_ours(record).is_some()).await?;
        let view = settled.ok_or_else(|| not_found(sandbox))?;
        match is_ours(&view.record).and_then(|taken| taken.failure) {
            None => Ok(answer(view)),
            Some(reason) => Err(VerbError::Unavailable {
                message: format!("the snapshot was not made: {reason}"),
                retry_after_s: 1,
            }),
        }
    }

    pub(super) async fn fork(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
        name: Option<String>,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.reachable(caller, sandbox).await?;
        let (parent, record) = (view.sandbox_id, view.record);
        let sandbox_id = SandboxId::new(parent.region(), rand::random());
        let new = NewSandbox {
            organization_id: record.organization_id,
            name: name.unwrap_or_else(|| sandbox_id.to_string()),
            spec: record.spec,
            labels: record.labels,
            public: record.public,
            intervals: Intervals {
                auto_stop_minutes: record.auto_stop_minutes,
                auto_pause_minutes: record.auto_pause_minutes,
                auto_archive_minutes: record.auto_archive_minutes,
                auto_delete_minutes: record.auto_delete_minutes,
            },
            preview_token_hash: PreviewToken::derive(self.secret.reveal(), sandbox_id).hash(),
            node_id: record.placement.node_id,
        };
        // The parent's own node has the disk already.
        self.place(new.spec.resources, record.placement.node_id, |node_id| RegionCommand::ForkSandbox {
            parent,
            sandbox_id,
            sandbox: Box::new(NewSandbox { node_id, ..new.clone() }),
            now_ms: now_ms(),
        })
        .await?;
        info!(%parent, %sandbox_id, "forked");
        self.made(sandbox_id).await
    }

    pub(super) async fn forks(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<VerbAnswer, VerbError> {
        let parent = self.found(caller, sandbox).await?.sandbox_id;
        let forks = self.group.read(|state| {
            let forks =
                state.forks(parent).filter(|(_, fork)| fork.organization_id == caller.organization_id);
            forks.map(|(sandbox_id, record)| self.view(sandbox_id, record)).collect()
        });
        Ok(VerbAnswer::Sandboxes(forks))
    }

    pub(super) async fn ancestors(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<VerbAnswer, VerbError> {
        let mut parent = self.found(caller, sandbox).await?.record.parent;
        let mut ancestors = Vec::new();
        while let Some(sandbox_id) = parent.take()
            && ancestors.len() < ANCESTORS_MAX
            && let Ok(view) = self.find(caller, &sandbox_id.into())
        {
            parent = view.record.parent;
            ancestors.push(view);
        }
        Ok(VerbAnswer::Sandboxes(ancestors))
    }

    pub(super) async fn archive(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<VerbAnswer, VerbError> {
        let view = self.reachable(caller, sandbox).await?;
        if view.record.desired == Desired::Archived {
            return Err(VerbError::BadRequest("the sandbox is archived already".to_owned()));
        }
        self.wish(view.sandbox_id, Desired::Archived).await?;
        let settled = self
            .settled(view.sandbox_id, TAKEN_DEADLINE, |record| {
                record.is_archived() || record.desired != Desired::Archived
            })
            .await?;
        let view = settled.ok_or_else(|| not_found(sandbox))?;
        match &view.record.archive_failure {
            Some(reason) if view.record.desired == Desired::Stopped => Err(VerbError::Unavailable {
                message: format!("the sandbox was not archived and is stopped as before: {reason}"),
                retry_after_s: 5,
            }),
            _ => Ok(answer(view)),
        }
    }

    /// Brings an archived sandbox back to any node, best to one that holds its disk.
    pub(super) async fn restore(&self, view: &SandboxView) -> Result<(), VerbError> {
        let SandboxView { sandbox_id, record, .. } = view;
        let (sandbox_id, Disk::Checkpoint(checkpoint)) = (*sandbox_id, &record.disk) else {
            return Err(VerbError::Conflict("the sandbox is being archived".to_owned()));
        };
        if !record.is_archived() {
            return Err(VerbError::Conflict("the sandbox is being archived".to_owned()));
        }
        let generation = Generation(record.placement.generation.0.saturating_add(1));
        let loads = self.peers.loads();
        let is_heard = |node_id: &&NodeId| loads.contains_key(*node_id) || **node_id == self.peers.me();
        let near = checkpoint.holders.iter().find(is_heard).copied().unwrap_or(self.peers.me());
        self.place(record.spec.resources, near, |node_id| RegionCommand::RestoreSandbox {
            sandbox_id,
            placement: Placement { node_id, generation },
            now_ms: now_ms(),
        })
        .await
    }

    /// For a delete.
    pub(super) async fn found_without_forks(
        &self,
        caller: &Caller,
        sandbox: &SandboxReference,
    ) -> Result<SandboxView, VerbError> {
        let view = self.found(caller, sandbox).await?;
        let forks: Vec<String> = self.group.read(|state| {
            state.forks(view.sandbox_id).map(|(_, fork)| fork.name.clone()).take(NAMED_MAX + 1).collect()
        });
        if forks.is_empty() {
            return Ok(view);
        }
        let more = if forks.len() > NAMED_MAX { " and others" } else { "" };
        let named = forks[..forks.len().min(NAMED_MAX)].join(", ");
        Err(VerbError::BadRequest(format!("the sandbox has forks: delete {named}{more} first")))
    }

    /// The newest, if somebody is there who can do something with its disk.
    async fn reachable(&self, caller: &Caller, sandbox: &SandboxReference) -> Result<SandboxView, VerbError> {
        let view = self.found(caller, sandbox).await?;
        match view.record.phase {
            Phase::Lost => Err(VerbError::Unavailable {
                message: "the sandbox's node cannot be reached; its disk is there when the node is back"
                    .into(),
                retry_after_s: 5,
            }),
            _ => Ok(view),
        }
    }
}
