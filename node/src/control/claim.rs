//! Gives a create what runs already: a member of a warm pool, if one fits, and the room of members, if nothing else has any.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use atoll_api::ids::{ClaimId, NodeId, OrganizationId, SandboxId};
use atoll_api::sandbox::{Desired, Resources, SandboxSpec};
use atoll_consensus::state::region::{NewSandbox, NodeUsage, RegionCommand, RegionOutcome, RegionRejection};
use atoll_consensus::warm::{PickRequest, make_room, make_room_on, pick_member};
use futures_util::future::join_all;
use tracing::{info, warn};
use uuid::Uuid;

use super::region::{RegionVerbs, rejected, unavailable};
use super::verb::*;
use crate::claims::{ClaimAnswer, ClaimQuestion};
use crate::clock::now_ms;

/// How often another member is tried when somebody else was faster.
const CLAIM_ATTEMPTS_MAX: usize = 4;

/// Members that creates of this node are claiming now, so that they don't get in each other's way.
#[derive(Default)]
pub struct Claiming(Mutex<BTreeSet<SandboxId>>);

struct Picked<'a> {
    sandbox_id: SandboxId,
    node_id: NodeId,
    claiming: &'a Claiming,
}

impl Claiming {
    fn pick(
        &self,
        pick: impl FnOnce(&BTreeSet<SandboxId>) -> Option<(SandboxId, NodeId)>,
    ) -> Option<Picked<'_>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sandbox_id, node_id) = pick(&taken)?;
        taken.insert(sandbox_id);
        Some(Picked { sandbox_id, node_id, claiming: self })
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.claiming.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.sandbox_id);
    }
}

impl RegionVerbs {
    /// `None`: no member fits, or none could be made what was asked for; a new sandbox is to be made.
    pub(super) async fn claim(
        &self,
        organization_id: OrganizationId,
        asked: &SandboxSpec,
        sandbox: &(dyn Fn(SandboxId) -> NewSandbox + Sync),
    ) -> Result<Option<SandboxView>, VerbError> {
        let pool = |state: &atoll_consensus::state::cluster::ClusterState| {
            state.warm_pool_for(organization_id, &asked.snapshot, &self.region)
        };
        let Some(pool_id) = self.cluster.read(pool) else { return Ok(None) };
        for _ in 0..CLAIM_ATTEMPTS_MAX {
            let began = Instant::now();
            let loads = self.peers.loads();
            let picked = self.claiming.pick(|taken| {
                let asking_node_id = self.peers.me();
                let request = PickRequest { pool_id, asked, asking_node_id, taken, random: rand::random() };
                self.group.read(|region| pick_member(region, &loads, &request))
            });
            let Some(picked) = picked else { return Ok(None) };
            let (sandbox_id, node_id) = (picked.sandbox_id, picked.node_id);
            let claim_id = ClaimId(Uuid::new_v4());
            let command = RegionCommand::ClaimWarm {
                sandbox_id,
                claim_id,
                sandbox: Box::new(NewSandbox { node_id, ..sandbox(sandbox_id) }),
                now_ms: now_ms(),
            };
            // The owner is asked at once: it hears of the decision as soon as this node does.
            let mut granted =
                Box::pin(self.claims.until_granted(node_id, ClaimQuestion { sandbox_id, claim_id }));
            let mut answered = None;
            let decided = {
                let mut decided = Box::pin(self.group.propose(command));
                loop {
                    tokio::select! {
                        decided = &mut decided => break decided,
                        answer = &mut granted, if answered.is_none() => answered = Some(answer),
                    }
                }
            };
            let commit_us = began.elapsed().as_micros() as u64;
            match decided.map_err(unavailable)? {
                RegionOutcome::Applied => {}
                RegionOutcome::Rejected(
                    rejection @ (RegionRejection::NameTaken(_) | RegionRejection::WrongRegion),
                ) => return Err(rejected(rejection)),
                RegionOutcome::Rejected(rejection) => {
                    info!(%sandbox_id, %node_id, %rejection, "warm sandbox not claimed, trying another");
                    continue;
                }
            }
            let answer = match answered {
                Some(answer) => answer,
                None => granted.await,
            };
            let took_us = began.elapsed().as_micros() as u64;
            return match answer {
                ClaimAnswer::Granted => {
                    info!(%sandbox_id, %node_id, commit_us, took_us, "claimed");
                    let record = |state: &atoll_consensus::state::region::RegionState| {
                        state.sandboxes.get(&sandbox_id).map(|record| self.view(sandbox_id, record))
                    };
                    Ok(self.group.read(record))
                }
                ClaimAnswer::Failed(reason) => {
                    warn!(%sandbox_id, %node_id, reason, took_us, "claimed sandbox is not what was asked for, making one");
                    self.wish(sandbox_id, Desired::Deleted).await?;
                    Ok(None)
                }
            };
        }
        Ok(None)
    }

    /// Retires members so that a sandbox fits; says where. `None`: that would not help.
    pub(super) async fn room_of_members(
        &self,
        resources: Resources,
        refused_by: &BTreeSet<NodeId>,
    ) -> Option<NodeId> {
        let loads = self.peers.loads();
        let room = self.group.read(|region| make_room(region, &loads, resources, refused_by));
        let (node_id, members) = room?;
        self.retire(node_id, members).await;
        Some(node_id)
    }

    /// The same for one that is there already and is to run again.
    pub(super) async fn room_of_members_for(&self, view: &SandboxView) -> bool {
        let record = &view.record;
        let has = NodeUsage::of(record.spec.resources, record.desired);
        let more = NodeUsage::of(record.spec.resources, Desired::Running).less(has);
        let node_id = record.placement.node_id;
        let members = self.group.read(|region| make_room_on(region, node_id, more.cpu, more.memory_gib));
        let Some(members) = members else { return false };
        self.retire(node_id, members).await;
        true
    }

    /// What somebody has claimed meanwhile stays: then the room may still be missing, which the log says.
    async fn retire(&self, node_id: NodeId, members: Vec<SandboxId>) {
        info!(%node_id, members = members.len(), "warm sandboxes make room for one that was asked for");
        let retired = members
            .into_iter()
            .map(|sandbox_id| self.group.propose(RegionCommand::RetireWarm { sandbox_id, now_ms: now_ms() }));
        for outcome in join_all(retired).await {
            if let Err(error) = outcome {
                warn!(%node_id, %error, "warm sandbox not retired");
            }
        }
    }
}
