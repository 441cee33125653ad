//! What a region's leader proposes on its tick. Computed anew from the state and from who was heard: nothing is handed over
//! between leaders, and a proposal that was lost is made again on the next tick.

use std::collections::BTreeMap;

use atoll_api::ids::{Generation, NodeId};
use atoll_api::sandbox::{Desired, Phase, Placement, Resources};

use crate::place::{self, NodeLoadView};
use crate::state::region::{NodeHealth, NodeUsage, RegionCommand, RegionNode, RegionState};

/// How long ago each node was last heard from, in milliseconds; `None` or no entry: never since this leader took office.
/// The leader itself is in it, with 0.
pub type Liveness = BTreeMap<NodeId, Option<u64>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanConfig {
    /// A node that was silent for so long is Down. Default 6,000. Must exceed the nodes' `self_fence_after`.
    pub node_down_after_ms: u64,
    /// When this node became the region's leader, on the clock of `now_ms`. A leader that has just come has heard from
    /// nobody yet, so it judges nobody Down before it has listened for `node_down_after_ms`.
    pub leader_since_ms: u64,
}

/// Sandboxes placed again in one plan; the rest follows on the next tick.
pub const REPLACEMENTS_MAX: usize = 64;
/// Look-ups honour expiry to the millisecond, so dropping expired tokens can wait until one entry drops many.
pub const EXPIRE_LAG_MS: u64 = 30_000;

/// At most one command per node, one for tokens, and [`REPLACEMENTS_MAX`] placements.
pub fn plan(
    state: &RegionState,
    liveness: &Liveness,
    now_ms: u64,
    config: &PlanConfig,
) -> Vec<RegionCommand> {
    let mut commands = Vec::new();
    judge_nodes(state, liveness, now_ms, config, &mut commands);
    if state.next_expiry_ms().is_some_and(|expiry_ms| expiry_ms.saturating_add(EXPIRE_LAG_MS) <= now_ms) {
        commands.push(RegionCommand::ExpireTokens { now_ms });
    }
    place_unstarted(state, liveness, now_ms, &mut commands);
    commands
}

fn judge_nodes(
    state: &RegionState,
    liveness: &Liveness,
    now_ms: u64,
    config: &PlanConfig,
    commands: &mut Vec<RegionCommand>,
) {
    let listened_ms = now_ms.saturating_sub(config.leader_since_ms);
    for (node_id, node) in &state.nodes {
        // Who was never heard has been silent for as long as there was someone to hear.
        let silent_ms = liveness.get(node_id).copied().flatten().unwrap_or(u64::MAX);
        let is_dead = silent_ms >= config.node_down_after_ms && listened_ms >= config.node_down_after_ms;
        // Half of the way back, so that a node at the edge doesn't flap.
        let is_back = silent_ms < config.node_down_after_ms / 2;
        let health = match node.health {
            NodeHealth::Ready | NodeHealth::Cordoned if is_dead => NodeHealth::Down,
            NodeHealth::Down if is_back && node.cordoned => NodeHealth::Cordoned,
            NodeHealth::Down if is_back => NodeHealth::Ready,
            NodeHealth::Ready | NodeHealth::Cordoned | NodeHealth::Down => continue,
        };
        commands.push(RegionCommand::JudgeNode { node_id: *node_id, health, now_ms });
    }
}

/// Sandboxes whose owner died before it was heard to begin: nobody has used them yet, so nothing is lost elsewhere.
fn place_unstarted(state: &RegionState, liveness: &Liveness, now_ms: u64, commands: &mut Vec<RegionCommand>) {
    let down = state.nodes.iter().filter(|(_, node)| node.health == NodeHealth::Down);
    let unstarted = down
        .flat_map(|(node_id, _)| state.assignments(*node_id))
        .filter(|(_, record)| record.phase == Phase::Pending && record.desired == Desired::Running);
    // What this very plan gives to each node: the state doesn't know it yet.
    let mut planned: BTreeMap<NodeId, NodeUsage> = BTreeMap::new();
    let placements = unstarted.filter_map(|(sandbox_id, record)| {
        let resources = record.spec.resources;
        let generation = Generation(record.placement.generation.0.checked_add(1)?);
        let node_id = least_burdened(state, liveness, &planned, resources)?;
        let share = planned.entry(node_id).or_default();
        *share = share.plus(NodeUsage::of(resources, Desired::Running));
        let placement = Placement { node_id, generation };
        Some(RegionCommand::PlaceSandbox { sandbox_id, placement, now_ms })
    });
    // Those that no node can take now don't use up the bound: a later one may be smaller.
    commands.extend(placements.take(REPLACEMENTS_MAX));
}

fn least_burdened(
    state: &RegionState,
    liveness: &Liveness,
    planned: &BTreeMap<NodeId, NodeUsage>,
    resources: Resources,
) -> Option<NodeId> {
    let burden = |(node_id, node): (&NodeId, &RegionNode)| {
        let heard_ms_ago = liveness.get(node_id).copied().flatten();
        let load = NodeLoadView { heard_ms_ago, ..NodeLoadView::default() };
        let usage = state.usage(*node_id).plus(planned.get(node_id).copied().unwrap_or_default());
        let able = place::why_not(node, usage, &load, resources).is_none();
        able.then(|| (place::burden(node, usage, &load, resources), *node_id))
    };
    state.nodes.iter().filter_map(burden).min().map(|(_, node_id)| node_id)
}

#[cfg(test)]
mod tests;
