//! This node as an owner: hands the region's decisions to the runner, and the runner's reports to the region.

use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{NodeId, RegionName, SandboxId};
use atoll_api::sandbox::{Desired, Placement, SandboxSpec};
use atoll_consensus::group::RegionGroup;
use atoll_consensus::state::region::{RegionCommand, RegionOutcome, SandboxRecord, Warm};
use atoll_runner::{Assignment, CaptureWish, Origin, Report, ReportKind, RunnerHandle};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::activity::Activity;
use crate::captures::{Captures, image_name};
use crate::clock::now_ms;
use crate::idle::idle_wish;

/// The wanted list is given again even when nothing changed: a lost change may delay, never lose.
const TICK: Duration = Duration::from_secs(2);
/// How often sandboxes that nobody uses are looked for.
const IDLE_TICK: Duration = Duration::from_secs(10);
/// Reports being decided at once. More wait in the runner's bounded channel.
const REPORTS_IN_FLIGHT_MAX: usize = 256;

pub struct Owner {
    pub me: NodeId,
    pub home: RegionName,
    pub region: RegionGroup,
    pub runner: RunnerHandle,
    pub activity: Arc<Activity>,
    pub captures: Captures,
}

impl Owner {
    /// Tells the runner what this node should run, on every change of the replica and on a tick.
    pub async fn follow_placements(self: Arc<Self>, cancel: CancellationToken) {
        let mut changes = self.region.changes();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            changes.borrow_and_update();
            if let Some(wanted) = self.wanted() {
                self.runner.set_wanted(wanted);
            }
        }
    }

    /// `None` until the replica has its region's first entry: an empty list would have everything removed.
    fn wanted(&self) -> Option<Vec<Assignment>> {
        self.region.read(|state| {
            state.ordinal?;
            // A node that the region has never heard of owns nothing yet, and must not clean up on that ground.
            state.nodes.get(&self.me)?;
            // Without its disk a fork can only be deleted.
            let placed = state.assignments(self.me).filter(|(_, record)| !record.is_disk_awaited());
            Some(placed.map(|(sandbox_id, record)| self.assignment(sandbox_id, record)).collect())
        })
    }

    fn assignment(&self, sandbox_id: SandboxId, record: &SandboxRecord) -> Assignment {
        Assignment {
            sandbox_id,
            generation: record.placement.generation,
            spec: Arc::new(self.told_who_it_is(sandbox_id, record)),
            desired: record.desired,
            desired_version: record.desired_version,
            phase: record.phase.clone(),
            made_by_version: record.restored_version.max(1),
            capture: record
                .capture_wanted()
                .map(|number| CaptureWish { number, name: image_name(record.organization_id, sandbox_id) }),
            origin: match record.warm {
                Some(Warm { claim_id: Some(_), .. }) => Origin::Claimed,
                Some(Warm { claim_id: None, .. }) | None => Origin::Asked,
            },
        }
    }

    /// The specification with what programs inside read to learn where they are. What the caller set stays.
    fn told_who_it_is(&self, sandbox_id: SandboxId, record: &SandboxRecord) -> SandboxSpec {
        let mut spec = record.spec.clone();
        if let Some(image) = record.image() {
            spec.image = image.to_owned();
        }
        for (name, value) in [
            ("DAYTONA_SANDBOX_ID", sandbox_id.to_string()),
            ("DAYTONA_SANDBOX_SNAPSHOT", spec.snapshot.clone()),
            ("DAYTONA_SANDBOX_USER", spec.user.clone()),
            ("DAYTONA_ORGANIZATION_ID", record.organization_id.to_string()),
            ("DAYTONA_REGION_ID", self.home.to_string()),
        ] {
            spec.env.entry(name.to_owned()).or_insert(value);
        }
        spec
    }

    /// Stops and deletes sandboxes of this node that have been idle for as long as their intervals say.
    pub async fn retire_idle(self: Arc<Self>, cancel: CancellationToken) {
        // What was used before this process began is not known: every interval begins anew.
        let began_at_ms = now_ms();
        let mut tick = tokio::time::interval(IDLE_TICK);
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let idle: Vec<(SandboxId, Desired)> = self.region.read(|state| {
                let wish = |(sandbox_id, record)| {
                    let used_at_ms = self.activity.last_ms(sandbox_id).unwrap_or(began_at_ms);
                    Some((sandbox_id, idle_wish(record, Some(used_at_ms), now_ms())?))
                };
                let mut idle: Vec<_> = state.assignments(self.me).filter_map(wish).collect();
                // Nobody owns what is archived.
                if self.region.is_leader() {
                    let archived = state.sandboxes.iter().filter(|(_, record)| record.is_archived());
                    idle.extend(
                        archived.filter_map(|(id, record)| Some((*id, idle_wish(record, None, now_ms())?))),
                    );
                }
                // As for a user: what has forks stays.
                idle.retain(|(id, desired)| {
                    *desired != Desired::Deleted || state.forks(*id).next().is_none()
                });
                idle
            });
            for (sandbox_id, desired) in idle {
                info!(%sandbox_id, ?desired, "idle for its whole interval");
                let wish = RegionCommand::SetDesired { sandbox_id, desired, now_ms: now_ms() };
                if let Err(error) = self.region.propose(wish).await {
                    warn!(%sandbox_id, %error, "idle sandbox not retired, it will be looked at again");
                }
            }
        }
    }

    /// Proposes what the runner reports. What cannot be decided now is reported again on the runner's tick.
    pub async fn propose_reports(
        self: Arc<Self>,
        mut reports: mpsc::Receiver<Report>,
        cancel: CancellationToken,
    ) {
        let mut in_flight = FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                Some(()) = in_flight.next() => {}
                report = reports.recv(), if in_flight.len() < REPORTS_IN_FLIGHT_MAX => match report {
                    Some(report) => in_flight.push(self.propose(report)),
                    None => return,
                },
            }
        }
    }

    async fn propose(&self, report: Report) {
        let Report { sandbox_id, generation, desired_version, kind } = report;
        let placement = Placement { node_id: self.me, generation };
        let command = match kind {
            ReportKind::Phase(phase) => {
                RegionCommand::ReportPhase { sandbox_id, placement, desired_version, phase, now_ms: now_ms() }
            }
            ReportKind::Deleted => RegionCommand::ReportDeleted { sandbox_id, placement },
            ReportKind::Captured { number, result } => {
                return self.captures.settle(sandbox_id, generation, number, result).await;
            }
        };
        match self.region.propose(command).await {
            Ok(RegionOutcome::Applied) => {}
            Ok(RegionOutcome::Rejected(rejection)) => {
                debug!(%sandbox_id, %generation, %rejection, "report not taken")
            }
            Err(error) => {
                warn!(%sandbox_id, %generation, %error, "report not delivered, it will be sent again")
            }
        }
    }
}
