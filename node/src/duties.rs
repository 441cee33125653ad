//! What this node does for its region: offers its room, and, while it leads, judges the health of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_api::ids::{NodeId, RegionName};
use atoll_api::sandbox::Desired;
use atoll_consensus::group::{ClusterGroup, RegionGroup};
use atoll_consensus::plan::{PlanConfig, plan};
use atoll_consensus::state::cluster::{ClusterCommand, NodeAddresses, NodeCapacity};
use atoll_consensus::state::region::{NodeHealth, RegionCommand};
use atoll_consensus::{Consensus, GroupError};
use atoll_mesh::stream::GroupName;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::now_ms;
use crate::peers::Peers;

const RETRY_EVERY: Duration = Duration::from_millis(200);
const JUDGE_EVERY: Duration = Duration::from_millis(500);
/// Newest command variants that this build understands.
pub const COMMAND_VERSION: u32 = 4;
/// The first version whose nodes know the commands of warm pools.
pub const WARM_POOLS_SINCE: u32 = 2;
/// The first version whose nodes know snapshots of organizations, and registries.
pub const CATALOGUE_SINCE: u32 = 2;
/// The first version whose nodes know sandboxes that wait for a build.
pub const BUILDS_SINCE: u32 = 3;
/// The first version whose nodes know that a signing key was replaced.
pub const SIGNING_KEYS_SINCE: u32 = 4;

pub struct Duties {
    pub me: NodeId,
    pub home: RegionName,
    pub consensus: Arc<Consensus>,
    pub cluster: ClusterGroup,
    pub region: RegionGroup,
    pub peers: Arc<Peers>,
    pub addresses: NodeAddresses,
    pub capacity: NodeCapacity,
    pub node_down_after_ms: u64,
}

impl Duties {
    /// Returns when the cluster knows where this node is and the region knows what it can hold: it may serve.
    pub async fn settle_in(&self, cancel: &CancellationToken) -> anyhow::Result<()> {
        let settled = async {
            self.until_region_is_known().await;
            let update = ClusterCommand::UpdateNode {
                node_id: self.me,
                addresses: self.addresses.clone(),
                capacity: self.capacity,
                command_version: COMMAND_VERSION,
            };
            insist("announce this node's addresses", || self.cluster.propose(update.clone())).await;
            let offer = RegionCommand::OfferNode {
                node_id: self.me,
                total: self.capacity.total,
                sandboxes_max: self.capacity.sandboxes_max,
                now_ms: now_ms(),
            };
            insist("offer this node's room", || self.region.propose(offer.clone())).await;
            // What the region has decided about this node must be here before it is said to serve.
            insist("read the region", || self.region.linearize()).await;
            Ok(())
        };
        tokio::select! {
            _ = cancel.cancelled() => anyhow::bail!("stopped while starting"),
            settled = settled => settled,
        }
    }

    /// The region's founder makes its Raft group; everyone else is added by the group's leader.
    async fn until_region_is_known(&self) {
        let mut changes = self.cluster.changes();
        loop {
            changes.borrow_and_update();
            let record = self.cluster.read(|state| state.regions.get(&self.home).cloned());
            let Some(record) = record else {
                let _ = tokio::time::timeout(RETRY_EVERY, changes.changed()).await;
                continue;
            };
            if record.founder == self.me {
                if let Err(error) = self.consensus.found(GroupName::Region(self.home.clone())).await {
                    warn!(%error, region = %self.home, "cannot found the region's group, trying again");
                    tokio::time::sleep(RETRY_EVERY).await;
                    continue;
                }
                let found = RegionCommand::FoundRegion { ordinal: record.ordinal };
                insist("found the region", || self.region.propose(found.clone())).await;
            }
            return;
        }
    }

    /// While this node leads its region: marks silent nodes down and returned ones ready, drops expired tokens.
    pub async fn judge(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(JUDGE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            let Some(leader_since) = self.region.leader_since() else { continue };
            let silence: BTreeMap<NodeId, Option<u64>> = {
                let heard = self.peers.silence_ms();
                self.region.read(|state| state.nodes.keys().map(|id| (*id, heard.get(id).copied())).collect())
            };
            let now_ms = now_ms();
            let config = PlanConfig {
                node_down_after_ms: self.node_down_after_ms,
                leader_since_ms: now_ms.saturating_sub(leader_since.elapsed().as_millis() as u64),
            };
            let mut decisions = self.region.read(|state| plan(state, &silence, now_ms, &config));
            decisions.extend(self.withdrawals());
            for decision in decisions {
                info!(?decision, region = %self.home, "proposing");
                if let Err(error) = self.region.propose(decision).await {
                    debug!(%error, "decision not taken, it will be looked at again");
                    break;
                }
            }
        }
    }
}

impl Duties {
    /// Nodes that were removed from the cluster and that nothing but unfinished deletes is placed on.
    fn withdrawals(&self) -> Vec<RegionCommand> {
        let removed: Vec<NodeId> = self.cluster.read(|state| state.removed_nodes.keys().copied().collect());
        self.region.read(|state| {
            let down = |node_id: &NodeId| {
                state.nodes.get(node_id).is_some_and(|node| node.health == NodeHealth::Down)
                    && state.assignments(*node_id).all(|(_, record)| record.desired == Desired::Deleted)
            };
            let withdraw = |node_id: NodeId| RegionCommand::WithdrawNode { node_id };
            removed.into_iter().filter(down).map(withdraw).collect()
        })
    }
}

/// Tries until it is decided; a rejection is a decision.
async fn insist<T, F: Future<Output = Result<T, GroupError>>>(what: &str, attempt: impl Fn() -> F) {
    loop {
        match attempt().await {
            Ok(_) => return,
            Err(error) => {
                debug!(%error, "cannot {what} yet");
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }
}
