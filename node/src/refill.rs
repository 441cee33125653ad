//! Keeps the region's warm pools as full as they are to be, while this node leads the region. What to do is computed anew
//! from the states each time; only failures are remembered, so that a pool that cannot be filled is tried ever less often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{NodeId, RegionName, SandboxId, WarmPoolId};
use atoll_api::tokens::PreviewToken;
use atoll_certs::seal::ClusterSecret;
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::place::SILENT_AFTER_MS;
use atoll_consensus::state::cluster::{ClusterCommand, ClusterState, WarmPoolRecord};
use atoll_consensus::state::region::{Intervals, NewSandbox, RegionCommand, RegionOutcome, RegionState};
use atoll_consensus::warm::{RetireCause, WantedPool, WarmPlan, WarmStep, plan_warm};
use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::now_ms;
use crate::control::region::{AUTO_ARCHIVE_MINUTES, spec_of_default};
use crate::peers::Peers;

/// Pools are looked at on every change and on this tick.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Changes come in bursts; a look after each would be one too many.
const GATHER: Duration = Duration::from_millis(25);
/// After the first failure in a row; each more doubles it.
const BACKOFF_FIRST_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 5 * 60 * 1_000;
/// A reason that reads differently each time is not written more often.
const NOTE_EVERY: Duration = Duration::from_secs(10);

pub struct Refill {
    pub home: RegionName,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    pub peers: Arc<Peers>,
    pub secret: Arc<ClusterSecret>,
}

/// What a leader remembers of the pools that give it trouble.
#[derive(Default)]
struct Memory {
    failures: BTreeMap<WarmPoolId, Failures>,
    noted: BTreeMap<WarmPoolId, Instant>,
}

struct Failures {
    in_a_row: u32,
    last_ms: u64,
    reason: String,
}

impl Failures {
    fn not_before_ms(&self) -> u64 {
        let doubled = BACKOFF_FIRST_MS.saturating_mul(1 << self.in_a_row.saturating_sub(1).min(20));
        self.last_ms.saturating_add(doubled.min(BACKOFF_MAX_MS))
    }
}

impl Refill {
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let (mut here, mut everywhere) = (self.region.changes(), self.cluster.changes());
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                changed = here.changed() => if changed.is_err() { return },
                changed = everywhere.changed() => if changed.is_err() { return },
                _ = tokio::time::sleep(LOOK_EVERY) => {}
            }
            tokio::time::sleep(GATHER).await;
            here.borrow_and_update();
            everywhere.borrow_and_update();
            // One that has just come has heard from nobody yet, and would say that no node has room.
            let listened = Duration::from_millis(SILENT_AFTER_MS);
            if self.region.leader_since().is_some_and(|since| since.elapsed() > listened) {
                self.look(&mut memory).await;
            } else {
                memory = Memory::default();
            }
        }
    }

    async fn look(&self, memory: &mut Memory) {
        let records = self.cluster.read(|state| pools_of(state, &self.home));
        let is_idle =
            records.is_empty() && self.region.read(|state| state.pools_with_members().next().is_none());
        if is_idle {
            *memory = Memory::default();
            return;
        }
        memory.forgive(&records, |pool_id, since_ms| {
            self.region.read(|state| runs_since(state, pool_id, since_ms))
        });
        let now_ms = now_ms();
        let pools = self.cluster.read(|state| wanted(state, &records, memory));
        let loads = self.peers.loads();
        let plan = self
            .cluster
            .read(|cluster| self.region.read(|region| plan_warm(cluster, region, &loads, &pools, now_ms)));
        let steps = plan.steps.iter().map(|step| self.carry_out(step, &pools));
        for (step, is_done) in plan.steps.iter().zip(join_all(steps).await) {
            if let WarmStep::Retire { pool_id, because: RetireCause::Failed { reason }, .. } = step
                && is_done
            {
                memory.failed(*pool_id, reason, now_ms);
            }
        }
        self.note(&records, &plan, memory).await;
    }

    /// Whether it was decided so. What was not is looked at again.
    async fn carry_out(&self, step: &WarmStep, pools: &BTreeMap<WarmPoolId, WantedPool>) -> bool {
        let command = match step {
            WarmStep::Create { pool_id, node_id } => match self.new_member(*pool_id, *node_id, pools) {
                Some(command) => command,
                None => return false,
            },
            WarmStep::Retire { sandbox_id, .. } => {
                RegionCommand::RetireWarm { sandbox_id: *sandbox_id, now_ms: now_ms() }
            }
        };
        match self.region.propose(command).await {
            Ok(RegionOutcome::Applied) => {
                info!(?step, region = %self.home, "warm pool");
                true
            }
            Ok(RegionOutcome::Rejected(rejection)) => {
                debug!(?step, %rejection, "warm pool is another by now");
                false
            }
            Err(error) => {
                debug!(?step, %error, "warm pool not changed, it will be looked at again");
                false
            }
        }
    }

    fn new_member(
        &self,
        pool_id: WarmPoolId,
        node_id: NodeId,
        pools: &BTreeMap<WarmPoolId, WantedPool>,
    ) -> Option<RegionCommand> {
        let pool = pools.get(&pool_id)?;
        let spec = pool.member.clone().ok()?;
        let sandbox_id = SandboxId::new(self.region.read(|state| state.ordinal)?, rand::random());
        let sandbox = Box::new(NewSandbox {
            organization_id: pool.organization_id,
            name: sandbox_id.to_string(),
            spec,
            labels: BTreeMap::new(),
            public: false,
            // It waits for as long as it takes.
            intervals: Intervals {
                auto_stop_minutes: 0,
                auto_pause_minutes: 0,
                auto_archive_minutes: AUTO_ARCHIVE_MINUTES,
                auto_delete_minutes: -1,
            },
            preview_token_hash: PreviewToken::derive(self.secret.reveal(), sandbox_id).hash(),
            node_id,
        });
        Some(RegionCommand::CreateWarm { sandbox_id, pool_id, sandbox, now_ms: now_ms() })
    }

    /// Lets everybody read what keeps a pool from being full.
    async fn note(
        &self,
        records: &BTreeMap<WarmPoolId, WarmPoolRecord>,
        plan: &WarmPlan,
        memory: &mut Memory,
    ) {
        for (pool_id, record) in records {
            let ready = self.region.read(|state| state.ready_members(*pool_id));
            let known =
                plan.troubles.get(pool_id).or(memory.failures.get(pool_id).map(|known| &known.reason));
            let reason = match known {
                Some(reason) => Some(reason.clone()),
                None if ready >= record.size as usize => None,
                // It is being filled: what an earlier leader has seen may still be so.
                None => record.error_reason.clone(),
            };
            let is_news = reason.is_some() != record.error_reason.is_some();
            let was_noted = memory.noted.get(pool_id).is_some_and(|at| at.elapsed() < NOTE_EVERY);
            if reason == record.error_reason || (!is_news && was_noted) {
                continue;
            }
            memory.noted.insert(*pool_id, Instant::now());
            let command = ClusterCommand::NoteWarmPool { pool_id: *pool_id, error_reason: reason };
            if let Err(error) = self.cluster.propose(command).await {
                warn!(%pool_id, %error, "state of the warm pool not noted, it will be looked at again");
            }
        }
    }
}

impl Memory {
    fn failed(&mut self, pool_id: WarmPoolId, reason: &str, now_ms: u64) {
        let before = self.failures.get(&pool_id).map_or(0, |failures| failures.in_a_row);
        warn!(%pool_id, reason, in_a_row = before + 1, "warm sandbox failed");
        let failures = Failures { in_a_row: before + 1, last_ms: now_ms, reason: reason.to_owned() };
        self.failures.insert(pool_id, failures);
    }

    /// Forgets pools that are gone, and those with a member that was made after the last failure and runs.
    fn forgive(
        &mut self,
        records: &BTreeMap<WarmPoolId, WarmPoolRecord>,
        runs_since: impl Fn(WarmPoolId, u64) -> bool,
    ) {
        self.failures.retain(|pool_id, failures| {
            records.contains_key(pool_id) && !runs_since(*pool_id, failures.last_ms)
        });
        self.noted.retain(|pool_id, _| records.contains_key(pool_id));
    }
}

fn pools_of(state: &ClusterState, region: &RegionName) -> BTreeMap<WarmPoolId, WarmPoolRecord> {
    let ours = state.warm_pools.iter().filter(|(_, pool)| pool.region == *region);
    ours.map(|(pool_id, pool)| (*pool_id, pool.clone())).collect()
}

fn wanted(
    state: &ClusterState,
    records: &BTreeMap<WarmPoolId, WarmPoolRecord>,
    memory: &Memory,
) -> BTreeMap<WarmPoolId, WantedPool> {
    let pool = |(pool_id, record): (&WarmPoolId, &WarmPoolRecord)| {
        let snapshot = state.snapshot_named(record.organization_id, &record.snapshot);
        let why_not = snapshot.and_then(|snapshot| snapshot.why_unusable(&record.snapshot, &record.region));
        let member = match (snapshot, why_not) {
            (Some(_), Some(why_not)) => Err(why_not),
            (Some(snapshot), None) => Ok(spec_of_default(record.snapshot.clone(), snapshot.clone())),
            (None, _) => Err(format!("the snapshot {} is gone; delete the pool", record.snapshot)),
        };
        let pool = WantedPool {
            organization_id: record.organization_id,
            size: record.size,
            member,
            not_before_ms: memory.failures.get(pool_id).map_or(0, Failures::not_before_ms),
        };
        (*pool_id, pool)
    };
    records.iter().map(pool).collect()
}

fn runs_since(state: &RegionState, pool_id: WarmPoolId, since_ms: u64) -> bool {
    state.members(pool_id).any(|(_, record)| record.is_ready() && record.created_at_ms > since_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_id() -> WarmPoolId {
        WarmPoolId(uuid::Uuid::nil())
    }

    #[test]
    fn failures_in_a_row_are_tried_ever_less_often_up_to_a_bound() {
        let mut memory = Memory::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            memory.failed(pool_id(), "no disk", 1_000);
            waits.push(memory.failures[&pool_id()].not_before_ms() - 1_000);
        }

        assert_eq!(waits[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(waits[11], BACKOFF_MAX_MS);
    }

    #[test]
    fn a_member_that_runs_since_ends_the_row() {
        let record = WarmPoolRecord {
            organization_id: atoll_api::ids::OrganizationId(uuid::Uuid::nil()),
            snapshot: "base".into(),
            region: "eu".parse().unwrap(),
            size: 1,
            error_reason: None,
            created_at_ms: 0,
            updated_at_ms: 0,
        };
        let records = BTreeMap::from([(pool_id(), record)]);
        let mut memory = Memory::default();
        memory.failed(pool_id(), "no disk", 1_000);

        memory.forgive(&records, |_, since_ms| since_ms < 1_000);
        assert_eq!(memory.failures.len(), 1);
        memory.forgive(&records, |_, since_ms| since_ms == 1_000);
        assert_eq!(memory.failures.len(), 0);

        memory.failed(pool_id(), "no disk", 1_000);
        memory.forgive(&BTreeMap::new(), |_, _| false);
        assert_eq!(memory.failures.len(), 0, "the pool is gone");
    }
}
